"""standing.lua: where a queued task stands, and what would keep it from starting."""

from __future__ import annotations

import pytest

from tests.broker.bench import LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def before(bench: Bench, task_id: str) -> int:
    return (await bench.broker.standing(task_id)).before


async def test_new_ones_stand_in_line(bench: Bench) -> None:
    await bench.publish(*(task(f"t{i}") for i in range(5)))
    assert [await before(bench, f"t{i}") for i in range(5)] == [0, 1, 2, 3, 4]
    worker = await bench.worker()
    await worker.claim(2)
    assert [await before(bench, f"t{i}") for i in range(2, 5)] == [0, 1, 2]


async def test_what_was_handed_back_comes_first(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(*(task(f"t{i}") for i in range(5)))
    t0, t1, t2 = await worker.claim(3)
    await worker.settle(*map(worker.hand_back, (t2, t0)))
    assert [await before(bench, f"t{i}") for i in (0, 2, 3, 4)] == [0, 1, 2, 3]
    assert await worker.settle(worker.end(t1)) == [1]


async def test_what_is_reserved_says_by_whom(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.exchange(reserve=1)
    standing = await bench.broker.standing("a")
    assert (standing.before, standing.reserved_by, standing.locked_by) == (0, "w1", "")


async def test_the_task_that_holds_the_lock_is_named(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", "sole"), task("b", "sole"))
    await worker.claim_one("a")
    assert (await bench.broker.standing("b")).locked_by == "a"


async def test_those_that_are_not_queued_stand_nowhere(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", after=["a"]), task("c", due=f"+{LONG_MS}"))
    await worker.claim_one("a")
    for task_id in ("a", "b", "c", "nobody"):
        standing = await bench.broker.standing(task_id)
        assert (standing.before, standing.reserved_by) == (0, "")
