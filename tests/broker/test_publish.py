"""publish.lua: new -> queued, scheduled or blocked, a whole unit or nothing of it."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ResponseError

from tests.broker.bench import LONG_MS, Bench, chain, task

pytestmark = pytest.mark.anyio


async def test_a_plain_task_is_queued(bench: Bench) -> None:
    assert await bench.publish(task("a", args=b"\x00\xff\n")) == ["queued"]
    seen = await bench.seen("a")
    assert seen.state == "queued"
    assert seen.fields["args"] == b"\x00\xff\n"
    assert seen.number("made") == seen.number("due") > 1_700_000_000_000
    assert await bench.keys() == {"task:a", "stream:default", "priorities"}


async def test_every_field_reaches_the_claim(bench: Bench) -> None:
    worker = await bench.worker()
    headers = '{"traceparent":"00-1-2-03","né":"\\"é\\u2028"}'
    await bench.publish(task("a", headers=headers, kind="delayed", args=b"1"))
    claimed = await worker.claim_one("a")
    assert claimed.headers == headers.encode()
    assert claimed.args == b"1"
    assert claimed.kind == "delayed"
    assert claimed.created_ms == claimed.due_ms <= claimed.started_ms


async def test_a_batch_keeps_its_order(bench: Bench) -> None:
    ids = [f"t{i}" for i in range(1000)]
    published = await bench.broker.publish([[task(task_id)] for task_id in ids])
    assert published.words == ["queued"] * 1000
    assert await bench.waiting() == ids
    worker = await bench.worker()
    assert [claimed.task_id for claimed in await worker.claim(1000)] == ids


async def test_priorities_are_streams(bench: Bench) -> None:
    await bench.publish(task("a", priority="low"), task("b", priority="high"))
    assert {"stream:low", "stream:high"} <= await bench.keys()
    members = await bench.raw("SMEMBERS", f"{bench.base}priorities")
    assert set(members) == {b"low", b"high"}


# ------------------------------------------------------------------------------- delays


@pytest.mark.parametrize("due", [f"+{LONG_MS}", "99999999999999"])
async def test_what_is_due_later_is_scheduled(bench: Bench, due: str) -> None:
    assert await bench.publish(task("a", due=due, kind="delayed")) == ["scheduled"]
    seen = await bench.seen("a")
    assert seen.state == "scheduled"
    score = await bench.raw("ZSCORE", f"{bench.base}due:default", "a")
    assert seen.scheduled_ms == int(float(score)) > seen.number("made")
    if due[0] == "+":
        assert seen.scheduled_ms == seen.number("made") + LONG_MS


@pytest.mark.parametrize("due", ["+0", "1", "1700000000000"])
async def test_what_was_due_already_is_queued_with_that_time(bench: Bench, due: str) -> None:
    worker = await bench.worker()
    assert await bench.publish(task("a", due=due, kind="delayed")) == ["queued"]
    claimed = await worker.claim_one("a")
    assert claimed.due_ms == (claimed.created_ms if due == "+0" else int(due))


async def test_only_an_earlier_moment_is_announced(bench: Bench) -> None:
    heard: list[bytes] = []
    ready = asyncio.Event()
    await bench.broker.listen(heard.append, ready.set)
    await ready.wait()
    await bench.publish(task("later", due=f"+{LONG_MS}"))
    await bench.publish(task("latest", due=f"+{2 * LONG_MS}"))
    await bench.publish(task("sooner", due=f"+{LONG_MS // 2}"))
    done = asyncio.Event()
    bench.broker._subscription.add("done", lambda _: done.set(), ready.set)
    ready.clear()
    await ready.wait()
    await bench.raw("PUBLISH", "done", "")
    await done.wait()
    due = [(await bench.seen(task_id)).scheduled_ms for task_id in ("later", "sooner")]
    assert heard == [f"due {ms}".encode() for ms in due]


# ------------------------------------------------------------------------- safe to repeat


async def test_publishing_again_changes_nothing(bench: Bench) -> None:
    unit = [task("a"), task("b", then="a"), task("c", due=f"+{LONG_MS}")]
    assert await bench.publish(*unit) == ["queued", "blocked", "scheduled"]
    before = [await bench.fields(task_id) for task_id in "abc"]
    assert await bench.publish(*unit) == ["exists"] * 3
    assert [await bench.fields(task_id) for task_id in "abc"] == before
    assert await bench.waiting() == ["a"]
    worker = await bench.worker()
    running = await worker.claim_one("a")
    assert await bench.publish(*unit) == ["exists"] * 3
    await worker.settle(worker.end(running))
    assert await bench.publish(*unit) == ["exists"] * 3
    assert await bench.states("a", "b", "c") == ["done", "queued", "scheduled"]


async def test_publishing_again_what_has_ended_without_a_result(bench: Bench) -> None:
    worker = await bench.worker()
    unkept = task("a", "secret", keep="0")
    await bench.publish(unkept)  # nobody hears the answer to this
    await worker.run_one("a")
    again = unkept._replace(again="1")
    assert await bench.publish(again, task("b", then="a", again="1")) == ["exists", "done"]
    assert await bench.state("a") == ""
    assert await bench.raw("GET", f"{bench.base}result:a") is None
    assert 0 < await bench.ttl_ms("ended:a") <= 60_000
    await bench.raw("DEL", f"{bench.base}ended:a")  # a minute later
    assert await bench.publish(again) == ["queued"]


async def test_a_result_that_is_kept_needs_no_tombstone(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", "kept"), task("b"))
    for task_id in "ab":
        await worker.run_one(task_id)
    assert not [key for key in await bench.keys() if key.startswith("ended:")]


async def test_a_repeating_schedule_exists_too(bench: Bench) -> None:
    again = task("s", due=f"+{LONG_MS}", crontab="* * * * *", tz="UTC", kind="cron")
    assert await bench.publish(again) == ["repeating"]
    assert await bench.publish(again) == ["exists"]
    assert (await bench.seen("s")).state == "scheduled"
    assert await bench.keys() == {"schedules", "schedule:s", "priorities"}


async def test_a_chain_whose_first_answer_was_lost_is_whole(bench: Bench) -> None:
    links = chain(5)
    await bench.publish(*links[:1])  # a shorter unit got through, say by another program
    words = await bench.publish(*links)
    assert words == ["exists", *["blocked"] * 4]
    worker = await bench.worker()
    for link in links:
        await worker.run_one(link.task_id)
    await bench.assert_nothing_is_left()


# --------------------------------------------------------------------------- dependencies


async def test_a_dependent_is_blocked(bench: Bench) -> None:
    await bench.publish(task("a"), task("b"))
    assert await bench.publish(task("c", after=["a", "b"])) == ["blocked"]
    seen = await bench.seen("c")
    assert (seen.state, seen.dependencies, seen.scheduled_ms) == ("blocked", {"a", "b"}, None)
    assert (await bench.seen("a")).dependents == {"c"}
    assert "blocked:default" in await bench.keys()


async def test_a_blocked_task_may_be_waited_for(bench: Bench) -> None:
    assert await bench.publish(*chain(4)) == ["queued", *["blocked"] * 3]


async def test_waiting_for_a_scheduled_or_running_task(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("running")
    await worker.claim_one("running")
    await bench.publish(task("later", due=f"+{LONG_MS}"))
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    for n, dependency in enumerate(["running", "later", "s"]):
        assert await bench.publish(task(f"d{n}", after=[dependency])) == ["blocked"]


async def test_an_unknown_dependency_fails_the_task_at_once(bench: Bench) -> None:
    published = await bench.broker.publish([[task("b", after=["gone"])]])
    assert published.words == ["done"]
    (change,) = published.changes
    assert (change.what, change.task_id, change.by, change.fn) == ("failed", "b", "gone", "work")
    record = await bench.record("b")
    assert (record.status, record.reason, record.tries) == ("failed", "dependency", 0)
    assert record.text == "task gone is not known, or its result has expired"
    await bench.assert_nothing_is_left()


async def test_an_expired_result_is_not_known(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a")
    await bench.raw("DEL", f"{bench.base}result:a")  # its ttl is over
    assert await bench.publish(task("b", then="a")) == ["done"]
    assert "not known" in (await bench.record("b")).text


async def test_waiting_for_oneself_is_waiting_for_nobody_known(bench: Bench) -> None:
    assert await bench.publish(task("a", after=["a"])) == ["done"]
    await bench.assert_nothing_is_left()


async def test_finished_dependencies_are_not_waited_for(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"))
    await worker.run_one("a")
    await worker.run_one("b", value=b"of b")
    assert await bench.publish(task("c", then="b", after=["a"])) == ["queued"]
    assert (await worker.claim_one("c")).input == b"of b"


async def test_links_to_a_finished_dependency_are_its_trace(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"))
    for task_id in "ab":
        await worker.run_one(task_id, trace=f"trace-of-{task_id}")
    await bench.publish(task("c", after=["a", "b"]))
    assert (await worker.claim_one("c")).links == "trace-of-a trace-of-b"


async def test_a_failed_dependency_fails_the_task_at_once(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.fail(await worker.claim_one("a")))
    await bench.enqueue("alive")
    words = await bench.publish(task("b", after=["alive", "a"]), task("c", then="b"))
    assert words == ["done", "done"]
    assert (await bench.record("b")).text == "task a failed"
    assert (await bench.record("c")).reason == "dependency"
    assert (await bench.seen("alive")).dependents == set()
    assert "blocked:default" not in await bench.keys()
    await worker.run_one("alive")
    await bench.assert_nothing_is_left()


async def test_otherwise_after_a_finished_task(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("good"), task("bad"))
    await worker.run_one("good", value=b"of good")
    await worker.settle(worker.fail(await worker.claim_one("bad")))
    words = await bench.publish(
        task("skipped", otherwise="good"),
        task("runs", otherwise="bad"),
        task("lost", otherwise="bad", needs="1"),
    )
    assert words == ["done", "queued", "done"]
    record = await bench.record("skipped")
    assert (record.status, record.reason, record.value) == ("success", "skipped", b"of good")
    # The input of a failed task is gone with it.
    assert (await bench.record("lost")).reason == "dependency"


async def test_a_skipped_fallback_feeds_the_next_link_even_if_its_result_is_not_kept(
    bench: Bench,
) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a", value=b"of a")
    words = await bench.publish(
        task("b", otherwise="a", keep="0"), task("c", then="b"), task("d", then="c")
    )
    assert words == ["done", "queued", "blocked"]
    assert (await worker.claim_one("c")).input == b"of a"


async def test_naming_a_dependency_twice_does_not_lose_its_value(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a", after=["a"]))
    await worker.run_one("a", value=b"of a")
    claimed = await worker.claim_one("b")
    assert claimed.input == b"of a"
    await worker.settle(worker.end(claimed))
    await bench.assert_nothing_is_left()


async def test_a_dependent_of_a_schedule_waits_for_its_first_firing(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await bench.publish(task("early", then="s"))
    await bench.becomes_due("s")
    assert await bench.broker.fire("s", 1, LONG_MS * 10**6, "unused") == "s"
    await bench.publish(task("between", then="s"))
    await worker.run_one("s", value=b"first")
    for task_id in ("early", "between"):
        assert (await worker.claim_one(task_id)).input == b"first"


async def test_a_dependent_of_a_schedule_that_has_fired_takes_its_result(bench: Bench) -> None:
    """Later firings have ids of their own, so it would wait for ever."""
    worker = await bench.worker()
    await bench.publish(task("s", due="1", crontab="@hourly"))
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "unused")
    await worker.run_one("s", value=b"first")
    assert await bench.publish(task("late", then="s")) == ["queued"]
    assert (await worker.claim_one("late")).input == b"first"
    await bench.raw("DEL", f"{bench.base}result:s")
    assert await bench.publish(task("too-late", then="s")) == ["done"]


# ---------------------------------------------------------------------------- large and odd


async def test_a_chain_of_two_thousand(bench: Bench) -> None:
    links = chain(2_000)
    assert await bench.publish(*links) == ["queued", *["blocked"] * 1_999]
    worker = await bench.worker()
    for link in links[:3]:
        await worker.run_one(link.task_id)
    assert (await bench.broker.abort(links[3].task_id)).word == "aborted"
    assert await bench.states(*[link.task_id for link in links]) == ["done"] * 2_000
    await bench.assert_nothing_is_left()


async def test_a_fan_in_of_two_thousand(bench: Bench) -> None:
    ids = [f"in{i}" for i in range(2_000)]
    await bench.broker.publish([[task(task_id)] for task_id in ids])
    assert await bench.publish(task("all", after=ids)) == ["blocked"]
    worker = await bench.worker()
    claimed = await worker.claim(2_000)
    reply = await worker.exchange(*map(worker.end, claimed))
    assert reply.codes == [1] * 2_000
    assert [(change.what, change.task_id) for change in reply.changes] == [("released", "all")]
    await worker.run_one("all")
    await bench.assert_nothing_is_left()


async def test_an_expiry_is_noted(bench: Bench) -> None:
    await bench.publish(task("a", expires_in="5000"))
    fields = await bench.fields("a")
    assert int(fields["till"]) == int(fields["made"]) + 5_000


async def test_what_is_no_json_writes_nothing(bench: Bench) -> None:
    with pytest.raises(ResponseError):
        await bench.call("publish", [1, "a", "work", "default", b"", "{"])
    assert await bench.keys() == set()
