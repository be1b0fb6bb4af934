"""The ledger of attempts: what is kept of a task, live and ended."""

from __future__ import annotations

import json

import anyio
import pytest

from streaq import StreaqRetry
from streaq.broker.inspect import Seen
from streaq.history import history_of_live
from tests.support import MakeWorker, cut_short, running

pytestmark = pytest.mark.anyio


async def test_every_attempt_is_told(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task(max_tries=3, name="flaky")
    async def flaky() -> None:
        raise StreaqRetry(f"number {flaky.context.tries}", delay=0)

    async with worker, running(worker):
        task = await flaky.enqueue().start(priority="high")
        await task.result(5)
        history = await worker.history_by_id(task.id)
    assert history is not None
    assert (history.fn_name, history.priority, history.state) == ("flaky", "high", "done")
    assert (history.outcome, history.tries) == ("failed", 3)
    assert [a.number for a in history.attempts] == [1, 2, 3]
    assert [a.outcome for a in history.attempts] == ["retried", "retried", "failed"]
    assert "number 1" in history.attempts[0].error
    assert "number 3" in history.error
    assert {a.worker_id for a in history.attempts} == {worker.id}
    times = [(a.began_ms, a.ended_ms or 0) for a in history.attempts]
    flat = [history.created_ms, *(ms for pair in times for ms in pair)]
    assert flat == sorted(flat)
    assert history.finished_ms == times[-1][1]


async def test_a_running_and_a_waiting_task(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=1)
    holding, release = anyio.Event(), anyio.Event()

    @worker.task
    async def hold() -> None:
        holding.set()
        await release.wait()

    async with worker, running(worker):
        first = await hold.enqueue()
        later = await hold.enqueue().start(delay=60)
        after = await hold.enqueue().start(after=later.id)
        again = await hold.enqueue().start(schedule="0 0 1 1 *")
        await holding.wait()
        history = await worker.history_by_id(first.id)
        assert history is not None
        assert (history.state, history.outcome, history.tries) == ("running", "", 1)
        (attempt,) = history.attempts
        assert (attempt.outcome, attempt.ended_ms) == ("running", None)
        scheduled = await worker.history_by_id(later.id)
        assert scheduled is not None
        assert scheduled.state == "scheduled"
        assert scheduled.due_ms - scheduled.created_ms == 60_000
        blocked = await worker.history_by_id(after.id)
        assert blocked is not None
        assert blocked.state == "blocked"
        repeating = await worker.history_by_id(again.id)
        assert repeating is not None
        assert repeating.crontab == "0 0 1 1 *"
        assert await worker.history_by_id("nothing") is None
        await later.abort()
        await again.unschedule()
        failed = await worker.history_by_id(after.id)
        assert failed is not None
        assert (failed.outcome, failed.reason, failed.attempts) == ("failed", "dependency", ())
        assert later.id in failed.error
        release.set()
        await first.result(5)


async def test_a_long_ledger_is_read_whole(make_worker: MakeWorker) -> None:
    """One that is longer than what a look at a task fetches of its record."""
    worker = make_worker()

    @worker.task(max_tries=25)
    async def flaky() -> None:
        raise StreaqRetry("x" * 2000, delay=0)

    async with worker, running(worker):
        task = await flaky.enqueue()
        await task.result(10)
        history = await worker.history_by_id(task.id)
    assert history is not None
    assert [a.number for a in history.attempts] == [*range(5, 25), 25]


def test_traces_lost_workers_and_abort_flags_are_told() -> None:
    entry = {
        "try": 1, "worker": "w1", "began": 5, "ended": 9, "outcome": "lost", "error": "",
        "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }  # fmt: skip
    fields = {
        "fn": b"f", "pri": b"low", "made": b"3", "due": b"4", "try": b"2", "who": b"w2",
        "began": b"10", "msg": b"4-0", "stop": b"1", "log": json.dumps(entry).encode(),
        "trace": b"00-11111111111111111111111111111111-b7ad6b7169203331-01",
    }  # fmt: skip
    history = history_of_live(Seen("t", "running", fields, set(), set(), None, b""))
    assert [a.outcome for a in history.attempts] == ["lost", "running"]
    assert history.attempts[0].trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert history.attempts[1].trace_id == "1" * 32
    assert [a.why for a in history.attempts] == ["", "lost"]
    assert history.abort_asked
    assert history.enqueued_ms == 4


async def test_why_an_attempt_was_started_again(make_worker: MakeWorker) -> None:
    """And what was behind it, when the task says so."""
    worker = make_worker()

    @worker.task(name="t", max_tries=4, timeout=0.05, retry_timeouts=True)
    async def t() -> None:
        if t.context.tries == 1:
            raise StreaqRetry("again", delay=0) from ValueError("db is down")
        if t.context.tries == 2:
            await anyio.sleep(30)

    async with worker, running(worker):
        task = await t.enqueue()
        await task.result(10)
        history = await worker.history_by_id(task.id)
    assert history is not None
    assert [(a.outcome, a.why) for a in history.attempts] == [
        ("retried", ""), ("retried", "asked"), ("success", "timeout"),
    ]  # fmt: skip
    assert history.attempts[0].error == "StreaqRetry: again (from ValueError: db is down)"
    assert history.attempts[1].error == "TimeoutError: The task timed out after 0.05 s."


async def test_an_attempt_after_a_shutdown_says_so(make_worker: MakeWorker) -> None:
    worker = make_worker()
    t, begun = cut_short(worker)
    async with worker:
        task = await t.enqueue()
        async with running(worker):
            await begun.wait()
        async with running(worker):
            await task.result(5)
        history = await worker.history_by_id(task.id)
    assert history is not None
    assert [(a.number, a.why) for a in history.attempts] == [(1, ""), (1, "returned")]
