"""hasten.lua: what is due later is due now."""

from __future__ import annotations

import pytest

from tests.broker.bench import LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def test_nothing_scheduled(bench: Bench) -> None:
    assert await bench.broker.hasten(["default", "high"]) == 0
    assert await bench.keys() == set()


async def test_scheduled_tasks_are_due_at_once_whatever_their_time(bench: Bench) -> None:
    worker = await bench.worker()
    before = (await bench.broker.tick(10, ["default"])).now_ms
    await bench.publish(
        task("a", due=f"+{LONG_MS}"), task("b", due=f"+{LONG_MS * 10**6}"), task("c")
    )
    assert await bench.broker.hasten(["default"]) == 2
    assert await bench.broker.hasten(["default"]) == 0
    tick = await bench.broker.tick(10, ["default"])
    assert sorted(m[0] for m in tick.moved) == ["a", "b"]
    claimed = {c.task_id: c for c in await worker.claim(3)}
    assert set(claimed) == {"a", "b", "c"}
    assert all(before <= c.due_ms <= c.started_ms for c in claimed.values())


async def test_only_the_priorities_named(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{LONG_MS}"), task("b", due=f"+{LONG_MS}", priority="high"))
    assert await bench.broker.hasten(["high"]) == 1
    tick = await bench.broker.tick(10, ["default", "high"])
    assert [m[0] for m in tick.moved] == ["b"]
    assert await bench.states("a", "b") == ["scheduled", "queued"]


async def test_repeating_schedules_and_blocked_tasks_are_left_alone(bench: Bench) -> None:
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await bench.publish(task("a", due=f"+{LONG_MS}"))
    await bench.publish(task("b", after=["a"]))
    assert await bench.broker.hasten(["default"]) == 1
    tick = await bench.broker.tick(10, ["default"])
    assert ([m[0] for m in tick.moved], tick.schedules) == (["a"], [])
    assert await bench.states("a", "b", "s") == ["queued", "blocked", "scheduled"]
