"""cron.lua: a cron job of the code registered and fired, once for all workers that have it."""

from __future__ import annotations

import asyncio

import pytest

from streaq.broker.link import CronFiring
from tests.broker.bench import DEFAULT, LONG_MS, Bench

pytestmark = pytest.mark.anyio

WEEK_MS = 7 * 86_400_000
TAB = "* * * * * UTC"


def firing(due: int = 0, task_id: str = "c", **more: object) -> CronFiring:
    """A firing due then, or (0) the registration."""
    plain = CronFiring("work", TAB, due, None, 0, task_id, DEFAULT, b"args", "", "300000")
    return plain._replace(**more)


async def known(bench: Bench) -> dict[str, int]:
    raw = await bench.raw("HGETALL", f"{bench.base}cron:work")
    flat = dict(zip(raw[::2], raw[1::2], strict=True))
    return {name.decode(): int(value) for name, value in flat.items() if name != b"tab"}


async def test_registering_makes_no_task(bench: Bench) -> None:
    state = await bench.broker.cron(firing())
    assert (state.made, state.missed) == (False, 0)
    assert state.last_ms == state.now_ms  # nothing before it was written was missed
    following = state.now_ms + LONG_MS
    again = await bench.broker.cron(firing(next_ms=following))
    assert again.last_ms == state.last_ms
    assert (await known(bench))["next"] == following
    assert (await bench.broker.snapshot()).crons[0].next_ms == following


async def test_a_firing_makes_a_task(bench: Bench) -> None:
    worker = await bench.worker()
    due = (await bench.broker.cron(firing())).last_ms + 1
    state = await bench.broker.cron(firing(due, next_ms=due + 60_000, headers='{"k":"v"}'))
    assert (state.made, state.last_ms) == (True, due)
    claimed = await worker.claim_one("c")
    assert (claimed.fn, claimed.kind, claimed.due_ms, claimed.args, claimed.headers) == (
        "work", "cron", due, b"args", b'{"k":"v"}',
    )  # fmt: skip
    await worker.settle(worker.end(claimed, flags="c"))
    assert (await known(bench))["ok"] > 0
    await bench.assert_nothing_is_left()


async def test_racing_workers_fire_once(bench: Bench) -> None:
    due = (await bench.broker.cron(firing())).last_ms + 1
    states = await asyncio.gather(
        *(bench.broker.cron(firing(due, missed=3, since_ms=due - 1)) for _ in range(8))
    )
    assert sum(state.made for state in states) == 1
    assert await bench.waiting() == ["c"]
    assert (await known(bench))["missed"] == 3
    assert {state.last_ms for state in states} == {due}


async def test_what_others_fired_meanwhile_is_not_missed(bench: Bench) -> None:
    """A worker stood still, and is the first to fire the one that is due as it goes on."""
    start = (await bench.broker.cron(firing())).last_ms
    seen, fired, due = start + 1_000, start + 4_000, start + 5_000
    await bench.broker.cron(firing(fired, "by-another"))
    slept = firing(due, missed=4, since_ms=seen - 1)
    state = await bench.broker.cron(slept)
    assert (state.outdated, state.made, state.last_ms, state.missed) == (True, False, fired, 0)
    assert await bench.waiting() == ["by-another"]
    state = await bench.broker.cron(slept._replace(missed=2, since_ms=state.last_ms))
    assert (state.outdated, state.made, state.last_ms, state.missed) == (False, True, due, 2)


async def test_a_resent_firing_is_not_made_again_even_when_it_has_ended(bench: Bench) -> None:
    worker = await bench.worker()
    due = (await bench.broker.cron(firing())).last_ms + 1
    await bench.broker.cron(firing(due, missed=1, since_ms=due - 1))
    await worker.run_one("c")
    await bench.raw("DEL", f"{bench.base}result:c")
    state = await bench.broker.cron(firing(due, missed=1, since_ms=due - 1))
    assert (state.made, state.missed) == (False, 1)


async def test_an_earlier_firing_than_the_last_is_not_made(bench: Bench) -> None:
    """A worker whose clock or loop is behind."""
    due = (await bench.broker.cron(firing())).last_ms + 60_000
    assert (await bench.broker.cron(firing(due, "new"))).made
    state = await bench.broker.cron(firing(due - 30_000, "old"))
    assert (state.made, state.last_ms) == (False, due)


async def test_a_new_timetable_starts_anew(bench: Bench) -> None:
    first = await bench.broker.cron(firing())
    await bench.broker.cron(firing(first.last_ms + 60_000))
    changed = await bench.broker.cron(firing(crontab="0 0 * * * UTC"))
    assert changed.last_ms == changed.now_ms < first.last_ms + 60_000
    assert (await bench.broker.cron(firing(changed.now_ms + 1, "d", crontab="0 0 * * * UTC"))).made


async def test_a_firing_without_a_registration_is_made(bench: Bench) -> None:
    """The server was flushed under a running worker."""
    state = await bench.broker.cron(firing(5_000))
    assert (state.made, state.last_ms) == (True, 5_000)


async def test_a_job_that_never_fires_again_is_not_listed(bench: Bench) -> None:
    state = await bench.broker.cron(firing())
    await bench.broker.cron(firing(next_ms=state.now_ms + LONG_MS))
    await bench.broker.cron(firing(state.now_ms + 1))
    assert (await bench.broker.snapshot()).crons == []


async def test_everything_known_goes_a_week_after_the_next_firing(bench: Bench) -> None:
    """A job deleted from the code fires no more, and is forgotten."""
    state = await bench.broker.cron(firing())
    await bench.broker.cron(firing(next_ms=state.now_ms + LONG_MS))
    await bench.broker.cron(firing(fn="other", next_ms=state.now_ms + 2 * LONG_MS))
    for key, after in (("cron:work", LONG_MS), ("cron:other", 2 * LONG_MS)):
        assert after + WEEK_MS - 5_000 < await bench.ttl_ms(key) <= after + WEEK_MS
    left = await bench.ttl_ms("crons")
    assert 2 * LONG_MS + WEEK_MS - 5_000 < left <= 2 * LONG_MS + WEEK_MS
    await bench.assert_nothing_is_left()


async def test_jobs_that_nobody_fires_leave_the_list(bench: Bench) -> None:
    state = await bench.broker.cron(firing(fn="old", next_ms=1))
    assert (await bench.raw("ZRANGE", f"{bench.base}crons", 0, -1)) == []
    await bench.broker.cron(firing(fn="new", next_ms=state.now_ms + LONG_MS))
    assert (await bench.raw("ZRANGE", f"{bench.base}crons", 0, -1)) == [b"new"]


async def test_a_result_that_is_not_kept(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.broker.cron(firing(5_000, keep="0"))
    claimed = await worker.claim_one("c")
    await worker.settle(worker.end(claimed, keep="0"))
    assert "result:c" not in await bench.keys()
    assert not (await bench.broker.cron(firing(5_000, keep="0"))).made
