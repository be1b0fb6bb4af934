"""What the demo shows: one picture, redrawn while it runs and left standing at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streaq.cli.demo.tally import percentile
from streaq.cli.words import BAD, DIM, GOOD, WARN

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streaq.cli.demo.tally import Row, Tally

BARS = "▁▂▃▄▅▆▇█"
BEAT_S = 0.5
BEATS = 20
EXACT_BELOW_MS = 10_000
P50, P95 = 0.5, 0.95


class Pace:
    """Tasks a second, over the last beats."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._at = clock()
        self._ended = 0
        self._rates: deque[float] = deque(maxlen=BEATS)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def note(self, ended: int) -> None:
        """So many have ended by now."""
        now = self._clock()
        if (passed := now - self._at) >= BEAT_S:
            self._rates.append((ended - self._ended) / passed)
            self._at, self._ended = now, ended

    def line(self) -> Text:
        """As a curve and the newest number."""
        top = max([1.0, *self._rates])
        steps = len(BARS) - 1
        curve = "".join(BARS[round(rate / top * steps)] for rate in self._rates)
        latest = self._rates[-1] if self._rates else 0.0
        return Text.assemble((curve.ljust(BEATS), "cyan"), f" {latest:>6,.0f} tasks/s")


def picture(
    tally: Tally, pace: Pace, heading: Text, priorities: list[str], *, done: bool = False
) -> RenderableType:
    """Everything.

    :param priorities: highest first; the rows are in that order.
    """
    parts: list[RenderableType] = [heading, ""]
    if not (done or tally.enqueued):
        return Group(heading, "", Text("starting the worker …", style=DIM))
    if not done:
        parts += [_progress(tally, pace), ""]
    parts.append(_table(tally, priorities))
    parts.append(Text("wait: due until started, run: started until ended, in ms", style=DIM))
    if done:
        parts += ["", verdict(tally, pace)]
    return Group(*parts)


def plain_line(tally: Tally, pace: Pace) -> str:
    """The progress in one line, for where nothing can be redrawn."""
    return f"{pace.elapsed_s:5.1f} s  {tally.ended:,} of {tally.enqueued:,} tasks done"


def verdict(tally: Tally, pace: Pace) -> Text:
    """Whether the numbers add up."""
    rows = list(tally.rows())
    succeeded, failed = sum(r.succeeded for r in rows), sum(r.failed for r in rows)
    if not tally.adds_up():
        missing = len(tally.outstanding)
        return Text(
            f"{tally.enqueued:,} enqueued, {succeeded:,} succeeded, {failed:,} failed: "
            f"{missing:,} without a result, {tally.surprises:,} that nobody asked for",
            style=f"bold {BAD}",
        )
    line = Text.assemble(
        (f"{tally.enqueued:,} enqueued", "bold"),
        (" = ", DIM),
        (f"{succeeded:,} succeeded", f"bold {GOOD}"),
        (" + ", DIM),
        (f"{failed:,} failed", f"bold {BAD}"),
    )
    line.append(f"\neach of them has exactly one result · {pace.elapsed_s:.1f} s", style=DIM)
    if skipped := sum(r.skipped for r in rows):
        line.append(f" · {skipped:,} fail-overs were not needed", style=DIM)
    return line


def _progress(tally: Tally, pace: Pace) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, tally.enqueued), completed=tally.ended, width=30)
    line.add_row(bar, Text(f"{tally.ended:,} of {tally.enqueued:,}"), pace.line())
    return line


def _table(tally: Tally, priorities: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("\nprio", no_wrap=True)
    table.add_column("\ntask", no_wrap=True)
    for name in ("enqueued", "succeeded", "failed", "retried"):
        table.add_column(f"\n{name}", justify="right", no_wrap=True)
    for name in ("wait\np50", "\np95", "run\np50", "\np95"):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    rank = {name: i for i, name in enumerate(priorities)}
    rows = sorted(tally.rows(), key=lambda row: rank.get(row.priority, len(rank)))
    for i, row in enumerate(rows):
        is_first = i == 0 or rows[i - 1].priority != row.priority
        table.add_row(*_cells(row, with_priority=is_first))
    return table


def _cells(row: Row, *, with_priority: bool) -> list[Text]:
    def count(n: int, style: str) -> Text:
        return Text(f"{n:,}", style=style if n else DIM)

    def ms(samples: deque[int], share: float) -> Text:
        value = percentile(samples, share)
        if value is None:
            return Text("–", style=DIM)
        return Text(f"{value:,}" if value < EXACT_BELOW_MS else f"{value / 1000:.0f} s")

    return [
        Text(row.priority if with_priority else "", style=DIM),
        Text(row.task),
        count(row.enqueued, "default"),
        count(row.succeeded, GOOD),
        count(row.failed, BAD),
        count(row.retried, WARN),
        ms(row.waits_ms, P50),
        ms(row.waits_ms, P95),
        ms(row.runs_ms, P50),
        ms(row.runs_ms, P95),
    ]
