"""held.lua: whether a worker was given anything that it has not acknowledged, heard of or not."""

from __future__ import annotations

import pytest

from tests.broker.bench import Bench, task

pytestmark = pytest.mark.anyio

BOTH = ["default", "high"]


async def test_nothing_where_there_is_no_stream(bench: Bench) -> None:
    assert await bench.broker.count_held("w1", BOTH) == 0
    assert await bench.keys() == set()


async def test_what_waits_is_held_by_nobody(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    assert await bench.broker.count_held(worker.worker_id, ["default"]) == 0


async def test_what_runs_is_held_until_it_is_settled(bench: Bench) -> None:
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    held = [await bench.broker.count_held(w.worker_id, ["default"]) for w in (worker, other)]
    assert held == [1, 0]
    await worker.settle(worker.end(claimed))
    assert await bench.broker.count_held(worker.worker_id, ["default"]) == 0


async def test_what_a_read_was_given_is_held_before_it_is_started(bench: Bench) -> None:
    worker = await bench.worker(priorities=BOTH)
    await bench.publish(task("a"), task("b"), task("c", priority="high"))
    for held in (1, 2):
        assert await bench.broker.read(worker.worker_id, BOTH[:held])
        assert await bench.broker.count_held(worker.worker_id, BOTH) == held
    assert await bench.broker.count_held(worker.worker_id, BOTH[:1]) == 1


async def test_what_was_handed_back_is_held_no_more(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    reserved = await bench.broker.read(worker.worker_id, ["default"])
    await bench.broker.release(worker.worker_id, reserved)
    assert await bench.broker.count_held(worker.worker_id, ["default"]) == 0
