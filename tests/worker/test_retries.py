"""Retrying: by StreaqRetry, after a delay, at a moment, or by the default backoff."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import pytest

from streaq import StreaqError, StreaqRetry, TaskStatus, Worker
from streaq.engine.outcome import backoff_ms
from streaq.hooks import Ending, Hook
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


class Retries(Hook):
    """Keeps the endings of retried attempts, and lets a test wait for the next."""

    def __init__(self) -> None:
        self.seen: list[Ending] = []
        self.came = anyio.Event()

    def on_retry(self, e: Ending) -> None:
        self.seen.append(e)
        self.came.set()

    async def next(self) -> Ending:
        with anyio.fail_after(5):
            await self.came.wait()
        self.came = anyio.Event()
        return self.seen[-1]


async def test_the_promised_example(make_worker: MakeWorker) -> None:
    hook = Retries()
    worker = make_worker(hooks=[hook])

    @worker.task
    async def try_thrice() -> bool:
        if try_thrice.context.tries < 3:
            raise StreaqRetry("Retrying!", delay=0.01)
        return True

    async with running(worker):
        result = await (await try_thrice.enqueue()).result(3)
        assert (result.result, result.tries) == (True, 3)
    assert worker.counters == {"retried": 2, "completed": 1}
    assert [str(e.error) for e in hook.seen] == ["Retrying!", "Retrying!"]


async def test_the_default_backoff_is_the_square_of_the_tries(make_worker: MakeWorker) -> None:
    hook = Retries()
    worker = make_worker(hooks=[hook])

    @worker.task
    async def again() -> None:
        raise StreaqRetry

    async with running(worker):
        task = await again.enqueue()
        ending = await hook.next()
        assert ending.retry_due_ms - ending.finished_ms == 1000
        info = await task.info()
        assert info is not None
        assert (info.status, info.tries) == (TaskStatus.SCHEDULED, 1)
        assert info.scheduled is not None
        due_ms = info.scheduled.timestamp() * 1000
        assert due_ms == pytest.approx(ending.retry_due_ms, abs=100)
        assert await task.abort()
    assert [backoff_ms(n) for n in (1, 2, 3, 10)] == [1000, 4000, 9000, 100_000]


async def test_delay_and_schedule(make_worker: MakeWorker) -> None:
    hook = Retries()
    worker = make_worker(hooks=[hook], tz=ZoneInfo("Asia/Tokyo"))
    moment = datetime(2199, 5, 1, 12, tzinfo=UTC)

    @worker.task
    async def again(how: str) -> None:
        if how == "delay":
            raise StreaqRetry("later", delay=timedelta(minutes=2))
        if how == "aware":
            raise StreaqRetry("later", schedule=moment)
        raise StreaqRetry("later", schedule=moment.replace(tzinfo=None))

    async with running(worker):
        expected = {
            "delay": None,
            "aware": moment,
            "naive": moment - timedelta(hours=9),  # in the worker's time zone
        }
        for how, at in expected.items():
            task = await again.enqueue(how)
            ending = await hook.next()
            info = await task.info()
            assert info is not None
            if at is None:
                assert ending.retry_due_ms - ending.finished_ms == 120_000
            else:
                assert info.scheduled == at
                assert ending.retry_due_ms == at.timestamp() * 1000
            assert await task.abort()


@pytest.mark.parametrize(
    "retry",
    [
        StreaqRetry(delay=0),
        StreaqRetry(delay=-5),
        StreaqRetry(schedule=datetime(2001, 1, 1, tzinfo=UTC)),
    ],
    ids=["no delay", "negative", "in the past"],
)
async def test_at_once(make_worker: MakeWorker, retry: StreaqRetry) -> None:
    worker = make_worker()

    @worker.task
    async def again() -> int:
        if again.context.tries == 1:
            raise retry
        return again.context.tries

    async with running(worker):
        assert (await (await again.enqueue()).result(3)).result == 2


async def test_arguments_priority_and_dependents_survive_a_retry(make_worker: MakeWorker) -> None:
    worker = make_worker()
    order: list[str] = []

    @worker.task
    async def first(val: int, *, extra: str) -> tuple[int, str]:
        order.append(f"first {first.context.tries}")
        if first.context.tries < 3:
            raise StreaqRetry(delay=0)
        return val, extra

    @worker.task
    async def second(val: int, extra: str) -> str:
        order.append("second")
        return f"{val}{extra}"

    async with running(worker):
        task = await first.enqueue(1, extra="x").start(priority="high").then(second)
        assert (await task.result(3)).result == "1x"
    assert order == ["first 1", "first 2", "first 3", "second"]


async def test_other_errors_are_not_retried(make_worker: MakeWorker) -> None:
    worker = make_worker()
    tries = 0

    @worker.task
    async def fails() -> None:
        nonlocal tries
        tries += 1
        raise ConnectionError("gone")

    async with running(worker):
        result = await (await fails.enqueue()).result(3)
        assert isinstance(result.exception, ConnectionError)
    assert tries == 1
    assert worker.counters == {"failed": 1}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_sync_functions_retry_too(make_worker: MakeWorker, kind: str) -> None:
    worker = make_worker()

    def body() -> int:
        if worker.registry["task"].context.tries < 2:
            raise StreaqRetry(delay=0)
        return 1

    async def async_body() -> int:
        return body()

    _register(worker, async_body if kind == "async" else body)
    async with running(worker):
        result = await (await worker.enqueue_unsafe("task")).result(3)
        assert (result.result, result.tries) == (1, 2)


def _register(worker: Worker, fn: object) -> None:
    worker.task(name="task")(fn)  # type: ignore[call-overload]


async def test_what_is_retried_to_the_end_keeps_its_first_creation(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker(concurrency=1)

    @worker.task
    async def again() -> None:
        raise StreaqRetry("never", delay=0.02)

    async with running(worker):
        result = await (await again.enqueue()).result(3)
        assert result.created_time + 40 <= result.enqueue_time <= result.start_time
        assert isinstance(result.exception, StreaqError)
