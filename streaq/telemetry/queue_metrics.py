"""The metrics of a whole queue, read from Redis by one script call per scrape at most.

The reader asks the broker for a snapshot from the thread that serves, keeps it for a second, and
knows since when it had none: ``/livez`` asks for that too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from streaq.broker.inspect import CronSnapshot, QueueSnapshot
from streaq.telemetry import names
from streaq.telemetry.cells import Block
from streaq.telemetry.names import Metric

logger = logging.getLogger("streaq")

CACHE_S = 1.0
"""Seconds for which a snapshot is used again."""
PATIENCE_S = 0.5
"""Seconds for which a question waits for Redis: a probe has to be answered within one."""


SnapshotSource: TypeAlias = Callable[[], QueueSnapshot]
"""Reads one queue: blocking, from any thread, within a few seconds or with an exception."""


class _Question:
    """What Redis was asked, and has not answered yet."""

    def __init__(self, asked_at: float) -> None:
        self.asked_at = asked_at
        self.answered = threading.Event()


class QueueReader:
    """Snapshots of one queue, at most one a second, shared by everybody who asks.

    :param source: reads the queue; called in a thread of its own, never twice at a time.
    :param cache_s: seconds for which an answer (or a failure) is kept.
    :param patience_s: seconds for which a question may wait for its answer. Whoever asks while it
        is overdue waits no more: a probe reads more than once.

    Example::

        reader = QueueReader(worker_snapshot)
        for block in reader.blocks():
            print(block.metric.name, block.labels, block.values)
    """

    def __init__(
        self,
        source: SnapshotSource,
        cache_s: float = CACHE_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._cache_s = cache_s
        self._patience_s = patience_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: QueueSnapshot | None = None
        self._answered_at: float | None = None
        self._asking: _Question | None = None
        self._failing_since: float | None = None

    def read(self) -> QueueSnapshot | None:
        """The queue as it was a second ago at most; None while it cannot be read, or is not read
        soon enough.
        """
        with self._lock:
            now, answered_at = self._clock(), self._answered_at
            if answered_at is not None and now - answered_at < self._cache_s:
                return self._seen
            question = self._asking
            if question is None:
                question = self._asking = _Question(now)
                threading.Thread(
                    target=self._ask, args=(question,), name="streaq-queue", daemon=True
                ).start()
        left_s = question.asked_at + self._patience_s - self._clock()
        if not question.answered.wait(max(0.0, left_s)):
            with self._lock:
                if self._asking is question:
                    self._fail(question, "no answer yet")
                return None
        return self._seen

    def due_age_s(self, priorities: Iterable[str] | None = None) -> float | None:
        """Seconds for which the oldest waiting task is due; None when nothing waits, or unknown.

        :param priorities: look at these only; all by default.
        """
        snapshot = self.read()
        if snapshot is None:
            return None
        wanted = None if priorities is None else set(priorities)
        oldest = [
            p.oldest_due_ms
            for p in snapshot.priorities
            if p.oldest_due_ms is not None and (wanted is None or p.priority in wanted)
        ]
        return max(0.0, (snapshot.now_ms - min(oldest)) / 1000) if oldest else None

    def failing_s(self) -> float:
        """Seconds since the queue could last be read; 0 when it can."""
        self.read()
        since = self._failing_since
        return 0.0 if since is None else self._clock() - since

    def blocks(self) -> Iterator[Block]:
        """The queue's metrics; none while it cannot be read."""
        snapshot = self.read()
        if snapshot is not None:
            yield from _queue_blocks(snapshot)
            yield from _cron_blocks(snapshot)

    def _ask(self, question: _Question) -> None:
        snapshot, problem = None, ""
        try:
            snapshot = self._source()
        except Exception as e:  # noqa: BLE001 - whatever the reason, the scrape goes on without
            # The class alone: some errors quote the address with its password.
            problem = type(e).__name__
        with self._lock:
            if problem:
                self._fail(question, problem)
            else:
                self._failing_since = None
            self._seen, self._answered_at, self._asking = snapshot, self._clock(), None
        question.answered.set()

    def _fail(self, question: _Question, problem: str) -> None:
        if self._failing_since is None:
            self._failing_since = question.asked_at
            logger.warning("the queue's metrics cannot be read: %s", problem)


def _queue_blocks(snapshot: QueueSnapshot) -> Iterator[Block]:
    queue = snapshot.queue
    yield _block(names.QUEUE_WORKERS, (queue,), len(snapshot.workers))
    for p in snapshot.priorities:
        labels = (queue, p.priority)
        yield _block(names.QUEUE_DEPTH, labels, p.depth)
        yield _block(names.QUEUE_SCHEDULED, labels, p.scheduled)
        yield _block(names.QUEUE_BLOCKED, labels, p.blocked)
        yield _block(names.QUEUE_RUNNING, labels, p.running)
        yield _block(names.QUEUE_ENQUEUED, labels, p.enqueued)
        for status, count in p.finished.items():
            yield _block(names.QUEUE_FINISHED, (*labels, status), count)
        if p.oldest_due_ms is not None:
            yield _block(names.QUEUE_OLDEST_DUE, labels, p.oldest_due_ms / 1000)


def _cron_blocks(snapshot: QueueSnapshot) -> Iterator[Block]:
    for cron in snapshot.crons:
        if _is_deleted(cron, snapshot):
            continue
        labels = (snapshot.queue, cron.name)
        yield _block(names.CRON_MISSED, labels, cron.missed)
        if cron.last_success_ms is not None:
            yield _block(names.CRON_LAST_SUCCESS, labels, cron.last_success_ms / 1000)
        if cron.next_ms is not None:
            yield _block(names.CRON_NEXT_RUN, labels, cron.next_ms / 1000)


def _is_deleted(cron: CronSnapshot, snapshot: QueueSnapshot) -> bool:
    """Whether no worker has the job in its code any more. Redis remembers it for a week, and would
    have somebody woken up because it is not fired. Without a worker, nobody can tell.
    """
    return bool(snapshot.workers) and not any(
        cron.name in worker.get("crons", (cron.name,)) for worker in snapshot.workers
    )


def _block(metric: Metric, labels: tuple[str, ...], value: float) -> Block:
    return Block(metric, labels, (float(value),), {})
