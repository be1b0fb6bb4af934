"""Writes what was measured into the README, between its markers, and has the plots drawn."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bars, charts, profile, standings, tables, telemetry, venvs
from benchmarks.entrants import ENTRANTS
from benchmarks.figures import Book
from benchmarks.standings import Reasons

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PLOTS = "plots"


def write(book: Book) -> None:
    """Put the tables and plots of the book into the README beside its file; the text around the
    markers stays.
    """
    readme = book.path.with_name("README.md")
    draw(book, book.path.with_name(PLOTS))
    text = readme.read_text() if readme.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    body = "\n\n".join(part for part in sections(book, standings.load_reasons()) if part)
    readme.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")


def draw(book: Book, folder: Path) -> None:
    """Draw the plots in an environment of their own, so that matplotlib is nobody's dependency."""
    python = venvs.ensure("report")
    command = [str(python), "-P", str(venvs.HERE / "plots.py"), str(folder.resolve())]
    done = subprocess.run(
        command,
        input=json.dumps(charts.spec(book)),
        capture_output=True,
        text=True,
        check=False,
        cwd=venvs.HERE,
    )
    if done.returncode:
        raise venvs.SetupError(f"the plots could not be drawn: {done.stderr.strip()[-300:]}")


def sections(book: Book, reasons: Reasons) -> list[str]:
    notes: list[str] = []
    return [
        machine(book),
        heading("Head to head with streaq 7.2.0", verdicts(bars.verdicts(book), reasons)),
        heading("Targets over all peers", verdicts(bars.targets(book), reasons)),
        heading(
            "What telemetry costs",
            f"{telemetry.when(book)}\n\n{verdicts(telemetry.verdicts(book), reasons)}",
        ),
        heading("In pictures", pictures(book)),
        heading("Row by row", tables.summary(book, reasons)),
        heading("All peers", tables.everyone(book, notes)),
        heading("What was not measured in full, and why", "\n".join(notes)),
        heading("Variants and the floor", tables.variants(book)),
        heading("Cost of one no-op task", tables.costs(book)),
        heading("Where the time of one no-op task goes", budget(book)),
        heading("How each is set up", setups(book)),
    ]


def heading(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def machine(book: Book) -> str:
    it = book.about.get("machine", {})
    if not it:
        return ""
    return (
        f"Measured {book.about.get('measured', '')} on {it['cores']} cores ({it['cpu']}), "
        f"{it['memory']}, {it['system']}, Python {it['python']}, {it['server']} on the same "
        "machine, no persistence. Medians; small beside them the lowest and the highest of all "
        f"runs. A dash: not run; n/a: the queue has no such thing; {tables.CAPPED}: measured with "
        "less than the row names. The reasons stand below the tables."
    )


def verdicts(rows: Sequence[bars.Verdict], reasons: Reasons) -> str:
    """The bars as a table, each miss with its reason."""
    lines: list[list[str]] = []
    for v in rows:
        why = reasons.get((standings.BARS, v.title), standings.NO_REASON)
        word = f"**miss**: {why}" if v.met is False else v.word
        lines.append([v.title, v.bar, v.figure, v.spread, word])
    return tables.markdown(["bar", "asked", "measured", "spread", ""], lines)


def budget(book: Book) -> str:
    kept = book.extra.get("budget", [])
    return profile.table([profile.Budget(**data) for data in kept]) if kept else ""


def pictures(book: Book) -> str:
    """Every picture under its caption; each SVG links to its PNG."""
    return "\n\n".join(
        f"**{caption}**\n\n[![{caption}]({PLOTS}/{name}.svg)]({PLOTS}/{name}.png)"
        for name, caption in charts.captions(book)
    )


def setups(book: Book) -> str:
    parts: list[str] = []
    seen: set[str] = set()
    about = book.about.get("setup", {})
    for entrant in ENTRANTS:
        told = about.get(entrant.name)
        if told and entrant.script not in seen:
            seen.add(entrant.script)
            versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
            parts.append(f"**{entrant.label}** ({versions})\n\n{told['how'].strip()}")
    return "\n\n".join(parts)


def lines_for_terminal(rows: Sequence[bars.Verdict], unexplained: Sequence[str]) -> str:
    """The verdicts as aligned text, then what still wants a reason."""
    lines = [f"{v.word:9} {v.title:44} {v.bar:10} {v.figure:40} {v.spread}" for v in rows]
    if unexplained:
        lines += ["", f"no reason in {standings.REASONS.name} for:"]
        lines += [f"  {line}" for line in unexplained]
    return "\n".join(lines)
