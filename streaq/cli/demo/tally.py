"""The numbers of the demo: what was enqueued, as the producers know it, and what came of it, as
the published results tell it. Two sources, so that they can be held against each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streaq.hooks import Enqueue, Hook

if TYPE_CHECKING:
    from streaq.wire import Record

SAMPLES = 5_000
"""Times kept per row, the newest; more would not change a percentile that anybody can see."""


def _samples() -> deque[int]:
    return deque(maxlen=SAMPLES)


@dataclass(slots=True)
class Row:
    """One task at one priority."""

    task: str
    priority: str
    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    skipped: int = 0
    """Of those that succeeded: fail-overs that were not needed, and not run."""
    waits_ms: deque[int] = field(default_factory=_samples)
    """From being due to being started."""
    runs_ms: deque[int] = field(default_factory=_samples)
    """From the last start to the end."""

    @property
    def ended(self) -> int:
        """Succeeded or failed."""
        return self.succeeded + self.failed

    def add(self, record: Record) -> None:
        """Count one result."""
        if record.status == "success":
            self.succeeded += 1
            self.skipped += record.reason == "skipped"
        else:
            self.failed += 1
        self.retried += sum(entry["outcome"] == "retried" for entry in record.ledger)
        if record.started_ms:
            due_ms = max(record.due_ms, record.created_ms)
            self.waits_ms.append(max(0, record.started_ms - due_ms))
            self.runs_ms.append(max(0, record.finished_ms - record.started_ms))


class Tally(Hook):
    """All rows. As a hook of the producing worker it counts what is enqueued.

    :param crons: cron jobs: nobody enqueues those but the workers, so they count as enqueued when
        their result is there.
    """

    def __init__(self, crons: Iterable[str]) -> None:
        self._crons = frozenset(crons)
        self._rows: dict[tuple[str, str], Row] = {}
        self._outstanding: set[str] = set()
        self._early: set[str] = set()
        self.surprises = 0
        """Results of tasks that were not enqueued here, or that had one already."""

    def on_enqueued(self, e: Enqueue) -> None:
        """One more to wait for."""
        self._row(e.task, e.priority).enqueued += 1
        if e.task_id in self._early:
            self._early.discard(e.task_id)
        else:
            self._outstanding.add(e.task_id)

    def on_result(self, record: Record) -> None:
        """One result was published."""
        row = self._row(record.fn, record.priority)
        row.add(record)
        if record.fn in self._crons:
            row.enqueued += 1
        elif record.task_id in self._outstanding:
            self._outstanding.discard(record.task_id)
        elif record.task_id in self._early:
            self.surprises += 1
        else:
            # A quick worker ends a task before its producer hears that it was enqueued.
            self._early.add(record.task_id)

    @property
    def outstanding(self) -> frozenset[str]:
        """Ids of tasks without a result."""
        return frozenset(self._outstanding)

    @property
    def enqueued(self) -> int:
        """Tasks in all."""
        return sum(row.enqueued for row in self._rows.values())

    @property
    def ended(self) -> int:
        """Tasks with a result."""
        return sum(row.ended for row in self._rows.values())

    def adds_up(self) -> bool:
        """Whether every task that was enqueued has exactly one result, and nothing else has."""
        rows = self._rows.values()
        settled = not (self._outstanding or self._early or self.surprises)
        return settled and all(row.enqueued == row.ended for row in rows)

    def rows(self) -> Iterator[Row]:
        """In the order of their first appearance."""
        yield from self._rows.values()

    def _row(self, task: str, priority: str) -> Row:
        key = (task, priority)
        if key not in self._rows:
            self._rows[key] = Row(task, priority)
        return self._rows[key]


def percentile(samples: Iterable[int], share: float) -> float | None:
    """The value that ``share`` of the samples do not exceed (nearest rank); None without any."""
    ranked = sorted(samples)
    if not ranked:
        return None
    rank = max(1, -(-len(ranked) * round(share * 1000) // 1000))
    return ranked[rank - 1]
