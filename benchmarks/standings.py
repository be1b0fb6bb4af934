"""Row by row: whether we are ahead of every peer, and where not, the reason that is kept for it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import bars, telemetry
from benchmarks.entrants import BY_NAME, OURS
from benchmarks.figures import Book
from benchmarks.venvs import HERE
from benchmarks.workloads import WORKLOADS, Row, Workload

REASONS = HERE / "reasons.toml"
BARS = "bars"
NO_REASON = "no reason written yet"

Reasons = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Standing:
    """Where we stand in one row: our median and that of the best peer."""

    workload: Workload
    row: Row
    mine: float
    peer: str = ""
    best: float | None = None

    @property
    def times(self) -> float | None:
        """How many times better than the best peer; below 1 is worse."""
        if self.best is None:
            return None
        ours, theirs = self.mine, self.best
        if self.row.better == "less":
            ours, theirs = theirs, ours
        return ours / theirs if theirs else None

    @property
    def ahead(self) -> bool:
        return self.times is None or self.times > 1

    def verdict(self, reasons: Reasons) -> str:
        """The words for the table: ahead, alone, or behind with the reason."""
        if self.best is None:
            return "no peer has it"
        if self.ahead:
            return "ahead"
        return f"behind: {reasons.get((self.workload.name, self.row.metric), NO_REASON)}"


def judged(workload: Workload) -> Iterator[Row]:
    """The rows of a workload in which we mean to be ahead of everybody."""
    return (row for row in (*workload.rows, *workload.costs) if row.judged)


def standings(book: Book) -> list[Standing]:
    """Every judged row for which we have a figure, in the order of the tables."""
    found: list[Standing] = []
    for workload in WORKLOADS:
        for row in judged(workload):
            mine = book.median(workload.name, OURS, row.metric)
            if mine is not None:
                peer, value = best_peer(book, workload, row)
                found.append(Standing(workload, row, mine, peer, value))
    return found


def best_peer(book: Book, workload: Workload, row: Row) -> tuple[str, float | None]:
    """The label and the median of the best of all peers, their variants included."""
    found = [(name, book.median(workload.name, name, row.metric)) for name in bars.PEERS]
    values = [(value, BY_NAME[name].label) for name, value in found if value is not None]
    if not values:
        return "", None
    pick = max if row.better == "more" else min
    value, label = pick(values)
    return label, value


def load_reasons(path: Path = REASONS) -> dict[tuple[str, str], str]:
    """Why we lose a row or miss a bar, by (workload, metric) or by ("bars", title).

    Raises ValueError for a reason that belongs to no row or is empty, so that none goes stale.
    """
    if not path.exists():
        return {}
    kept = {
        (table, name): " ".join(str(reason).split())
        for table, lines in tomllib.loads(path.read_text()).items()
        for name, reason in lines.items()
    }
    known = {(w.name, row.metric) for w in WORKLOADS for row in judged(w)}
    known |= {(BARS, verdict.title) for verdict in all_bars(Book())}
    for key, reason in kept.items():
        if key not in known:
            raise ValueError(f"{path.name}: there is no row [{key[0]}] {key[1]}")
        if not reason:
            raise ValueError(f"{path.name}: the reason for [{key[0]}] {key[1]} is empty")
    return kept


def all_bars(book: Book) -> list[bars.Verdict]:
    return [*bars.verdicts(book), *bars.targets(book), *telemetry.verdicts(book)]


def unexplained(book: Book, reasons: Reasons) -> list[str]:
    """The rows we lose and the bars we miss for which no reason is kept, as keys of the file."""
    rows = [
        f"[{s.workload.name}] {s.row.metric}: {s.row.title}, best is {s.peer}"
        for s in standings(book)
        if not s.ahead and (s.workload.name, s.row.metric) not in reasons
    ]
    missed = [
        f'[{BARS}] "{verdict.title}": {verdict.figure}, asked {verdict.bar}'
        for verdict in all_bars(book)
        if verdict.met is False and (BARS, verdict.title) not in reasons
    ]
    return rows + missed
