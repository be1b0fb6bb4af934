"""Counts what happens to tasks. The hot path: a few additions to numbers found once per name, for
all attempts of it that begin or succeed together.

Each (task, priority) has a row that knows where its numbers are; a row finds the places of its
counters and histograms on first use and keeps them.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from streaq.engine.slots import is_sampled
from streaq.hooks import (
    Attempt,
    Cron,
    Due,
    Ending,
    Enqueue,
    Fence,
    Hook,
    Lane,
    Reclaim,
    RedisCall,
    Starts,
    Successes,
    WorkerEvent,
)
from streaq.telemetry import names
from streaq.telemetry.names import OTHER, REDIS_BUCKETS, TASK_BUCKETS, Metric
from streaq.telemetry.propagation import ids

if TYPE_CHECKING:
    from streaq.telemetry.cells import Store

logger = logging.getLogger("streaq")

EXEMPLAR_EVERY_MS = 1000
"""An exemplar stays at least this long before a newer one takes its place."""
MAX_TASK_NAMES = 200
MAX_EXCEPTION_NAMES = 100
_TASK_SUM = len(TASK_BUCKETS) + 1
_REDIS_SUM = len(REDIS_BUCKETS) + 1


class Row:
    """Where the numbers of one task name at one priority are."""

    def __init__(self, store: Store, queue: str, task: str, priority: str) -> None:
        self._store = store
        self._labels = (queue, task, priority)
        self._places: dict[str, dict[str, int]] = {}
        self.started = store.allocate(names.TASKS_STARTED, self._labels)
        self.running = store.allocate(names.TASKS_RUNNING, self._labels)
        self.wait = store.allocate(names.TASK_QUEUE_WAIT, self._labels)
        self.to_end = store.allocate(names.TASK_END_TO_END, self._labels)

    @cached_property
    def success(self) -> tuple[int, int]:
        """Where the tasks that succeeded are counted, and where the times that they took."""
        finished = self.place(names.TASKS_FINISHED, "success")
        return finished, self.place(names.TASK_DURATION, "success")

    def place(self, metric: Metric, value: str = "") -> int:
        """Index of the first number of ``metric``; ``value`` is its last label, if it has more."""
        places = self._places.setdefault(metric.name, {})
        found = places.get(value)
        if found is None:
            labels = (*self._labels, value) if value else self._labels
            found = places[value] = self._store.allocate(metric, labels)
        return found


class Capped:
    """Names as they are, up to ``most`` of them; the rest is ``__other__``."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._known: set[str] = set()
        self._told = False

    def allow(self, most: int) -> None:
        """Raise the cap. Once a name was left out it stays as it is: that name's count would go
        from ``__other__`` to a series of its own, and a counter backwards.
        """
        if not self._told:
            self._most = max(self._most, most)

    def __call__(self, name: str) -> str:
        """The label value for this name."""
        if name in self._known or name == OTHER:
            return name
        if len(self._known) < self._most:
            self._known.add(name)
            return name
        if not self._told:
            self._told = True
            logger.warning(
                "more than %d %s names: the rest is counted as %s; raise Telemetry(max_%s_names=)",
                self._most,
                self._what,
                OTHER,
                self._what,
            )
        return OTHER


def first_due_ms(e: Attempt) -> int:
    """When the task could first have run, as far as that is known."""
    first = e.first_due_ms or (e.created_ms if e.kind == "retry" else e.due_ms)
    return max(e.created_ms, first)


def to_end_s(e: Ending) -> float:
    """Seconds from when the task could first have run to its end; never negative."""
    return max(0, e.finished_ms - first_due_ms(e.attempt)) / 1000


