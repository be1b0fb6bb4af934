"""What users test their own tasks with: sandbox, drain and RecordingHook."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
import redis

from streaq import Hook, StreaqError, StreaqRetry, TaskStatus, Worker
from streaq.broker.embedded import start_embedded
from streaq.broker.exchange import Reserved
from streaq.broker.link import Broker
from streaq.hooks import SLOTS, Ending
from streaq.testing import RecordingHook, drain, sandbox
from tests.support import MakeWorker, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, int]]:
    lives.append(1)
    yield {"price": 5}


lives: list[int] = []
# As it stands in somebody's module: a worker for a server that tests must not touch.
worker = Worker("redis://localhost:1", queue_name="shop", lifespan=lifespan)


@worker.task
async def charge(order: int) -> int:
    return order * worker.context["price"]


@worker.task
async def receipt(amount: int) -> str:
    return f"{amount} EUR"


@worker.task
async def flaky() -> int:
    if flaky.context.tries < 3:
        raise StreaqRetry("not yet")
    return flaky.context.tries


@worker.task
async def broken() -> None:
    raise ValueError("Oh no!")


@worker.task(timeout=10)
async def hangs() -> None:
    await anyio.sleep_forever()


@worker.cron("0 0 1 1 *")
async def yearly() -> None: ...


async def test_the_example() -> None:
    hook = RecordingHook()
    async with sandbox(worker, hooks=[hook]):
        task = await (charge.enqueue(42) | receipt)
        await drain(worker)
        assert (await task.result()).result == "210 EUR"
    assert hook.names("on_finish") == ["charge", "receipt"]


async def test_sandboxes_are_empty_apart_and_gone_afterwards() -> None:
    before = dict(vars(worker))
    client = redis.Redis.from_url(start_embedded("embedded://"))
    queues: list[str] = []
    for _ in range(2):
        async with sandbox(worker) as lent:
            assert lent is worker
            assert await worker.queue_size() == 0
            await charge.enqueue(1)
            await charge.enqueue(2).start(delay=60)
            await charge.enqueue(3).start(schedule="@hourly")
            queues.append(worker.queue_name)
            assert client.keys(f"streaq:{{{worker.queue_name}*")
    assert len(set(queues)) == 2
    assert all(name.startswith("shop-test-") for name in queues)
    assert client.keys("streaq:{shop-test-*") == []
    assert vars(worker) == before
    with pytest.raises(StreaqError, match="async with worker"):
        await worker.queue_size()
    client.close()


async def test_a_worker_in_use_is_not_lent(make_worker: MakeWorker) -> None:
    busy = make_worker()
    async with busy:
        with pytest.raises(StreaqError, match="in use"):
            async with sandbox(busy):
                pass
        assert await busy.queue_size() == 0
    async with sandbox(worker):
        with pytest.raises(StreaqError, match="in use"):
            async with sandbox(worker):
                pass


async def test_a_sandbox_that_cannot_be_opened_leaves_the_worker_as_it_was() -> None:
    before = dict(vars(worker))
    with pytest.raises(StreaqError, match="localhost:2"):
        async with sandbox(worker, redis_url="redis://localhost:2"):
            pass
    assert vars(worker) == before


async def test_drain_runs_what_is_due_and_what_follows() -> None:
    async with sandbox(worker):
        await drain(worker)  # nothing is there
        due = await charge.enqueue(1).start(delay=0.001)
        follows = await receipt.enqueue(1).start(after=due.id)
        later = await charge.enqueue(2).start(delay=60)
        waits = await receipt.enqueue(2).start(after=later.id)
        failed = await broken.enqueue()
        anyway = await receipt.enqueue(3).start(priority="low")
        await anyio.sleep(0.005)
        await drain(worker, timeout=timedelta(seconds=30))
        assert (await follows.result(0.5)).result == "1 EUR"
        assert (await anyway.result(0.5)).success
        assert str((await failed.result(0.5)).exception) == "Oh no!"
        assert await later.status() is TaskStatus.SCHEDULED
        assert await waits.status() is TaskStatus.SCHEDULED
        await drain(worker, skip_delays=True)
        assert (await waits.result(0.5)).result == "2 EUR"
        assert worker.counters == {"completed": 5, "failed": 1}


async def test_retries_without_waiting() -> None:
    hook = RecordingHook()
    lives.clear()
    async with sandbox(worker, hooks=[hook]):
        task = await flaky.enqueue()
        await drain(worker)
        info = await task.info()
        assert info is not None
        assert (info.status, info.tries) == (TaskStatus.SCHEDULED, 1)
        await drain(worker, skip_delays=True)
        assert (await task.result(0.5)).result == 3
    # What is due later is made due while the worker runs, not by starting it again and again.
    assert len(lives) == 2
    assert [e.retry_due_ms - e.finished_ms for e in hook.of("on_retry")] == [1000, 4000]


async def test_a_retry_that_the_reader_claims_is_not_the_end_of_a_drain() -> None:
    """What the last attempt put off is looked for again before the queue counts as empty."""
    async with sandbox(worker):
        for _ in range(10):
            task = await flaky.enqueue()
            await drain(worker, skip_delays=True)
            assert (await task.result(0.5)).result == 3


async def test_a_retry_whose_reading_is_slow_is_not_the_end_of_a_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis has given the message to a read, so that it is in no queue, and the worker has not
    heard of it yet.
    """
    late: list[int] = []

    async def read(self: Broker, consumer: str, priorities: Sequence[str]) -> list[Reserved]:
        found = await promptly(self, consumer, priorities)
        late.append(len(found))
        await anyio.sleep(0.05)
        return found

    promptly = Broker.read
    monkeypatch.setattr(Broker, "read", read)
    async with sandbox(worker):
        for _ in range(5):
            task = await flaky.enqueue()
            await drain(worker, skip_delays=True)
            assert await task.status() is TaskStatus.DONE
    assert sum(late) > 0


