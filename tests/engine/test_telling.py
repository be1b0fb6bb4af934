"""Hooks are told late, once the next exchange is under way; but all is told, and in an order that
makes sense.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streaq.broker.exchange import SETTLED
from streaq.engine.attempt import Finished
from streaq.engine.ledger import Ledger
from streaq.engine.outcome import Succeeded
from streaq.hooks import Attempt, Dispatcher, Ending, Hook, WorkerEvent
from tests.support import MakeWorker, running, until
from tests.telemetry.events import attempt, ending

pytestmark = pytest.mark.anyio

COUNT = 600
ENDS = ("completed", "failed", "retried", "aborted", "relinquished", "fenced")


class Log(Hook):
    """Counts, and keeps what it needs to know of the order."""

    def __init__(self) -> None:
        self.started = self.running = self.most = 0
        self.ended: Counter[str] = Counter()
        self.last = ""
        self.whole = True

    def on_start(self, e: Attempt) -> None:
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.last = "start"
        self.whole &= len(e) == len(Attempt._fields)

    def _end(self, e: Ending) -> None:
        self.running -= 1
        self.ended[e.status] += 1
        self.last = e.status
        self.whole &= len(e) == len(Ending._fields)

    on_finish = on_fail = on_retry = on_abort = on_return = _end

    def on_worker_stop(self, e: WorkerEvent) -> None:
        self.last = "stop"


@pytest.mark.parametrize("concurrency", [1, 4, 32])
async def test_an_end_is_told_before_the_next_start_in_its_slot(
    make_worker: MakeWorker, concurrency: int
) -> None:
    """Else more would seem to run than the worker has room for."""
    log = Log()
    worker = make_worker(hooks=[log], concurrency=concurrency)

    @worker.task(name="t")
    async def t(x: int) -> None:
        if x % 3 == 0:
            await anyio.lowlevel.checkpoint()

    async with worker:
        await worker.enqueue_many([t.enqueue(i) for i in range(COUNT)])
        async with running(worker):
            await until(lambda: log.ended["success"] == COUNT, 20)
    assert log.most <= concurrency
    assert log.whole, "events are made without their constructor: every field is there"


@pytest.mark.parametrize("after", [1, 50, 130, 300])
async def test_all_is_told_before_a_worker_says_that_it_stopped(
    make_worker: MakeWorker, after: int
) -> None:
    """Whatever the pump was in the middle of when it was cancelled."""
    log = Log()
    worker = make_worker(hooks=[log], concurrency=16)

    @worker.task(name="t")
    async def t(x: int) -> None:
        await anyio.sleep(0.001 * (x % 3))

    async with worker:
        await worker.enqueue_many([t.enqueue(i) for i in range(COUNT)])
        async with running(worker):
            await until(lambda: worker.counters.get("completed", 0) >= after, 20)
        assert log.last == "stop"
        assert log.running == 0, "every start has its end"
        assert log.ended["success"] == worker.counters["completed"]
        assert log.ended["returned"] == worker.counters.get("relinquished", 0)
        assert log.ended.total() == sum(worker.counters.get(name, 0) for name in ENDS)
        async with running(worker):  # the rest, so that nothing is left behind
            await until(lambda: log.ended["success"] == COUNT, 20)


def test_what_cannot_be_told_takes_nothing_else_along() -> None:
    told: list[Any] = []

    class Worse(Hook):
        def on_finish(self, e: Ending) -> None:
            told.append(e)
            if len(told) == 1:
                raise KeyboardInterrupt  # not an Exception: no guard stops it

    ledger = Ledger({}, Dispatcher([Worse()]), "q", "w")
    lease: Any = SimpleNamespace(lane=None)
    ends = [ending(attempt(task_id=str(number))) for number in range(3)]
    finished = [Finished(lease, None, Succeeded(None, b""), end, 0.0) for end in ends]
    ledger.settled(finished, [SETTLED] * 3)
    with pytest.raises(KeyboardInterrupt):
        ledger.tell()
    assert ledger.has_news
    ledger.tell()
    assert [e.attempt.task_id for e in told] == ["0", "1", "2"]
