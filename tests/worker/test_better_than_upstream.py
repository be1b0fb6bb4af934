"""Defects seen in peers, one test each that this queue does not have them."""

from __future__ import annotations

import signal
import time
from typing import Any

import anyio
import pytest
import redis

from streaq import StreaqError, StreaqRetry, TaskStatus, Worker
from streaq.broker.keys import STAY, Keys
from streaq.testing import RecordingHook
from tests.conftest import unexpected_keys
from tests.servers import Server
from tests.support import MakeWorker, running, until
from tests.worker.processes import next_line, worker_process

pytestmark = pytest.mark.anyio


async def test_unschedule_answers_true_when_it_unscheduled(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def step() -> None: ...

    async with worker:
        task = await step.enqueue().start(schedule="*/5 * * * *")
        assert await task.unschedule() is True
        assert await task.unschedule() is False
        assert await worker.queue_size() == 0


async def test_a_prefetch_of_0_means_none(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker(concurrency=1, prefetch=0)
    started, go = anyio.Event(), anyio.Event()

    @worker.task
    async def waits() -> None:
        started.set()
        await go.wait()

    async with worker:
        tasks = [waits.enqueue() for _ in range(5)]
        await worker.enqueue_many(tasks)
        async with running(worker):
            await started.wait()
            await anyio.wait_all_tasks_blocked()
            held = redis_client.xpending(f"{Keys(queue).base}stream:normal", "workers")
            assert held["pending"] == 1
            go.set()
            for task in tasks:
                assert (await task.result(3)).success


def test_the_callers_list_of_priorities_is_never_changed(make_worker: MakeWorker) -> None:
    priorities = ["low", "high"]
    workers = [make_worker(priorities=priorities) for _ in range(2)]
    assert priorities == ["low", "high"]
    assert [worker.priorities for worker in workers] == [["high", "low"]] * 2
    # Nor does changing it later change the worker.
    priorities.append("highest")
    assert workers[0].priorities == ["high", "low"]


async def test_handle_signals_false_is_honoured(
    make_worker: MakeWorker, redis_url: str, queue: str
) -> None:
    worker = make_worker(handle_signals=False)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    @worker.task
    async def step() -> None: ...

    async with running(worker):
        await (await step.enqueue()).result(3)
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_without_handlers_a_signal_does_what_it_does(
    make_worker: MakeWorker, redis_url: str, queue: str
) -> None:
    async with make_worker() as producer:
        task = await producer.enqueue_unsafe("slow", 60)
        with worker_process(redis_url, queue, handle_signals=False, idle_timeout=0.2) as process:
            assert next_line(process) == "started"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == -signal.SIGTERM
        # It died holding the task; a live worker takes that over and finds it aborted.
        assert not await task.abort(timeout=0)
        async with running(make_worker(idle_timeout=0.2)):
            assert not (await task.result(5)).success


async def test_info_of_a_queued_task_says_queued(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def step() -> None: ...

    async with worker:
        task = await step.enqueue()
        info = await task.info()
        assert info is not None
        assert info.status is TaskStatus.QUEUED
        assert await task.abort()


async def test_when_tries_run_out_the_last_real_error_is_kept(make_worker: MakeWorker) -> None:
    """With the tries told in its notes; at once, and not after one more backoff."""
    worker = make_worker()

    @worker.task
    async def caused() -> None:
        last = caused.context.tries == 3
        try:
            raise ConnectionError(f"try {caused.context.tries}")  # noqa: TRY301
        except ConnectionError as e:
            # By default the last of them would be delayed by 9 s.
            raise StreaqRetry("not reachable", delay=None if last else 0) from e

    @worker.task(max_tries=2)
    async def implicit() -> None:
        try:
            raise KeyError("lost")  # noqa: TRY301
        except KeyError:
            raise StreaqRetry("again", delay=0)  # noqa: B904 - without a cause, on purpose

    @worker.task(max_tries=1)
    async def bare() -> None:
        raise StreaqRetry("just because")

    async with running(worker):
        began = time.monotonic()
        result = await (await caused.enqueue()).result(3)
        assert time.monotonic() - began < 3
        assert isinstance(result.exception, ConnectionError)
        assert str(result.exception) == "try 3"
        assert result.exception.__notes__ == ["streaq gave up after 3 of 3 tries."]
        assert result.tries == 3
        result = await (await implicit.enqueue()).result(3)
        assert isinstance(result.exception, KeyError)
        result = await (await bare.enqueue()).result(3)
        assert isinstance(result.exception, StreaqRetry)
        assert result.exception.__notes__ == ["streaq gave up after 1 of 1 tries."]


async def test_a_pipeline_whose_input_is_gone_fails_with_a_clear_error(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker()
    ran: list[Any] = []

    @worker.task(ttl=0)
    async def unkept() -> int:
        return 1

    @worker.task
    async def kept() -> int:
        return 2

    @worker.task
    async def double(val: int) -> int:
        ran.append(val)
        return val * 2

    async with running(worker):
        # Passed on within the pipeline, though it is not kept.
        assert (await (await (unkept.enqueue() | double)).result(3)).result == 2
        first = await kept.enqueue()
        await first.result(3)
        redis_client.delete(Keys(queue).result(first.id))  # as when its ttl has run out
        for late in (first.then(double), first.then(double).then(double)):
            result = await (await late).result(3)
            assert isinstance(result.exception, StreaqError)
            source = late.previous
            assert source is not None
            if source is first:
                assert first.id in str(result.exception)
                assert "its result has expired" in str(result.exception)
        # Nor was the first run once more because somebody joined it late.
        assert await first.status() is TaskStatus.NOT_FOUND
    assert ran == [1]


async def test_a_worker_that_loses_redis_reconnects_for_as_long_as_it_takes() -> None:
    hook = RecordingHook()
    with Server(aof=True) as server:
        worker = Worker(
            server.url, telemetry=False, handle_signals=False, hooks=[hook], queue_name="lost"
        )
        started, go = anyio.Event(), anyio.Event()

        @worker.task
        async def waits(val: int) -> int:
            started.set()
            await go.wait()
            return val

        @worker.task
        async def double(val: int) -> int:
            return val * 2

        async with running(worker):
            # One task runs through the outage, one waits for it, one is due meanwhile.
            pipeline = await (waits.enqueue(1) | double)
            due = await double.enqueue(5).start(delay=0.05)
            await started.wait()
            server.kill()
            await until(lambda: bool(hook.of("on_redis_lost")))
            go.set()
            failures = len(hook.of("on_redis_call"))
            await until(lambda: len(hook.of("on_redis_call")) > failures + 3, 10)
            server.start()
            assert (await pipeline.result(10)).result == 2
            assert (await due.result(10)).result == 10
            assert (await (await double.enqueue(7)).result(10)).result == 14
            await until(lambda: bool(hook.of("on_redis_restored")))
        assert worker.counters == {"completed": 4}
        with server.client() as client:
            assert unexpected_keys(client, "lost", STAY) == []


async def test_a_cron_job_deleted_from_the_code_stops_firing(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = RecordingHook()
    worker = make_worker(hooks=[hook])

    @worker.cron("0 * * * *", name="new")
    async def new() -> None: ...

    # Both have missed firings, and "old" is not in the code any more.
    base = Keys(queue).base
    for name in ("old", "new"):
        key = f"{base}cron:{name}"
        redis_client.hset(key, mapping={"tab": "0 * * * * UTC", "last": 1, "next": 2})
        redis_client.expire(key, 60)
        redis_client.zadd(f"{base}crons", {name: time.time() * 1000 - 1000})
    async with running(worker):
        await until(lambda: "new" in hook.names("on_finish"))
        assert await worker.queue_size() == 0
    assert set(hook.names("on_start")) == {"new"}
    assert {e.task for e in hook.of("on_cron")} == {"new"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_dead_workers_name_and_keys_go(
    make_worker: MakeWorker, redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    stream = f"{Keys(queue).base}stream:normal"

    def consumers() -> set[str]:
        return {raw["name"].decode() for raw in redis_client.xinfo_consumers(stream, "workers")}

    def keys() -> set[str]:
        found = redis_client.scan_iter(f"{Keys(queue).base}*")
        return {key.decode().removeprefix(Keys(queue).base).partition(":")[0] for key in found}

    heir = make_worker(idle_timeout=0.2, id="heir")

    @heir.task(name="slow")
    async def slow(seconds: float) -> str:
        return "by the heir"

    async with heir:
        task = await slow.enqueue(60)
        with worker_process(redis_url, queue, idle_timeout=0.2, id="dead") as process:
            assert next_line(process) == "started"
            process.kill()
            assert process.wait(10) == -signal.SIGKILL
        (dead,) = consumers()  # its name, and what tells its run from others
        assert dead.startswith("dead:")
        async with running(heir):
            result = await task.result(10)
            assert (result.result, result.tries) == ("by the heir", 2)
            await until(lambda: dead not in consumers())
            assert redis_client.zscore(f"{Keys(queue).base}workers", dead) is None
            await until(lambda: not redis_client.exists(f"{Keys(queue).base}worker:{dead}"))
    assert consumers() <= {"-"}
    # Besides what has a TTL (results, the registries, the list of workers) only streams stay.
    assert "task" not in keys()
    assert unexpected_keys(redis_client, queue, STAY) == []
