"""The tables of the report: figures as Markdown, with spreads, and the notes that explain gaps."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bars import plain
from benchmarks.entrants import BY_NAME as ENTRANTS_BY_NAME
from benchmarks.entrants import ENTRANTS, OURS, UPSTREAM, Entrant
from benchmarks.figures import Book, Cell
from benchmarks.standings import Reasons, Standing, standings
from benchmarks.workloads import COSTS, WORKLOADS, Row, Workload

PEERS = [e for e in ENTRANTS if e.environment != OURS and e.only is None]
VARIANTS = [e for e in ENTRANTS if e.only is not None]
CAPPED = "†"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing for one without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(book: Book, reasons: Reasons) -> str:
    """Each row against streaq 7.2.0 and the best of all peers, with the verdict."""
    head = ["row", "ours", "streaq 7.2.0", "", "best peer", "", "ahead of every peer?"]
    return markdown(head, [summary_row(book, s, reasons) for s in standings(book)])


def summary_row(book: Book, s: Standing, reasons: Reasons) -> list[str]:
    theirs = book.median(s.workload.name, UPSTREAM, s.row.metric)
    verdict = s.verdict(reasons)
    return [
        titled(s.row),
        show(book.get(s.workload.name, OURS), s.row),
        number(theirs, s.row),
        times(s.mine, theirs, s.row),
        f"{s.peer} {number(s.best, s.row)}" if s.best is not None else "",
        times(s.mine, s.best, s.row),
        verdict if s.ahead else f"**{verdict.partition(':')[0]}**:{verdict.partition(':')[2]}",
    ]


def everyone(book: Book, notes: list[str]) -> str:
    """Every workload by every queue; what has no figure, or not a whole one, goes into `notes`."""
    columns = [ENTRANTS_BY_NAME[OURS], *PEERS]
    columns = [e for e in columns if any(book.get(w.name, e.name) for w in WORKLOADS)]
    rows: list[list[str]] = []
    for workload in WORKLOADS:
        cells = [book.get(workload.name, e.name) for e in columns]
        if any(cells):
            for row in workload.rows:
                shown = [cell_text(cell, workload, row, notes) for cell in cells]
                rows.append([titled(row), *shown])
    return markdown(["row", *(e.label for e in columns)], rows) if columns else ""


def cell_text(cell: Cell | None, workload: Workload, row: Row, notes: list[str]) -> str:
    if cell is None:
        return "–"
    for why in (cell.note, cell.cap):
        line = f"- {workload.title}, {ENTRANTS_BY_NAME[cell.entrant].label}: {why}"
        if why and line not in notes:
            notes.append(line)
    if cell.note:
        return "n/a" if cell.note.startswith("n/a") else "failed"
    return show(cell, row)


def show(cell: Cell | None, row: Row) -> str:
    """The median with its range, marked where the run was given less than the row names."""
    if cell is None:
        return ""
    middle, spread = cell.median(row.metric), cell.spread(row.metric)
    if middle is None or spread is None:
        return ""
    text = number(middle, row) + (CAPPED if cell.cap else "")
    low, high = number(spread[0], row), number(spread[1], row)
    return text if low == high else f"{text} <sub>{low}–{high}</sub>"


def titled(row: Row) -> str:
    return f"{row.title} ({row.unit})" if row.unit else row.title


def number(value: float | None, row: Row) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if row.share else plain(value)


def times(mine: float, theirs: float | None, row: Row) -> str:
    """How many times better ours is; below 1 it is worse."""
    if not theirs or not mine:
        return ""
    return f"{mine / theirs if row.better == 'more' else theirs / mine:.3g} x"


def variants(book: Book) -> str:
    """The variants and the floor, in those workloads that any of them plays."""
    shown = [w for w in WORKLOADS if any(book.get(w.name, e.name) for e in VARIANTS)]
    present = [e for e in VARIANTS if any(book.get(w.name, e.name) for w in shown)]
    if not shown:
        return ""
    head = ["", *(titled(w.rows[0]) for w in shown)]
    return markdown(head, [variant_row(book, e, shown) for e in [ENTRANTS_BY_NAME[OURS], *present]])


def variant_row(book: Book, entrant: Entrant, shown: Sequence[Workload]) -> list[str]:
    cells = [show(book.get(w.name, entrant.name), w.rows[0]) for w in shown]
    return [entrant.label, *cells]


def costs(book: Book) -> str:
    """What a no-op task costs each entrant in Redis, in bytes, in processor time and in memory."""
    rows = [
        [e.label, *(number(book.median("drain", e.name, row.metric), row) for row in COSTS)]
        for e in ENTRANTS
        if book.median("drain", e.name, "commands") is not None
    ]
    body = markdown(["", *(titled(row) for row in COSTS)], rows)
    told = "Commands count those that scripts make. Memory is that of one worker and its children."
    return f"{body}\n\n{told}" if body else ""
