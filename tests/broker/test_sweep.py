"""sweep.lua: workers that are gone are forgotten, but never what they hold."""

from __future__ import annotations

import asyncio

import pytest

from tests.broker.bench import LEASE_MS, Bench, Hand

pytestmark = pytest.mark.anyio


async def dead_for_long(worker: Hand) -> None:
    """As if its last renewal were long ago."""
    await worker.dies()
    await worker.bench.raw("ZADD", f"{worker.bench.base}workers", 1, worker.worker_id)
    await worker.bench.raw("DEL", f"{worker.bench.base}worker:{worker.worker_id}")


async def workers(bench: Bench) -> set[str]:
    return {raw.decode() for raw in await bench.raw("ZRANGE", f"{bench.base}workers", 0, -1)}


async def test_nobody_to_forget(bench: Bench) -> None:
    worker = await bench.worker()
    await worker.renew()
    assert await bench.broker.sweep(LEASE_MS) == 0
    assert await workers(bench) == {"w1"}


async def test_a_worker_that_leaves_is_gone_at_once(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "default"))
    await worker.renew()
    await bench.enqueue("a")
    await worker.run_one("a")
    assert await bench.broker.sweep(LEASE_MS, "w1") == 1
    assert await bench.consumers() == set()
    assert not {"workers", "worker:w1"} & await bench.keys()


async def test_a_dead_worker_is_forgotten_in_every_stream(bench: Bench) -> None:
    dead = await bench.worker("w1", priorities=("high", "low"))
    await dead.claim(5)
    await dead_for_long(dead)
    assert await bench.broker.sweep(LEASE_MS) == 1
    assert (await bench.consumers("high"), await bench.consumers("low")) == (set(), set())
    assert await workers(bench) == set()


async def test_a_dead_worker_that_holds_a_message_is_kept_until_it_was_taken(bench: Bench) -> None:
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    await dead.claim_one("a")
    await dead_for_long(dead)
    assert await bench.broker.sweep(LEASE_MS) == 0
    assert await bench.pending() == {"a": "w1"}
    (claimed,) = await other.claim(reclaim=True)
    await dead_for_long(dead)
    assert await bench.broker.sweep(LEASE_MS) == 1
    assert await bench.consumers() == {"w2"}
    assert await other.settle(other.end(claimed)) == [1]


async def test_a_leaving_worker_that_still_holds_a_message_is_remembered(bench: Bench) -> None:
    """It leaves a task behind that ignores cancellation."""
    worker = await bench.worker()
    await worker.renew()
    await bench.enqueue("a")
    await worker.claim_one("a")
    assert await bench.broker.sweep(LEASE_MS, "w1") == 0
    assert await bench.pending() == {"a": "w1"}
    assert await workers(bench) == {"w1"}
    assert (await bench.broker.snapshot()).workers == []


async def test_a_worker_that_died_before_its_first_renewal_is_forgotten(bench: Bench) -> None:
    dead = await bench.worker()
    await dead.claim()
    await dead_for_long(dead)
    assert await bench.broker.sweep(LEASE_MS) == 1
    assert await bench.consumers() == set()


async def test_a_worker_swept_too_early_goes_on(bench: Bench) -> None:
    """It was only paused."""
    worker = await bench.worker()
    await worker.claim()
    await dead_for_long(worker)
    await bench.broker.sweep(LEASE_MS)
    await bench.enqueue("a")
    await worker.run_one("a")
    await worker.renew()
    assert await workers(bench) == {"w1"}


async def test_a_worker_swept_while_it_waits_for_a_message_gets_it(bench: Bench) -> None:
    worker = await bench.worker()
    reading = asyncio.create_task(bench.broker.read("w1", ["default"]))
    await bench.until_blocked(1)
    await dead_for_long(worker)
    assert await bench.broker.sweep(LEASE_MS) == 1
    await bench.enqueue("a")
    messages = await reading
    assert [c.task_id for c in (await worker.exchange(starts=messages)).claimed] == ["a"]


async def test_many_dead_workers_are_forgotten_in_bounded_steps(bench: Bench) -> None:
    for i in range(60):
        await dead_for_long(await bench.worker(f"w{i}"))
    assert [await bench.broker.sweep(LEASE_MS) for _ in range(3)] == [50, 10, 0]


async def test_a_queue_that_is_gone(bench: Bench) -> None:
    assert await bench.broker.sweep(LEASE_MS, "nobody") == 1
    assert await bench.keys() == set()
