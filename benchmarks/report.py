"""Writes what was measured into the README, between its markers, and has the plots drawn."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from benchmarks import bars, profile, venvs
from benchmarks.entrants import BY_NAME as ENTRANTS_BY_NAME
from benchmarks.entrants import ENTRANTS, OURS, UPSTREAM
from benchmarks.figures import Book, Cell
from benchmarks.workloads import WORKLOADS, Workload

README = venvs.HERE / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PEERS = [e for e in ENTRANTS if e.environment != OURS and e.only is None]
VARIANTS = [e for e in ENTRANTS if e.only is not None]
COSTS = {
    "commands": "Redis commands",
    "reads": "socket reads at Redis",
    "bytes_in": "bytes to Redis",
    "bytes_out": "bytes from Redis",
    "redis_us": "Redis CPU, us",
    "worker_us": "worker CPU, us",
    "rss_mb": "worker memory, MB",
}


def write(book: Book) -> None:
    """Put the tables and plots of the book into the README; the text around the markers stays."""
    draw(book)
    text = README.read_text() if README.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    body = "\n\n".join(part for part in sections(book) if part)
    README.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")


def draw(book: Book) -> None:
    """Draw the plots in an environment of their own, so that matplotlib is nobody's dependency."""
    python = venvs.ensure("report")
    book.save()
    command = [str(python), "-P", str(venvs.HERE / "plots.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=venvs.HERE)
    if done.returncode:
        raise venvs.SetupError(f"the plots could not be drawn: {done.stderr.strip()[-300:]}")


def sections(book: Book) -> list[str]:
    notes: list[str] = []
    return [
        machine(book),
        heading("Head to head with streaq 7.2.0", bars.table(bars.verdicts(book))),
        heading("Targets over all peers", bars.table(bars.targets(book))),
        heading("In short", summary(book)),
        heading("All peers", everyone(book, notes)),
        heading("Variants and the floor", variants(book)),
        heading("Cost of one no-op task", costs(book)),
        heading("Where the time of one no-op task goes", budget(book)),
        pictures(),
        heading("Why a cell has no figure", "\n".join(notes)) if notes else "",
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
        "machine, no persistence. "
        "Medians; the range in brackets is lowest to highest of all runs."
    )


def summary(book: Book) -> str:
    lines = ["| workload | ours | streaq 7.2.0 | ratio | best peer | ratio |", "| --- " * 6 + "|"]
    for workload in WORKLOADS:
        ours = book.get(workload.name, OURS)
        mine = ours.median(workload.main) if ours else None
        if ours is None or mine is None:
            continue
        theirs = book.median(workload.name, UPSTREAM, workload.main)
        best = best_peer(book, workload)
        cells = [workload.title, show(ours, workload.main, workload.unit)]
        cells += [number(theirs, workload.unit), times(mine, theirs, workload)]
        cells += [f"{best[0]} {number(best[1], workload.unit)}" if best else "none"]
        cells += [times(mine, best[1], workload) if best else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def best_peer(book: Book, workload: Workload) -> tuple[str, float] | None:
    found = [
        (e.label, book.median(workload.name, e.name, workload.main)) for e in ENTRANTS if e in PEERS
    ]
    values = [(label, value) for label, value in found if value is not None]
    if not values:
        return None
    pick = max if workload.better == "more" else min
    return pick(values, key=lambda pair: pair[1])


def everyone(book: Book, notes: list[str]) -> str:
    columns = [ENTRANTS_BY_NAME[OURS], *PEERS]
    columns = [e for e in columns if any(book.get(w.name, e.name) for w in WORKLOADS)]
    if not columns:
        return ""
    lines = [f"| workload | {' | '.join(e.label for e in columns)} |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for workload in WORKLOADS:
        for metric, title in {workload.main: workload.title, **workload.extra}.items():
            row = [book.get(workload.name, e.name) for e in columns]
            if any(row):
                name = title if metric == workload.main else f"… {title}"
                shown = [cell_text(cell, workload, metric, notes) for cell in row]
                lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def cell_text(cell: Cell | None, workload: Workload, metric: str, notes: list[str]) -> str:
    if cell is None:
        return ""
    if cell.note:
        line = f"- {workload.title}, {ENTRANTS_BY_NAME[cell.entrant].label}: {cell.note}"
        if line not in notes:
            notes.append(line)
        return "n/a"
    return show(cell, metric, workload.unit if metric == workload.main else "")


def show(cell: Cell, metric: str, unit: str) -> str:
    middle, spread = cell.median(metric), cell.spread(metric)
    if middle is None or spread is None:
        return ""
    text = number(middle, unit)
    return text if spread[0] == spread[1] else f"{text} [{short(spread[0])}–{short(spread[1])}]"


def number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{short(value)} {unit}".strip()


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(mine: float, theirs: float | None, workload: Workload) -> str:
    if not theirs or not mine:
        return ""
    ratio = mine / theirs if workload.better == "more" else theirs / mine
    return f"{ratio:.3g} x"


def variants(book: Book) -> str:
    shown = [w for w in WORKLOADS if any(book.get(w.name, e.name) for e in VARIANTS)]
    if not shown:
        return ""
    lines = [f"| | {' | '.join(w.title for w in shown)} |", "| --- " * (len(shown) + 1) + "|"]
    for entrant in [ENTRANTS_BY_NAME[OURS], *VARIANTS]:
        row = [book.get(w.name, entrant.name) for w in shown]
        if any(row):
            pairs = zip(row, shown, strict=True)
            cells = [show(cell, w.main, w.unit) if cell else "" for cell, w in pairs]
            lines.append(f"| {entrant.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs(book: Book) -> str:
    rows = [e for e in ENTRANTS if book.median("drain", e.name, "commands") is not None]
    if not rows:
        return ""
    lines = [f"| | {' | '.join(COSTS.values())} |", "| --- " * (len(COSTS) + 1) + "|"]
    for entrant in rows:
        values = [number(book.median("drain", entrant.name, metric), "") for metric in COSTS]
        lines.append(f"| {entrant.label} | {' | '.join(values)} |")
    return (
        "\n".join(lines)
        + "\n\nCommands count those that scripts make. Memory is per worker process."
    )


def budget(book: Book) -> str:
    kept = book.extra.get("budget", [])
    return profile.table([profile.Budget(**data) for data in kept]) if kept else ""


def pictures() -> str:
    names = sorted(path.name for path in (venvs.HERE / "plots").glob("*.svg"))
    return "\n\n".join(f"![{name[:-4]}](plots/{name})" for name in names)


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


def lines_for_terminal(rows: Sequence[bars.Verdict]) -> str:
    """The verdicts as aligned text."""
    return "\n".join(f"{v.word:9} {v.title:44} {v.bar:10} {v.figure:40} {v.spread}" for v in rows)
