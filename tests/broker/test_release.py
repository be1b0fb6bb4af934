"""release.lua: reserved messages that a worker will not start, for others to take."""

from __future__ import annotations

import asyncio

import pytest

from streaq.broker.exchange import Reserved
from tests.broker.bench import Bench, Hand

pytestmark = pytest.mark.anyio


async def reserve(worker: Hand, count: int = 1) -> list[Reserved]:
    return (await worker.exchange(reserve=count)).reserved


async def test_nothing_to_release(bench: Bench) -> None:
    await bench.broker.release("w1", [])
    assert await bench.keys() == set()


async def test_a_released_message_is_there_for_others(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    ready = asyncio.Event()
    await bench.broker.listen(heard.put_nowait, ready.set)
    await ready.wait()
    await bench.enqueue("a")
    await bench.enqueue("b")
    first, _ = await reserve(worker, 2)
    await bench.broker.release("w1", [first])
    assert await heard.get() == b"returned"
    assert await bench.pending() == {"a": "-", "b": "w1"}
    assert [(c.task_id, c.try_number) for c in await other.claim(2, reclaim=True)] == [("a", 1)]


async def test_the_message_of_a_task_that_ended_is_dropped(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    messages = await reserve(worker)
    await bench.broker.abort("a")
    await bench.broker.release("w1", messages)
    await bench.assert_nothing_is_left()


async def test_a_task_that_another_worker_started_is_left_alone(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    messages = await reserve(worker)
    await worker.dies()
    await other.claim(reclaim=True)
    await bench.broker.release("w1", messages)
    assert await bench.pending() == {"a": "w2"}
    assert (await bench.fields("a"))["who"] == "w2"


async def test_releasing_twice_is_harmless(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    messages = await reserve(worker)
    await bench.broker.release("w1", messages)
    await bench.broker.release("w1", messages)
    assert await bench.pending() == {"a": "-"}


async def test_a_message_that_another_worker_reserved_starts_once(bench: Bench) -> None:
    """Whoever holds it after a late release, it is started by one of them."""
    worker, other, third = [await bench.worker(f"w{i}") for i in (1, 2, 3)]
    await bench.enqueue("a", "once")
    messages = await reserve(worker)
    await worker.dies()
    await bench.broker.recover("w1", ["default"], [])
    assert [r.task_id for r in await reserve(other)] == []
    (claimed,) = await other.claim(reclaim=True)
    await bench.broker.release("w1", messages)
    assert (await third.exchange(starts=messages, want=1, reclaim=True)).claimed == []
    assert await other.settle(other.end(claimed)) == [1]
    await bench.assert_nothing_is_left()