async def test_repeating_schedules_and_cron_jobs_do_not_keep_it_from_ending() -> None:
    hook = RecordingHook()
    async with sandbox(worker, hooks=[hook]):
        task = await charge.enqueue(1).start(schedule="@yearly")
        await drain(worker, skip_delays=True)
        assert await task.status() is TaskStatus.SCHEDULED
    assert hook.of("on_start") == []
    assert [e.task for e in hook.of("on_cron")] == ["yearly"]


async def test_a_timeout_hands_back_what_runs() -> None:
    hook = RecordingHook()
    async with sandbox(worker, hooks=[hook]):
        task = await hangs.enqueue()
        with pytest.raises(TimeoutError):
            await drain(worker, timeout=0.1)
        assert await task.status() is TaskStatus.QUEUED
    assert [e.reason for e in hook.of("on_return")] == ["shutdown"]


async def test_telemetry_and_hooks_of_ones_own() -> None:
    mine = RecordingHook()
    other = Worker("redis://localhost:1", telemetry=True, hooks=[mine])

    @other.task(name="echo")
    async def echo() -> None: ...

    theirs = RecordingHook()
    async with sandbox(other, hooks=[theirs]):
        assert other.telemetry is False
        await echo.enqueue()
        await drain(other)
    assert other.telemetry is True
    assert other.extra_hooks == [mine]
    assert mine.names("on_finish") == theirs.names("on_finish") == ["echo"]


# ------------------------------------------------------------------------ RecordingHook


def test_the_hook_records_every_event() -> None:
    hook = RecordingHook()
    for name in SLOTS:
        method: Any = getattr(hook, name)
        assert getattr(RecordingHook, name) is not getattr(Hook, name)
        if name.startswith("around_"):
            with method(name):
                assert hook.recorded[-1] == (name, name)
        else:
            method(name)
    assert [recorded.hook for recorded in hook.recorded] == list(SLOTS)
    assert hook.of("on_retry") == ["on_retry"]
    hook.clear()
    assert hook.recorded == []


async def test_names_of_tasks() -> None:
    hook = RecordingHook()
    async with sandbox(worker, hooks=[hook]):
        await charge.enqueue(1)
        await drain(worker)
        await until(lambda: bool(hook.of("on_worker_stop")))
    for kind in ("on_enqueue", "on_enqueued", "on_start", "around_attempt", "on_finish"):
        assert hook.names(kind) == ["charge"]
    (ending,) = hook.of("on_finish")
    assert isinstance(ending, Ending)
    with pytest.raises(ValueError, match="no method 'on_nothing'; they have"):
        hook.of("on_nothing")
    for about_no_task in ("on_worker_start", "on_redis_call"):
        with pytest.raises(ValueError, match="is not about one task"):
            hook.names(about_no_task)
