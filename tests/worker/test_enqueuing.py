"""Registering and enqueuing: delays, moments, dependencies, batches, by name, and running locally.

The examples are those of the page that users are promised, as they stand there.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import pytest
import redis
from anyio import sleep

from streaq import StreaqError, TaskStatus, Worker
from streaq.broker.keys import Keys
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


def ms(moment: datetime) -> float:
    return moment.timestamp() * 1000


async def test_enqueue_and_start_are_equivalent(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper(time: int) -> int:
        await sleep(time)
        return time

    async with worker:
        # these two are equivalent
        first = await sleeper.enqueue(0)
        second = await sleeper.enqueue(0).start()
        assert await worker.queue_size() == 2
    async with running(worker):
        for task in (first, second):
            result = await task.result(3)
            assert (result.success, result.result, result.tries) == (True, 0, 1)
    assert worker.counters == {"completed": 2}


async def test_the_options_of_the_decorator_are_kept(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task(timeout=3, max_tries=1)
    async def foo() -> None: ...

    @worker.task(name="bar", expire=9, silent=True, ttl=timedelta(hours=1), unique=True)
    def other() -> None: ...

    assert (foo.timeout, foo.max_tries, foo.expire, foo.silent) == (3, 1, None, False)
    assert (foo.ttl, foo.unique, foo.retry_timeouts) == (timedelta(minutes=5), False, False)
    assert foo.fn_name == foo.fn.__qualname__
    assert (other.fn_name, other.expire, other.silent) == ("bar", 9, True)
    assert (other.ttl, other.unique, other.max_tries) == (timedelta(hours=1), True, 3)
    assert worker.registry == {foo.fn_name: foo, "bar": other}


async def test_delay(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper(time: int) -> int:
        return time

    async with worker:
        before = time.time() * 1000
        task = await sleeper.enqueue(3).start(delay=10)  # start after 10 seconds
        longer = await sleeper.enqueue(3).start(delay=timedelta(minutes=2))
        info, longer_info = await task.info(), await longer.info()
        assert info is not None
        assert info.scheduled is not None
        assert longer_info is not None
        assert longer_info.scheduled is not None
        assert await task.status() is TaskStatus.SCHEDULED
        assert before + 9_990 <= ms(info.scheduled) <= time.time() * 1000 + 10_010
        assert ms(longer_info.scheduled) - ms(info.scheduled) == pytest.approx(110_000, abs=1000)
        assert await task.abort()
        assert await longer.abort()


async def test_delayed_tasks_start_when_due_and_not_before(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper(time: int) -> int:
        return time

    async with running(worker):
        # The scheduler sleeps already, and must be told of something earlier.
        far = await sleeper.enqueue(1).start(delay=60)
        delayed = await sleeper.enqueue(2).start(delay=0.08)
        moment = datetime.now(UTC) + timedelta(milliseconds=80)
        scheduled = await sleeper.enqueue(3).start(schedule=moment)
        result = await delayed.result(3)
        assert 80 <= result.start_time - result.created_time < 1000
        assert (await scheduled.result(3)).start_time >= int(ms(moment))
        assert await far.status() is TaskStatus.SCHEDULED
        assert await far.abort()


async def test_schedule_at_a_moment(make_worker: MakeWorker) -> None:
    worker = make_worker(tz=ZoneInfo("Asia/Tokyo"))

    @worker.task
    async def sleeper(time: int) -> int:
        return time

    aware = datetime(2199, 1, 1, 12, tzinfo=UTC)
    naive = datetime(2199, 1, 1, 12)  # noqa: DTZ001 - taken in the worker's time zone
    async with worker:
        infos = [
            await (await sleeper.enqueue(3).start(schedule=moment)).info()
            for moment in (aware, naive)
        ]
        assert [info.scheduled for info in infos if info is not None] == [
            aware,
            datetime(2199, 1, 1, 3, tzinfo=UTC),
        ]
        for info in infos:
            assert info is not None
            assert info.scheduled is not None
            assert info.scheduled.tzinfo == ZoneInfo("Asia/Tokyo")
            assert await worker.abort_by_id(info.task_id)


async def test_what_is_due_in_the_past_starts_at_once(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper(time: int) -> int:
        return time

    async with running(worker):
        past = await sleeper.enqueue(1).start(schedule=datetime(2001, 1, 1, tzinfo=UTC))
        now = await sleeper.enqueue(2).start(delay=0)
        assert (await past.result(3)).result == 1
        assert (await now.result(3)).result == 2


async def test_dependencies(make_worker: MakeWorker) -> None:
    worker = make_worker()
    order: list[int] = []

    @worker.task
    async def sleeper(time: int) -> int:
        order.append(time)
        return time

    async with worker:
        task1 = await sleeper.enqueue(1)
        task2 = await sleeper.enqueue(2).start(after=task1.id)
        task3 = await sleeper.enqueue(3).start(after=[task1.id, task2.id])
        assert await worker.queue_size() == 1
        async with running(worker):
            assert (await task3.result(3)).result == 3
    assert order == [1, 2, 3]


async def test_batch(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper(time: int) -> int:
        return time

    # importantly, we're not using `await` here
    tasks = [sleeper.enqueue(i) for i in range(10)]
    async with worker:
        await worker.enqueue_many(tasks)
        assert await worker.queue_size() == 10
        # What is there already is left alone.
        await worker.enqueue_many(tasks)
        assert await worker.queue_size() == 10
        await worker.enqueue_many([])
        async with running(worker):
            assert [(await task.result(3)).result for task in tasks] == list(range(10))


async def test_batches_take_pipelines_options_and_many_tasks(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def double(val: int) -> int:
        return val * 2

    chains = [double.enqueue(i).then(double) for i in range(300)]
    plain = [double.enqueue(i).start(priority="high") for i in range(600)]
    later = double.enqueue(1).start(delay=60)
    async with worker:
        await worker.enqueue_many([*chains, later, *plain])
        assert await worker.queue_size() == 901
        assert await later.abort()
        async with running(worker):
            assert [(await task.result(5)).result for task in chains] == [i * 4 for i in range(300)]
            assert [(await task.result(5)).result for task in plain] == [i * 2 for i in range(600)]


async def test_running_locally(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper(time: int) -> int:
        await sleep(time)
        return time

    @worker.task
    def plain(val: int) -> int:
        return val + 1

    @worker.task
    async def needs_task_context() -> str:
        return needs_task_context.context.task_id

    @worker.task
    async def needs_worker_context() -> None:
        return worker.context

    assert await sleeper(0) == 0
    assert plain(1) == 2
    with pytest.raises(StreaqError, match="only available in running tasks"):
        await needs_task_context()
    with pytest.raises(StreaqError, match="only available in running workers"):
        await needs_worker_context()


@pytest.mark.leaves("result:")
async def test_by_name_without_the_function(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    producer, worker = make_worker(), make_worker()

    @worker.task(name="charge", ttl=None)
    async def charge(order: int, *, currency: str) -> str:
        return f"{order} {currency}"

    async with producer, running(worker):
        task = await producer.enqueue_unsafe("charge", 42, currency="EUR").start(priority="high")
        assert (await task.result(3)).result == "42 EUR"
        # The worker's own options count, not those of the caller who does not know them.
        assert redis_client.ttl(Keys(queue).result(task.id)) == -1
        missing = await (await producer.enqueue_unsafe("nowhere")).result(3)
        assert isinstance(missing.exception, StreaqError)
        assert "nowhere" in str(missing.exception)


async def test_concurrent_enqueues_each_get_their_own_task(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def echo(val: int) -> int:
        return val

    found: dict[int, int] = {}

    async def one(i: int) -> None:
        task = await echo.enqueue(i)
        found[i] = (await task.result(5)).result

    async with running(worker), anyio.create_task_group() as group:
        for i in range(200):
            group.start_soon(one, i)
    assert found == {i: i for i in range(200)}


async def test_outside_of_the_context_manager_nothing_can_be_enqueued(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker()

    @worker.task
    async def echo(val: int) -> int:
        return val

    task = echo.enqueue(1)
    for call in (
        lambda: worker.enqueue_many([task]),
        worker.queue_size,
        task.status,
        task.result,
        task.info,
        task.abort,
        task.unschedule,
    ):
        with pytest.raises(StreaqError, match="async with worker"):
            await call()
    async with worker, worker:  # as often as you like
        pass
    with pytest.raises(StreaqError, match="async with worker"):
        await task


async def test_queue_size(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def echo(val: int) -> int:
        return val

    async with worker:
        queued = await echo.enqueue(1)
        scheduled = await echo.enqueue(2).start(delay=60, priority="low")
        blocked = await echo.enqueue(3).start(after=scheduled.id)
        assert await worker.queue_size() == 2
        assert await worker.queue_size(include_scheduled=False) == 1
        assert await worker.queue_size(False) == 1
        assert await queued.abort()
        assert await scheduled.abort()
        assert await blocked.status() is TaskStatus.DONE
        assert await worker.queue_size() == 0


def test_importing_names_as_upstream_does() -> None:
    from streaq.task import AsyncRegisteredTask, SyncRegisteredTask, Task, TaskResult
    from streaq.types import StreaqCancelled, StreaqRetry, TaskContext
    from streaq.utils import gather, to_tuple
    from streaq.worker import Worker as FromModule

    assert FromModule is Worker
    assert to_tuple(1) == (1,)
    assert to_tuple((1, 2)) == (1, 2)
    for thing in (AsyncRegisteredTask, SyncRegisteredTask, Task, TaskResult, gather):
        assert callable(thing)
    assert issubclass(StreaqCancelled, StreaqError)
    assert issubclass(StreaqRetry, StreaqError)
    assert TaskContext.__slots__
