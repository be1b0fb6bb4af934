"""What a worker knows about its own well-being, and the verdict drawn from it.

The engine writes a few moments down as they pass; ``/livez`` and ``/readyz`` read them, from
another thread or (over shared memory) from another process, so they can tell the truth even
while the event loop cannot run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass

(
    BEAT,
    INTERVAL,
    POLL,
    START,
    LOST,
    READY,
    RUNNING,
    CONCURRENCY,
    LAG,
    LAG_BEFORE,
    LAG_TURN,
    OLDEST,
) = range(12)
SIZE = 12
"""Number of cells that a ``Health`` needs."""

AWAY, WORKING, STOPPING = 0, 1, 2
"""Values of the ``READY`` cell."""

LAG_WINDOW_S = 30.0
"""The lag shown is the worst of this window and of the one before it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may last before a worker is called unwell. All in seconds.

    :param loop_s: the event loop may go without a beat.
    :param redis_s: Redis may be out of reach.
    :param stall_s: due work may wait while the worker has room for it, but neither asks for
        work nor starts any.
    :param start_s: due work may wait while no worker of the process has started yet, or again.
    """

    loop_s: float = 15.0
    redis_s: float = 30.0
    stall_s: float = 30.0
    start_s: float = 120.0


class Health:
    """The moments that matter, each kept in one cell. Every method is safe in any thread.

    :param cells: where to keep them: ``SIZE`` numbers, all 0. A slice of shared memory lets
        another process judge; the default is private.
    :param clock: monotonic seconds; the same for the writer and the judge.

    Example::

        health = Health()
        health.ready(concurrency=16)
        health.polled()
        assert health.problems(Limits(), due_age_s=None) == []
    """

    def __init__(
        self,
        cells: MutableSequence[float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cells = [0.0] * SIZE if cells is None else cells
        self._clock = clock
        self.whose = ""
        """Which of several workers it is, for people; empty for the only one."""

    def keep_in(self, cells: MutableSequence[float]) -> None:
        """Go on in other cells (``SIZE`` numbers or more), such as those of shared memory."""
        for i in range(SIZE):
            cells[i] = self._cells[i]
        self._cells = cells

    # ------------------------------------------------------------- told by the engine

    def ready(self, concurrency: int) -> None:
        """The worker is about to claim its first task."""
        cells = self._cells
        now = self._clock()
        cells[CONCURRENCY] = concurrency
        cells[BEAT] = cells[POLL] = cells[LAG_TURN] = now
        cells[READY] = WORKING

    def stopping(self) -> None:
        """The worker claims no more; it may still finish what runs."""
        self._cells[READY] = STOPPING

    def stopped(self) -> None:
        """The worker is gone from the queue, in good order."""
        self.holds(0, 0)
        self._cells[READY] = AWAY

    def polled(self) -> None:
        """The pump asked Redis for work, or had an answer. Call it on both occasions."""
        self._cells[POLL] = self._clock()

    def started(self) -> None:
        """An attempt started or ended."""
        self._cells[START] = self._clock()

    def holds(self, running: int, oldest_ms: int) -> None:
        """So many attempts run now; the oldest of them started at this moment (0 for none)."""
        self._cells[RUNNING] = running
        self._cells[OLDEST] = oldest_ms

    def redis_lost(self) -> None:
        """Redis does not answer. Calling it again keeps the first moment."""
        if not self._cells[LOST]:
            self._cells[LOST] = self._clock()

    def redis_restored(self) -> None:
        """Redis answers again."""
        self._cells[LOST] = 0

    def beat(self, interval_s: float) -> None:
        """The event loop runs; the next beat is due in ``interval_s`` seconds."""
        cells = self._cells
        now = self._clock()
        late = now - cells[BEAT] - cells[INTERVAL] if cells[INTERVAL] else 0.0
        cells[BEAT] = now
        cells[INTERVAL] = interval_s
        if now - cells[LAG_TURN] > LAG_WINDOW_S:
            cells[LAG_BEFORE] = cells[LAG]
            cells[LAG] = 0.0
            cells[LAG_TURN] = now
        cells[LAG] = max(cells[LAG], late)

    # ------------------------------------------------------------------- asked by others

    @property
    def is_started(self) -> bool:
        """Whether the worker has started and not yet stopped."""
        return self._cells[READY] != AWAY

    @property
    def is_ready(self) -> bool:
        """Whether the worker claims tasks."""
        return self._cells[READY] == WORKING

    @property
    def silent_s(self) -> float:
        """Seconds since the last beat of the event loop; 0 when it is not running."""
        return max(0.0, self._clock() - self._cells[BEAT]) if self._cells[READY] else 0.0

    @property
    def unanswered_s(self) -> float:
        """Seconds since the pump last asked Redis, or had an answer; 0 before the start."""
        asked = self._cells[POLL]
        return max(0.0, self._clock() - asked) if asked else 0.0

    @property
    def lag_s(self) -> float:
        """Longest time by which the loop was late for its beat, over the last minute or less."""
        overdue = self.silent_s - self._cells[INTERVAL]
        return max(0.0, overdue, self._cells[LAG], self._cells[LAG_BEFORE])

    @property
    def oldest_running_s(self) -> float:
        """When the oldest attempt that runs started, as a Unix timestamp; 0 when none runs."""
        return self._cells[OLDEST] / 1000

    @property
    def lost_s(self) -> float:
        """Seconds since Redis was lost; 0 while it answers."""
        lost = self._cells[LOST]
        return max(0.0, self._clock() - lost) if lost else 0.0

    def problems(self, limits: Limits, due_age_s: float | None) -> list[str]:
        """Why this worker should be replaced, one line each; empty when it is well.

        :param due_age_s: seconds for which the oldest waiting task has been due; None when
            nothing waits or when that is not known.

        A worker that has not started, or has stopped in good order, has no problems; nor has one
        whose slots are all taken by long tasks, nor one with nothing to do.
        """
        if not self._cells[READY]:
            return []
        found: list[str] = []
        if self.silent_s > limits.loop_s:
            found.append(f"the event loop has not run for {self.silent_s:.1f} s")
        if self.lost_s > limits.redis_s:
            found.append(f"Redis has been out of reach for {self.lost_s:.1f} s")
        if self._stalled(limits.stall_s, due_age_s):
            found.append(f"work has been due for {due_age_s:.1f} s and this worker takes none")
        return found

    def _stalled(self, stall_s: float, due_age_s: float | None) -> bool:
        cells = self._cells
        if due_age_s is None or due_age_s <= stall_s or cells[READY] != WORKING:
            return False
        if cells[RUNNING] >= cells[CONCURRENCY]:
            return False
        return self._clock() - max(cells[POLL], cells[START]) > stall_s

    def unready(self) -> list[str]:
        """Why no work should be counted on from this worker now; empty when it is ready."""
        if not self.is_ready:
            stopping = self._cells[READY] == STOPPING
            return ["the worker is shutting down" if stopping else "the worker has not started"]
        return ["Redis is out of reach"] if self._cells[LOST] else []