class MetricsHook(Hook):
    """Counts the events of one worker into a store.

    :param max_task_names: task names with series of their own; the rest share ``__other__``.
    :param max_exception_names: the same for exception classes.
    """

    def __init__(
        self,
        store: Store,
        queue: str,
        *,
        max_task_names: int = MAX_TASK_NAMES,
        max_exception_names: int = MAX_EXCEPTION_NAMES,
    ) -> None:
        self._store = store
        self._cells = store.cells
        self._queue = queue
        self._rows: dict[tuple[str, str], Row] = {}
        self._operations: dict[str, tuple[int, int]] = {}
        self._lanes: dict[Lane, Row] = {}
        self._next_exemplar_ms: dict[int, int] = {}
        self._task_name = Capped(max_task_names, "task")
        self._exception_name = Capped(max_exception_names, "exception")
        self._concurrency = 0

    def _row(self, task: str, priority: str) -> Row:
        row = self._rows.get((task, priority))
        if row is None:
            label = self._task_name(task)
            row = self._rows.get((label, priority))
            if row is None:
                row = Row(self._store, self._queue, label, priority)
                self._rows[label, priority] = row
        return row

    def _add(self, row: Row, metric: Metric, value: str = "") -> None:
        self._cells[row.place(metric, value)] += 1.0

    def _observe(self, place: int, seconds: float) -> int:
        bucket = bisect_left(TASK_BUCKETS, seconds)
        cells = self._cells
        cells[place + bucket] += 1.0
        cells[place + _TASK_SUM] += seconds
        return bucket

    def _observe_all(self, place: int, many: Sequence[float]) -> None:
        cells = self._cells
        bucket = bisect_left(TASK_BUCKETS, min(many))
        if bucket == bisect_left(TASK_BUCKETS, max(many)):
            cells[place + bucket] += len(many)
        else:
            for seconds in many:
                cells[place + bisect_left(TASK_BUCKETS, seconds)] += 1.0
        cells[place + _TASK_SUM] += sum(many)

    # ------------------------------------------------------------------------ producers

    def on_enqueued(self, e: Enqueue) -> None:
        """Count a new task. A repeating schedule is not one: each of its firings is."""
        if e.kind != "cron":
            self._add(self._row(e.task, e.priority), names.TASKS_ENQUEUED, e.kind)

    def on_cron(self, e: Cron) -> None:
        """Count a firing as a task enqueued, and how late it was."""
        if e.fired_ms:
            row = self._row(e.task, e.priority)
            self._add(row, names.TASKS_ENQUEUED, "cron")
            self._observe(row.place(names.SCHEDULE_LAG), e.lag_s)

    def on_due(self, e: Due) -> None:
        """Observe how late a scheduled task was moved to its queue."""
        self._observe(self._row(e.task, e.priority).place(names.SCHEDULE_LAG), e.lag_s)

    # -------------------------------------------------------------------------- attempts

    def is_quiet(self) -> bool:
        """Exemplars are all that this wants of single attempts, and only traced ones have any."""
        return True

    def on_starts(self, e: Starts) -> None:
        """Count attempts, and observe how long they waited."""
        row = self._lanes.get(e.lane) or self._lane(e.lane)
        cells, many = self._cells, len(e.waits_s)
        cells[row.started] += many
        cells[row.running] += many
        self._observe_all(row.wait, e.waits_s)

    def on_successes(self, e: Successes) -> None:
        """Count tasks that succeeded by being run."""
        row = self._lanes.get(e.lane) or self._lane(e.lane)
        cells, many = self._cells, len(e.durations_s)
        finished, durations = row.success
        cells[row.running] -= many
        cells[finished] += many
        self._observe_all(durations, e.durations_s)
        self._observe_all(row.to_end, e.totals_s)

    def _lane(self, lane: Lane) -> Row:
        row = self._lanes[lane] = self._row(lane.task, lane.priority)
        return row

    def _end(self, e: Ending, status: str, outcome: str = "") -> Row:
        """Count the end of an attempt, if it ran, and (with an outcome) of its task."""
        a = e.attempt
        row = self._row(a.task, a.priority)
        if a.started_ms:
            self._cells[row.running] -= 1.0
            place = row.place(names.TASK_DURATION, status)
            self._observe(place, e.duration_s)
            self._note(names.TASK_DURATION, place, e.duration_s, e)
            self._note(names.TASK_QUEUE_WAIT, row.wait, a.wait_ms / 1000, e)
        if outcome:
            self._add(row, names.TASKS_FINISHED, outcome)
            if a.started_ms:
                seconds = to_end_s(e)
                self._observe(row.to_end, seconds)
                self._note(names.TASK_END_TO_END, row.to_end, seconds, e)
        return row

    def _note(self, metric: Metric, place: int, seconds: float, e: Ending) -> None:
        """Keep the attempt's trace as the exemplar of the bucket, now and then."""
        trace = e.attempt.mark.trace
        if not trace:
            return
        bucket = bisect_left(TASK_BUCKETS, seconds)
        cell = place + bucket
        if e.finished_ms < self._next_exemplar_ms.get(cell, 0):
            return
        if is_sampled(trace):
            self._next_exemplar_ms[cell] = e.finished_ms + EXEMPLAR_EVERY_MS
            self._store.note(metric, place, bucket, ids(trace)[0], seconds)

    def on_finish(self, e: Ending) -> None:
        """Note whose trace it was; or count a task that was skipped, and has had no attempt."""
        a = e.attempt
        if not a.started_ms:
            self._end(e, "success", "success")
        elif a.mark.trace:
            row = self._row(a.task, a.priority)
            self._note(names.TASK_DURATION, row.success[1], e.duration_s, e)
            self._note(names.TASK_QUEUE_WAIT, row.wait, a.wait_ms / 1000, e)
            self._note(names.TASK_END_TO_END, row.to_end, to_end_s(e), e)

    def on_fail(self, e: Ending) -> None:
        """Count a task that failed for good, and its exception."""
        row = self._end(e, "failed", "failed")
        self._add(row, names.TASKS_FAILED, self._exception_of(e))

    def on_retry(self, e: Ending) -> None:
        """Count an attempt that will be followed by another."""
        self._add(self._end(e, "retried"), names.TASKS_RETRIED, e.reason)

    def on_abort(self, e: Ending) -> None:
        """Count an aborted task, whether it ran or not."""
        self._end(e, "aborted", "aborted")

    def on_return(self, e: Ending) -> None:
        """An attempt handed back at shutdown runs no more; the task lives on."""
        self._end(e, "returned")

    def on_refuse(self, e: Ending) -> None:
        """Count a task that ended without its body being run."""
        row = self._row(e.attempt.task, e.attempt.priority)
        if e.attempt.started_ms:  # its arguments could not be decoded
            self._cells[row.running] -= 1.0
        expired = e.reason == "expired"
        self._add(row, names.TASKS_REFUSED, e.reason)
        self._add(row, names.TASKS_FINISHED, "expired" if expired else "failed")
        if not expired:
            self._add(row, names.TASKS_FAILED, self._exception_of(e))

    def on_fenced(self, e: Fence) -> None:
        """Count an attempt whose end did not count."""
        a = e.ending.attempt
        # Of neither is it known how long it takes: its arguments could not be decoded, or it was
        # stopped because another worker has it.
        if e.ending.status in {"refused", "lost"}:
            row = self._row(a.task, a.priority)
            self._cells[row.running] -= 1.0
        else:
            row = self._end(e.ending, e.ending.status)
        self._add(row, names.TASKS_FENCED)

    def on_reclaim(self, e: Reclaim) -> None:
        """Count an attempt taken over from a lost worker."""
        self._add(self._row(e.attempt.task, e.attempt.priority), names.TASKS_RECLAIMED)

    def _exception_of(self, e: Ending) -> str:
        return self._exception_name(type(e.error).__name__ if e.error is not None else e.reason)

    # --------------------------------------------------------------------- worker, Redis

    def on_worker_start(self, e: WorkerEvent) -> None:
        """Say how much the worker can do at once."""
        if not self._concurrency:
            self._concurrency = self._store.allocate(names.WORKER_CONCURRENCY, (self._queue,))
            # Shown as the worker's health has them at the scrape (see ``blocks_of``). One that only
            # enqueues has none, though it may share its store with one that runs.
            self._store.allocate(names.WORKER_OLDEST_RUNNING, (self._queue,))
            self._store.allocate(names.EVENT_LOOP_LAG, (self._queue,))
        self._cells[self._concurrency] = e.concurrency

    def on_worker_stop(self, e: WorkerEvent) -> None:
        """A stopped worker can do nothing, and runs nothing: what it gave up is not told."""
        self._cells[self._concurrency] = 0
        for row in self._rows.values():
            self._cells[row.running] = 0

    def on_redis_call(self, e: RedisCall) -> None:
        """Observe one call to Redis."""
        places = self._operations.get(e.operation) or self._operation(e.operation)
        cells = self._cells
        cells[places[0] + bisect_left(REDIS_BUCKETS, e.duration_s)] += 1.0
        cells[places[0] + _REDIS_SUM] += e.duration_s
        if e.error:
            cells[places[1]] += 1.0

    def _operation(self, name: str) -> tuple[int, int]:
        store = self._store
        places = (
            store.allocate(names.REDIS_CALL_DURATION, (name,)),
            store.allocate(names.REDIS_ERRORS, (name,)),
        )
        self._operations[name] = places
        return places
