"""The metrics of a whole queue, read from Redis by one script call per scrape at most.

What the broker must answer with is written down as protocols; this module never speaks to Redis
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


CACHE_S = 1.0
"""Seconds for which a snapshot is used again."""


class PrioritySnapshot(Protocol):
    """One priority of a queue, at one moment."""

    @property
    def depth(self) -> int:
        """Tasks due that no worker has claimed."""
        ...

    @property
    def scheduled(self) -> int:
        """Tasks due later, retries included; schedules (cron) are not tasks."""
        ...

    @property
    def blocked(self) -> int:
        """Tasks that wait for other tasks."""
        ...

    @property
    def running(self) -> int:
        """Tasks that a worker holds a lease on."""
        ...

    @property
    def oldest_due_ms(self) -> int | None:
        """Since when the oldest of the waiting tasks (``depth``) is due; None when none waits."""
        ...

    @property
    def enqueued(self) -> int:
        """Tasks ever enqueued (each firing of a schedule is one), counted by the scripts."""
        ...

    @property
    def finished(self) -> Mapping[str, int]:
        """Tasks ever ended, by ``names.OUTCOMES``, counted by the scripts."""
        ...


class CronSnapshot(Protocol):
    """All schedules of one task name, at one moment."""

    @property
    def last_success_ms(self) -> int | None:
        """When its task last succeeded, or None."""
        ...

    @property
    def next_ms(self) -> int | None:
        """The next firing, or None."""
        ...

    @property
    def missed(self) -> int:
        """Firings that passed with no worker alive and were not run."""
        ...


class QueueSnapshot(Protocol):
    """One queue at one moment of the server's clock."""

    @property
    def queue(self) -> str: ...
    @property
    def now_ms(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def priorities(self) -> Mapping[str, PrioritySnapshot]: ...
    @property
    def crons(self) -> Mapping[str, CronSnapshot]: ...


SnapshotSource = Callable[[], QueueSnapshot]
"""Reads one queue: blocking, from any thread, within a few seconds or with an exception."""
