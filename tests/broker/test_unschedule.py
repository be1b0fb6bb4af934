"""unschedule.lua: a repeating schedule is gone, and what waited for it is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.broker.bench import LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def schedule(bench: Bench) -> None:
    again = task("s", due=f"+{LONG_MS}", crontab="@hourly", kind="cron")
    assert await bench.publish(again) == ["repeating"]


async def test_there_was_one(bench: Bench) -> None:
    await schedule(bench)
    assert await bench.broker.unschedule("s") == (True, [])
    assert await bench.broker.unschedule("s") == (False, [])
    assert (await bench.record("s")).status == "aborted"  # for who waits for its first firing
    await bench.assert_nothing_is_left()


async def test_its_result_is_kept_as_its_task_wishes(bench: Bench) -> None:
    again = task("s", due=f"+{LONG_MS}", crontab="@hourly", kind="cron", keep="0")
    await bench.publish(again)
    assert (await bench.broker.unschedule("s"))[0]
    assert await bench.state("s") == ""
    await bench.assert_nothing_is_left()


async def test_after_its_first_firing_there_is_nothing_to_tell(bench: Bench) -> None:
    worker = await bench.worker()
    await schedule(bench)
    await bench.becomes_due("s")
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "m")
    await worker.run_one("s")
    assert await bench.broker.unschedule("s") == (True, [])
    assert (await bench.record("s")).status == "success"


async def test_there_was_none(bench: Bench) -> None:
    await bench.publish(task("a"), task("b", due=f"+{LONG_MS}"))
    for task_id in ("a", "b", "nobody"):
        assert await bench.broker.unschedule(task_id) == (False, [])
    assert await bench.states("a", "b") == ["queued", "scheduled"]


async def test_only_one_of_many_takes_it_away(bench: Bench) -> None:
    await schedule(bench)
    answers = await asyncio.gather(*(bench.broker.unschedule("s") for _ in range(5)))
    assert sorted(there for there, _ in answers) == [False] * 4 + [True]


async def test_what_waits_for_its_first_firing_fails(bench: Bench) -> None:
    await schedule(bench)
    await bench.publish(task("d", after=["s"]), task("e", then="d"), task("f", otherwise="s"))
    there, changes = await bench.broker.unschedule("s")
    assert there
    assert {(c.what, c.task_id) for c in changes} == {
        ("failed", "d"), ("failed", "e"), ("released", "f"),
    }  # fmt: skip
    assert (await bench.record("d")).text == "task s was unscheduled"


async def test_a_firing_that_is_queued_still_runs(bench: Bench) -> None:
    worker = await bench.worker()
    await schedule(bench)
    await bench.becomes_due("s")
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "m")
    assert await bench.broker.unschedule("s") == (True, [])
    await worker.run_one("s")
    await bench.assert_nothing_is_left()
