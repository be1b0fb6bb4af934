"""Feeding results to the next task: then, |, tuples, keyword arguments, map and filter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from streaq import StreaqError, StreaqRetry, TaskStatus, Worker
from streaq.task import AsyncRegisteredTask
from streaq.utils import gather, to_tuple
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


@dataclass
class Response:
    text: str


class HttpClient:
    async def get(self, url: str) -> Response:
        return Response("x" * (len(url) * 2))


@dataclass
class Context:
    http_client: HttpClient


@asynccontextmanager
async def lifespan() -> AsyncIterator[Context]:
    yield Context(HttpClient())


def steps(
    worker: Worker[Any],
) -> tuple[
    AsyncRegisteredTask[[str], int],
    AsyncRegisteredTask[[int], int],
    AsyncRegisteredTask[[int], bool],
]:
    @worker.task(timeout=5)
    async def fetch(url: str) -> int:
        res = await worker.context.http_client.get(url)
        return len(res.text)

    @worker.task
    async def double(val: int) -> int:
        return val * 2

    @worker.task(name="is_even")
    async def is_even(val: int) -> bool:
        return val % 2 == 0

    return fetch, double, is_even


async def test_then(make_worker: MakeWorker) -> None:
    worker = make_worker(lifespan=lifespan)
    fetch, double, is_even = steps(worker)
    async with running(worker):
        task = await fetch.enqueue("https://tastyware.dev").then(double).then(is_even)
        result = await task.result(3)
        assert (result.fn_name, result.success, result.result) == ("is_even", True, True)
        assert result.created_time <= result.start_time <= result.finish_time


async def test_the_operator(make_worker: MakeWorker) -> None:
    worker = make_worker(lifespan=lifespan)
    fetch, double, is_even = steps(worker)
    async with running(worker):
        task = await (fetch.enqueue("https://tastyware.dev") | double | is_even)
        assert (await task.result(3)).result is True
        task2 = await (fetch.enqueue("abc") | double)
        assert (await task2.result(3)).result == 12


async def test_map_and_filter(make_worker: MakeWorker) -> None:
    worker = make_worker(lifespan=lifespan)
    _, double, is_even = steps(worker)

    @worker.task
    async def map(data: list[Any], *, to: str) -> list[Any]:
        task = worker.registry[to]
        coros = [task.enqueue(*to_tuple(d)).start() for d in data]
        tasks = await gather(*coros)
        results = await gather(*[t.result(3) for t in tasks])
        return [r.result for r in results]

    @worker.task
    async def filter(data: list[Any], *, by: str) -> list[Any]:
        task = worker.registry[by]
        coros = [task.enqueue(*to_tuple(d)).start() for d in data]
        tasks = await gather(*coros)
        results = await gather(*[t.result(5) for t in tasks])
        return [data[i] for i in range(len(data)) if results[i].result]

    async with running(worker):
        data = [0, 1, 2, 3]
        t1 = await map.enqueue(data, to=double.fn_name).then(filter, by=is_even.fn_name)
        assert (await t1.result(5)).result == [0, 2, 4, 6]
        t2 = await filter.enqueue(data, by=is_even.fn_name).then(map, to=double.fn_name)
        assert (await t2.result(5)).result == [0, 4]


async def test_tuples_are_unpacked_and_kwargs_added(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def tuplify(input: int) -> tuple[int, int]:
        return (input, input)

    @worker.task
    async def untuple(first: int, second: int, *, third: int = 0) -> int:
        return first + second + third

    @worker.task
    def untuple_in_thread(first: int, second: int) -> tuple[int, int]:
        return first, second * 10

    @worker.task
    async def nothing() -> tuple[()]:
        return ()

    @worker.task
    async def one() -> tuple[int]:
        return (5,)

    @worker.task
    async def listed(val: list[int]) -> list[int]:
        return [*val, 1]

    async with running(worker):
        task = await tuplify.enqueue(3).then(untuple, third=3)
        res = await task.result(3)
        assert res.result == 9
        task = await (tuplify.enqueue(3) | untuple_in_thread | untuple)
        assert (await task.result(3)).result == 33
        assert (await (await (nothing.enqueue() | one | tuplify)).result(3)).result == (5, 5)
        # Only tuples are unpacked.
        assert (await (await (listed.enqueue([]) | listed)).result(3)).result == [1, 1]


async def test_a_failure_skips_the_rest(make_worker: MakeWorker) -> None:
    worker = make_worker()
    ran: list[str] = []

    @worker.task
    async def breaks(val: int) -> int:
        raise ValueError(val)

    @worker.task
    async def double(val: int) -> int:
        ran.append("double")
        return val * 2

    async with running(worker):
        task = await (double.enqueue(1) | breaks | double | double)
        result = await task.result(3)
        assert isinstance(result.exception, StreaqError)
        assert "ependency" in str(result.exception)
        # A type error of the next task is its own.
        wrong = await double.enqueue(2).then(double, nonsense=1)
        assert isinstance((await wrong.result(3)).exception, TypeError)
    assert ran == ["double", "double"]


async def test_every_link_is_a_task_of_its_own(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def double(val: int) -> int:
        if double.context.tries == 1 and val == 4:
            raise StreaqRetry(delay=0)
        return val * 2

    async with worker:
        first = double.enqueue(1).start(priority="high", delay=0.03)
        second = first.then(double).start(priority="low")
        third = second.then(double)
        await third
        assert await first.status() is TaskStatus.SCHEDULED
        info = await second.info()
        assert info is not None
        assert (info.dependencies, info.dependents) == ({first.id}, {third.id})
        async with running(worker):
            assert [(await t.result(3)).result for t in (third, second, first)] == [8, 4, 2]
            assert (await third.result(3)).tries == 2


async def test_joining_a_task_that_was_enqueued_before(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def double(val: int) -> int:
        return val * 2

    async with running(worker):
        first = await double.enqueue(1)
        await first.result(3)
        # It ended already; its result is still there, and it is not run again.
        a, b = await first.then(double), await first.then(double).then(double)
        assert (await a.result(3)).result == 4
        assert (await b.result(3)).result == 8
        # Waiting for others as well.
        gate = await double.enqueue(1).start(delay=0.03)
        both = await first.then(double).start(after=gate.id)
        assert (await both.result(3)).result == 4
        assert (await both.result(3)).start_time >= (await gate.result(3)).finish_time
    assert worker.counters == {"completed": 6}


async def test_pipelines_by_name(make_worker: MakeWorker) -> None:
    worker, producer = make_worker(), make_worker()

    @worker.task(name="double")
    async def double(val: int) -> int:
        return val * 2

    @producer.task(name="double")
    async def stub(val: int) -> int:
        raise AssertionError

    async with producer, running(worker):
        task = await producer.enqueue_unsafe("double", 1).then(stub)
        assert (await task.result(3)).result == 4
