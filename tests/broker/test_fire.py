"""fire.lua: one firing of a repeating schedule, made once whoever tries."""

from __future__ import annotations

import asyncio

import pytest

from tests.broker.bench import LONG_MS, Bench, Hand, task

pytestmark = pytest.mark.anyio

FAR = 99_999_999_999_999


async def schedule(bench: Bench, task_id: str = "s", fn: str = "work", **more: str) -> None:
    again = task(task_id, fn, due=f"+{LONG_MS}", crontab="@hourly", kind="cron", **more)
    assert await bench.publish(again) == ["repeating"]


async def fire(bench: Bench, made: str, due: int = 1, following: int | None = FAR) -> str:
    """Let the schedule be due, and fire it."""
    await bench.becomes_due("s", due)
    return await bench.broker.fire("s", due, following, made)


async def test_the_first_firing_has_the_schedules_own_id(bench: Bench) -> None:
    worker = await bench.worker()
    await schedule(bench, args=b"x", headers='{"k":"v"}', keep="1000")
    assert await fire(bench, "made") == "s"
    claimed = await worker.claim_one("s")
    assert (claimed.args, claimed.headers, claimed.kind, claimed.due_ms) == (
        b"x", b'{"k":"v"}', "cron", 1,
    )  # fmt: skip
    assert (await bench.fields("s"))["keep"] == "1000"


async def test_later_firings_have_ids_of_their_own(bench: Bench) -> None:
    worker = await bench.worker()
    await schedule(bench)
    assert await fire(bench, "one") == "s"
    assert await fire(bench, "two", due=2) == "two"
    assert await fire(bench, "three", due=3) == "three"
    assert [c.task_id for c in await worker.claim(5)] == ["s", "two", "three"]
    assert int(await bench.raw("ZSCORE", f"{bench.base}schedules", "s")) == FAR


async def test_racing_workers_fire_once(bench: Bench) -> None:
    await schedule(bench)
    await bench.becomes_due("s", 5)
    fired = await asyncio.gather(*(bench.broker.fire("s", 5, FAR, f"m{i}") for i in range(10)))
    assert sorted(fired) == [*[""] * 9, "s"]
    assert await bench.waiting() == ["s"]


async def test_a_repeated_firing_does_nothing(bench: Bench) -> None:
    """The answer was lost; the schedule has moved on already."""
    await schedule(bench)
    assert await fire(bench, "m") == "s"
    assert await bench.broker.fire("s", 1, FAR, "m") == ""
    assert await bench.waiting() == ["s"]


async def test_a_firing_at_another_time_than_is_due_does_nothing(bench: Bench) -> None:
    await schedule(bench)
    await bench.becomes_due("s", 7)
    assert await bench.broker.fire("s", 6, FAR, "m") == ""
    assert await bench.waiting() == []


async def test_a_schedule_that_is_gone_does_not_fire(bench: Bench) -> None:
    await schedule(bench)
    await bench.becomes_due("s", 1)
    assert (await bench.broker.unschedule("s"))[0]
    assert await bench.broker.fire("s", 1, FAR, "m") == ""
    await bench.assert_nothing_is_left()


async def test_the_last_firing_ends_the_schedule(bench: Bench) -> None:
    worker = await bench.worker()
    await schedule(bench)
    assert await fire(bench, "m", following=None) == "s"
    keys = await bench.keys()
    assert not {"schedules", "schedule:s"} & keys
    await worker.run_one("s")
    await bench.assert_nothing_is_left()


async def test_each_firing_expires_on_its_own(bench: Bench) -> None:
    await schedule(bench, expires_in="5000")
    await fire(bench, "m")
    fields = await bench.fields("s")
    assert int(fields["till"]) == int(fields["made"]) + 5_000


async def test_firings_go_to_their_priority(bench: Bench) -> None:
    await schedule(bench, priority="high")
    await bench.raw("ZADD", f"{bench.base}schedules", 1, "s")
    assert await bench.broker.fire("s", 1, FAR, "m") == "s"
    assert await bench.waiting("high") == ["s"]


async def test_dependents_wait_for_the_first_firing_alone(bench: Bench) -> None:
    worker = await bench.worker()
    await schedule(bench)
    assert await bench.publish(task("d", then="s")) == ["blocked"]
    await fire(bench, "m")
    reply = await worker.run_one("s", value=b"of the first")
    assert [c.task_id for c in reply.changes] == ["d"]
    assert (await worker.claim_one("d")).input == b"of the first"


async def test_unscheduling_between_firing_and_end_leaves_the_dependents_to_the_end(
    bench: Bench,
) -> None:
    worker = await bench.worker()
    await schedule(bench)
    await bench.publish(task("d", after=["s"]))
    await fire(bench, "m")
    there, changes = await bench.broker.unschedule("s")
    assert (there, changes) == (True, [])
    assert await bench.state("d") == "blocked"
    await worker.run_one("s")
    await worker.run_one("d")
    await bench.assert_nothing_is_left()


async def test_a_firing_while_the_one_before_still_runs(bench: Bench) -> None:
    worker: Hand = await bench.worker()
    await schedule(bench)
    await fire(bench, "one")
    running = await worker.claim_one("s")
    assert await fire(bench, "two", due=2) == "two"
    await worker.run_one("two")
    assert await worker.settle(worker.end(running)) == [1]


async def test_a_schedule_whose_record_was_lost_is_forgotten(bench: Bench) -> None:
    await schedule(bench)
    await bench.becomes_due("s", 1)
    await bench.raw("DEL", f"{bench.base}schedule:s")
    assert await bench.broker.fire("s", 1, FAR, "m") == ""
    assert await bench.keys() == {"priorities"}
