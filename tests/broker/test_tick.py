"""tick.lua: scheduled -> queued, everything that is due."""

from __future__ import annotations

import asyncio

import pytest

from tests.broker.bench import LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def test_nothing_scheduled(bench: Bench) -> None:
    tick = await bench.broker.tick(10, ["default"])
    assert (tick.next_ms, tick.moved, tick.schedules) == (None, [], [])


async def test_what_is_not_due_is_left_and_its_time_told(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{2 * LONG_MS}"), task("b", due=f"+{LONG_MS}"))
    tick = await bench.broker.tick(10, ["default"])
    assert tick.moved == []
    assert tick.next_ms == (await bench.seen("b")).scheduled_ms
    assert await bench.states("a", "b") == ["scheduled", "scheduled"]


async def test_what_is_due_is_queued_in_the_order_of_its_times(bench: Bench) -> None:
    worker = await bench.worker()
    for task_id in "abc":
        await bench.publish(task(task_id, due=f"+{LONG_MS}"))
    for task_id, at in (("c", 1), ("a", 2), ("b", 3)):
        await bench.becomes_due(task_id, at)
    tick = await bench.broker.tick(10, ["default"])
    assert tick.moved == [
        ("c", "work", "default", 1), ("a", "work", "default", 2), ("b", "work", "default", 3),
    ]  # fmt: skip
    assert tick.next_ms is None
    claimed = await worker.claim(3)
    assert [(c.task_id, c.due_ms) for c in claimed] == [("c", 1), ("a", 2), ("b", 3)]
    assert "due:default" not in await bench.keys()


async def test_batches_are_bounded(bench: Bench) -> None:
    await bench.publish(*(task(f"t{i}", due=f"+{LONG_MS}") for i in range(5)))
    for i in range(5):
        await bench.becomes_due(f"t{i}", i + 1)
    tick = await bench.broker.tick(3, ["default"])
    assert [m[0] for m in tick.moved] == ["t0", "t1", "t2"]
    assert tick.next_ms == 4  # overdue: come again at once
    tick = await bench.broker.tick(3, ["default"])
    assert [m[0] for m in tick.moved] == ["t3", "t4"]


async def test_higher_priorities_are_moved_first(bench: Bench) -> None:
    for priority in ("low", "high"):
        await bench.publish(
            *(task(f"{priority}{i}", due=f"+{LONG_MS}", priority=priority) for i in range(2))
        )
        for i in range(2):
            await bench.becomes_due(f"{priority}{i}")
    tick = await bench.broker.tick(3, ["high", "low"])
    assert [m[0] for m in tick.moved] == ["high0", "high1", "low0"]
    assert await bench.waiting("high") == ["high0", "high1"]


async def test_priorities_that_are_not_ours_are_left(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{LONG_MS}", priority="other"))
    await bench.becomes_due("a")
    tick = await bench.broker.tick(10, ["default"])
    assert (tick.moved, tick.next_ms) == ([], None)


async def test_racing_ticks_move_each_task_once(bench: Bench) -> None:
    await bench.publish(*(task(f"t{i}", due=f"+{LONG_MS}") for i in range(100)))
    for i in range(100):
        await bench.becomes_due(f"t{i}")
    ticks = await asyncio.gather(*(bench.broker.tick(30, ["default"]) for _ in range(8)))
    moved = [m[0] for tick in ticks for m in tick.moved]
    assert sorted(moved) == sorted(f"t{i}" for i in range(100))
    assert sorted(await bench.waiting()) == sorted(moved)


async def test_a_task_that_is_gone_is_forgotten(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{LONG_MS}"))
    await bench.becomes_due("a")
    await bench.raw("DEL", f"{bench.base}task:a")
    assert (await bench.broker.tick(10, ["default"])).moved == []
    assert await bench.keys() == {"priorities"}


async def test_a_retry_comes_back_with_its_tries(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), f"+{LONG_MS}"))
    await bench.becomes_due("a")
    await bench.broker.tick(10, ["default"])
    assert (await worker.claim_one("a")).try_number == 2


async def test_due_schedules_are_told_and_left_to_be_fired(bench: Bench) -> None:
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="0 9 * * mon", tz="Europe/Berlin"))
    tick = await bench.broker.tick(10, ["default"])
    assert (tick.schedules, tick.next_ms) == ([], (await bench.seen("s")).scheduled_ms)
    await bench.becomes_due("s", 1_000)
    for _ in range(2):
        tick = await bench.broker.tick(10, ["default"])
        assert tick.schedules == [
            (b"s", "work", 1_000, "0 9 * * mon", "Europe/Berlin", "default"),
        ]


async def test_the_next_moment_is_the_first_of_tasks_and_schedules(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{2 * LONG_MS}"))
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    tick = await bench.broker.tick(10, ["default"])
    assert tick.next_ms == (await bench.seen("s")).scheduled_ms
    await bench.publish(task("b", due=f"+{LONG_MS // 2}"))
    tick = await bench.broker.tick(10, ["default"])
    assert tick.next_ms == (await bench.seen("b")).scheduled_ms
