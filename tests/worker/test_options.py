"""Each option of the task decorator: expire, tries, name, timeout, retry_timeouts, ttl, unique."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest
import redis

from streaq import StreaqError, StreaqRetry, TaskStatus
from streaq.broker.keys import Keys
from streaq.hooks import Ending, Hook
from tests.support import MakeWorker, running, until

pytestmark = pytest.mark.anyio


async def test_name(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task(name="bar")
    async def foo() -> str:
        return foo.context.fn_name

    async with running(worker):
        result = await (await foo.enqueue()).result(3)
        assert (result.fn_name, result.result) == ("bar", "bar")


async def test_expire_refuses_what_was_not_started_in_time(make_worker: MakeWorker) -> None:
    worker = make_worker()
    ran: list[int] = []

    @worker.task(expire=timedelta(milliseconds=30))
    async def soon(i: int) -> None:
        ran.append(i)

    async with worker:
        expired = await soon.enqueue(1)
        await anyio.sleep(0.06)
        async with running(worker):
            in_time = await soon.enqueue(2)
            assert (await in_time.result(3)).success
            result = await expired.result(3)
            assert isinstance(result.exception, StreaqError)
            assert "expired" in str(result.exception)
            assert result.tries == 0
            assert (result.start_time, result.worker_id) == (0, "")
    assert ran == [2]


async def test_expire_is_for_the_first_start_only(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task(expire=0.05)
    async def stubborn() -> int:
        if stubborn.context.tries < 2:
            raise StreaqRetry("again", delay=0.1)
        return stubborn.context.tries

    async with running(worker):
        assert (await (await stubborn.enqueue()).result(3)).result == 2


async def test_max_tries(make_worker: MakeWorker) -> None:
    worker = make_worker()
    tries: dict[str, int] = {"default": 0, "one": 0, "many": 0}

    def count(name: str) -> int:
        tries[name] += 1
        return tries[name]

    @worker.task
    async def default() -> None:
        raise StreaqRetry(f"try {count('default')}", delay=0)

    @worker.task(max_tries=1)
    async def one() -> None:
        raise StreaqRetry(f"try {count('one')}", delay=0)

    @worker.task(max_tries=None)
    async def many() -> int:
        if count("many") < 6:
            raise StreaqRetry("again", delay=0)
        return tries["many"]

    async with running(worker):
        failed = await (await default.enqueue()).result(3)
        assert (failed.success, failed.tries) == (False, 3)
        assert (await (await one.enqueue()).result(3)).tries == 1
        assert (await (await many.enqueue()).result(3)).result == 6
    assert tries == {"default": 3, "one": 1, "many": 6}


async def test_timeout(make_worker: MakeWorker) -> None:
    worker = make_worker()
    cancelled = anyio.Event()

    @worker.task(timeout=timedelta(milliseconds=30))
    async def slow() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    @worker.task(timeout=5)
    async def quick() -> str:
        return "done"

    @worker.task(timeout=5)
    async def raises() -> None:
        raise TimeoutError("my own")

    async with running(worker):
        result = await (await slow.enqueue()).result(3)
        assert isinstance(result.exception, TimeoutError)
        assert "0.03 s" in str(result.exception)
        assert result.tries == 1
        assert cancelled.is_set()
        assert (await (await quick.enqueue()).result(3)).result == "done"
        own = await (await raises.enqueue()).result(3)
        assert str(own.exception) == "my own"


class Delays(Hook):
    """The delays, in ms, that retries were given."""

    def __init__(self) -> None:
        self.delays: list[tuple[str, int]] = []
        self.seen = anyio.Event()

    def on_retry(self, e: Ending) -> None:
        self.delays.append((e.reason, e.retry_due_ms - e.finished_ms))
        self.seen.set()


async def test_timeouts_are_retried_if_asked_for(make_worker: MakeWorker) -> None:
    hook = Delays()
    worker = make_worker(hooks=[hook])

    @worker.task(timeout=0.02, retry_timeouts=True)
    async def slow() -> None:
        await anyio.sleep_forever()

    @worker.task(timeout=0.02, retry_timeouts=True, max_tries=1)
    async def last() -> None:
        await anyio.sleep_forever()

    async with running(worker):
        task = await slow.enqueue()
        with anyio.fail_after(3):
            await hook.seen.wait()
        assert hook.delays == [("timeout", 1000)]
        assert await task.status() is TaskStatus.SCHEDULED
        assert await task.abort()
        result = await (await last.enqueue()).result(3)
        assert isinstance(result.exception, TimeoutError)
        assert "gave up after 1" in result.exception.__notes__[0]


@pytest.mark.leaves("result:")
async def test_ttl(make_worker: MakeWorker, redis_client: redis.Redis, queue: str) -> None:
    worker = make_worker()
    keys = Keys(queue)

    @worker.task
    async def default() -> int:
        return 1

    @worker.task(ttl=timedelta(hours=1))
    async def hour() -> int:
        return 2

    @worker.task(ttl=None)
    async def forever() -> int:
        return 3

    async with running(worker):
        for task, low, high in ((default, 290, 300), (hour, 3590, 3600), (forever, -1, -1)):
            made = await task.enqueue()
            await made.result(3)
            assert low <= redis_client.ttl(keys.result(made.id)) <= high


@pytest.mark.parametrize("fails", [False, True])
async def test_ttl_0_stores_no_result_but_whoever_waits_gets_it(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str, fails: bool
) -> None:
    worker = make_worker(concurrency=1)
    go = anyio.Event()

    @worker.task(ttl=0)
    async def fleeting() -> int:
        await go.wait()
        if fails:
            raise ValueError("no")
        return 4

    async with running(worker):
        task = await fleeting.enqueue()
        dependent = await fleeting.enqueue().start(after=task.id)
        async with anyio.create_task_group() as group:
            group.start_soon(task.result, 3)
            group.start_soon(dependent.result, 3)
            channels = [Keys(queue).done(task.id), Keys(queue).done(dependent.id)]
            await until(lambda: [n for _, n in redis_client.pubsub_numsub(*channels)] == [1, 1])
            go.set()
        assert await task.status() is TaskStatus.NOT_FOUND
        with pytest.raises(TimeoutError):
            await task.result(0.01)


async def test_unique(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, go = anyio.Event(), anyio.Event()

    @worker.task(unique=True, timeout=10)
    async def alone(i: int) -> int:
        started.set()
        await go.wait()
        return i

    async with running(worker):
        first = await alone.enqueue(1)
        await started.wait()
        # Note that more than one instance may be queued, but the second fails.
        second = await (await alone.enqueue(2)).result(3)
        assert isinstance(second.exception, StreaqError)
        assert "unique" in str(second.exception)
        assert first.id in str(second.exception)
        assert second.tries == 0
        go.set()
        assert (await first.result(3)).result == 1
        assert (await (await alone.enqueue(3)).result(3)).result == 3


@pytest.mark.parametrize("how", ["raises", "retries", "times out", "is aborted"])
async def test_unique_tasks_let_go_however_they_end(make_worker: MakeWorker, how: str) -> None:
    worker = make_worker()
    started = anyio.Event()

    @worker.task(unique=True, timeout=0.02 if how == "times out" else 10)
    async def alone(end: str) -> int:
        if end == "raises":
            raise ValueError
        if end == "retries" and alone.context.tries == 1:
            raise StreaqRetry(delay=0.01)
        if end in {"times out", "is aborted"}:
            started.set()
            await anyio.sleep_forever()
        return alone.context.tries

    async with running(worker):
        task = await alone.enqueue(how)
        if how == "is aborted":
            await started.wait()
            assert await task.abort()
        result = await task.result(3)
        assert result.success is (how == "retries")
        assert (await (await alone.enqueue("")).result(3)).result == 1
