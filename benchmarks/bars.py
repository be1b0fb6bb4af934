"""The bars that the project set itself: which figures they compare, and whether they are met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.entrants import ENTRANTS, OURS, UPSTREAM
from benchmarks.figures import Book
from benchmarks.workloads import BY_NAME, Workload

N = 20_000
PEERS = tuple(e.name for e in ENTRANTS if e.environment != OURS and not e.name.endswith("-trio"))


@dataclass(frozen=True)
class Verdict:
    """One line of a bars table; `met` is None where there is no figure yet."""

    title: str
    bar: str
    figure: str
    spread: str
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "pass", False: "MISS", None: "no figure"}[self.met]


@dataclass(frozen=True)
class Bar:
    """A bar of the head-to-head with upstream: a ratio of the two or a bound for ours alone."""

    title: str
    workload: str
    metric: str
    limit: float
    kind: str  # times: ours/theirs at least; share: ours/theirs below; most: ours at most (ms)

    def judge(self, book: Book) -> Verdict:
        ours = _samples(book, self.workload, OURS, self.metric)
        theirs = _samples(book, self.workload, UPSTREAM, self.metric)
        if self.kind == "most":
            return self._bound(ours, theirs)
        ratios = [a / b for a, b in zip(ours, theirs, strict=False) if b]
        sign = ">= " if self.kind == "times" else "< "
        if not ratios:
            return Verdict(self.title, f"{sign}{self.limit:g} x", "", "", None)
        middle = statistics.median(ratios)
        met = middle >= self.limit if self.kind == "times" else middle < self.limit
        detail = f"{plain(statistics.median(ours))} against {plain(statistics.median(theirs))}"
        return Verdict(
            self.title,
            f"{sign}{self.limit:g} x",
            f"{middle:.3g} x ({detail})",
            f"{min(ratios):.3g} to {max(ratios):.3g}",
            met,
        )

    def _bound(self, ours: Sequence[float], theirs: Sequence[float]) -> Verdict:
        if not ours:
            return Verdict(self.title, f"< {self.limit:g} ms", "", "", None)
        middle = statistics.median(ours)
        against = f" (upstream {statistics.median(theirs):.3g} ms)" if theirs else ""
        return Verdict(
            self.title,
            f"< {self.limit:g} ms",
            f"{middle:.3g} ms{against}",
            f"{min(ours):.3g} to {max(ours):.3g}",
            middle < self.limit,
        )


BARS: tuple[Bar, ...] = (
    Bar("drain of 20,000 no-ops", "bar-drain", "rate", 12, "times"),
    Bar("batch enqueue", "bar-batch", "rate", 8, "times"),
    Bar("single awaited enqueue, 100 coroutines", "bar-concurrent", "rate", 4, "times"),
    Bar("idle: enqueue to start, p50", "bar-latency", "start_p50", 0.5, "share"),
    Bar("idle: enqueue to result(), p50", "bar-latency", "result_p50", 5, "most"),
    Bar("lateness of a scheduled task, p50", "bar-lateness", "p50", 10, "most"),
    Bar("abort of a running task seen, slowest", "bar-abort", "max", 20, "most"),
)


def bar_workloads() -> list[Workload]:
    """The workloads of the head-to-head, with the sizes that the bars name."""
    sizes = {"drain": N, "batch": N, "concurrent": N, "latency": 100, "lateness": 200, "abort": 20}
    return [
        replace(BY_NAME[name], name=f"bar-{name}", fixed=size, once=False)
        for name, size in sizes.items()
    ]


def verdicts(book: Book) -> list[Verdict]:
    return [bar.judge(book) for bar in BARS]


# --- the wider targets, judged from the full table ----------------------------------------------


def targets(book: Book) -> list[Verdict]:
    """The targets of the speed issue: against all peers, with telemetry, on Trio, against the
    floor.
    """

    def runs(workload: str, entrant: str, metric: str = "rate") -> list[float]:
        return _samples(book, workload, entrant, metric)

    peers = [found for name in PEERS if (found := runs("drain", name))]
    best = max(peers, key=statistics.median, default=[])
    ours, theirs = runs("drain", OURS), runs("drain", UPSTREAM)
    return [
        _ratio("drain against streaq 7.2.0", ours, theirs, 12),
        _ratio("drain against the fastest peer", ours, best, 8),
        _ratio("drain, everything on, against streaq", runs("drain", "ours-full"), theirs, 5),
        _ratio("batch enqueue against streaq", runs("batch", OURS), runs("batch", UPSTREAM), 8),
        _ratio(
            "drain on Trio against streaq on Trio",
            runs("drain", "ours-trio"),
            runs("drain", "streaq-trio"),
            5,
        ),
        _ratio("two workers against one", runs("drain2", OURS), ours, 1.7),
        _ratio("two workers against one, 10 ms tasks", runs("nap2", OURS), runs("nap", OURS), 1.7),
        _ratio(
            "rate with a million waiting / when empty",
            runs("backlog", OURS, "rate_full"),
            runs("backlog", OURS, "rate_empty"),
            0.85,
        ),
        _ratio("bare loop / ours", runs("drain", "floor"), ours, 1.6, at_least=False),
    ]


def _ratio(
    title: str,
    upper: Sequence[float],
    lower: Sequence[float],
    bar: float,
    *,
    at_least: bool = True,
) -> Verdict:
    """The ratio of the medians; its spread is that of the rounds, each with itself."""
    sign = ">=" if at_least else "<="
    if not upper or not lower:
        return Verdict(title, f"{sign} {bar:g} x", "", "", None)
    above, below = statistics.median(upper), statistics.median(lower)
    rounds = [a / b for a, b in zip(upper, lower, strict=False) if b]
    ratio = above / below
    return Verdict(
        title,
        f"{sign} {bar:g} x",
        f"{ratio:.3g} x ({plain(above)} against {plain(below)})",
        f"{min(rounds):.3g} to {max(rounds):.3g}" if len(rounds) > 1 else "",
        ratio >= bar if at_least else ratio <= bar,
    )


def plain(value: float) -> str:
    """A figure with as many digits as tell something, and never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _samples(book: Book, workload: str, entrant: str, metric: str) -> list[float]:
    cell = book.get(workload, entrant)
    return cell.samples.get(metric, []) if cell else []
