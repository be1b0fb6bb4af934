"""abort.lua: whatever has not started ends at once; of what runs, the worker is told."""

from __future__ import annotations

import asyncio

import pytest

from tests.broker.bench import LONG_MS, Bench, chain, task

pytestmark = pytest.mark.anyio


async def test_unknown_and_ended_tasks(bench: Bench) -> None:
    worker = await bench.worker()
    assert (await bench.broker.abort("nobody")).word == "missing"
    await bench.enqueue("a")
    await worker.run_one("a")
    aborted = await bench.broker.abort("a")
    assert (aborted.word, aborted.fields, aborted.changes) == ("done", [], [])
    assert (await bench.record("a")).status == "success"


async def test_a_queued_task(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", headers='{"k":"v"}', kind="delayed", due="1")
    aborted = await bench.broker.abort("a")
    assert aborted.word == "aborted"
    priority, fn, made, due, tries, kind, headers, trace, now, queued = aborted.fields
    assert (priority, fn, due, tries, kind, headers, trace) == (
        b"default", b"work", b"1", b"0", b"delayed", b'{"k":"v"}', b"",
    )  # fmt: skip
    assert int(made) <= int(queued) <= int(now)
    record = await bench.record("a")
    assert (record.status, record.reason, record.tries, record.started_ms) == (
        "aborted", "user", 0, 0,
    )  # fmt: skip
    assert await worker.claim() == []
    await bench.assert_nothing_is_left()


async def test_a_scheduled_task(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{LONG_MS}"))
    assert (await bench.broker.abort("a")).word == "aborted"
    assert (await bench.record("a")).status == "aborted"
    assert "due:default" not in await bench.keys()
    await bench.assert_nothing_is_left()


async def test_a_task_that_waits_for_its_next_try(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), f"+{LONG_MS}", trace="tr"))
    aborted = await bench.broker.abort("a")
    assert (aborted.fields[4], aborted.fields[7]) == (b"1", b"tr")
    record = await bench.record("a")
    assert (record.status, record.tries, len(record.ledger)) == ("aborted", 1, 1)
    await bench.assert_nothing_is_left()


async def test_a_blocked_task(bench: Bench) -> None:
    await bench.publish(task("a"), task("b"), task("c", after=["a", "b"]))
    assert (await bench.broker.abort("c")).word == "aborted"
    for task_id in ("a", "b"):
        assert (await bench.seen(task_id)).dependents == set()
    assert not {"blocked:default", "dependencies:c"} & await bench.keys()
    worker = await bench.worker()
    await worker.run_one("a")
    await worker.run_one("b")
    await bench.assert_nothing_is_left()


async def test_dependents_of_an_aborted_task(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(
        task("a"), task("b", then="a"), task("c", then="b"), task("d", otherwise="a", needs=""),
    )  # fmt: skip
    aborted = await bench.broker.abort("a")
    assert {(c.what, c.task_id, c.by) for c in aborted.changes} == {
        ("failed", "b", "a"), ("failed", "c", "b"), ("released", "d", "a"),
    }  # fmt: skip
    assert (await bench.record("b")).text == "task a was aborted"
    await worker.run_one("d")
    await bench.assert_nothing_is_left()


async def test_aborting_a_link_in_the_middle(bench: Bench) -> None:
    worker = await bench.worker()
    links = chain(5)
    await bench.publish(*links)
    await bench.broker.abort(links[2].task_id)
    for link in links[:2]:
        await worker.run_one(link.task_id)
    statuses = [(await bench.record(link.task_id)).status for link in links]
    assert statuses == ["success", "success", "aborted", "failed", "failed"]
    await bench.assert_nothing_is_left()


async def test_the_worker_of_a_running_task_is_told(bench: Bench) -> None:
    worker = await bench.worker()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    ready = asyncio.Event()
    await bench.broker.listen(heard.put_nowait, ready.set)
    await ready.wait()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    assert (await bench.broker.abort("a")).word == "asked"
    assert await heard.get() == b"abort a"
    assert (await worker.renew(claimed)).stop == ["a"]  # if the message was missed
    assert (await bench.broker.abort("a")).word == "asked"
    await worker.settle(worker.end(claimed, "aborted", reason="user"))
    assert (await bench.broker.abort("a")).word == "done"
    await bench.assert_nothing_is_left()


async def test_what_was_done_before_the_abort_was_heard_counts(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    await bench.broker.abort("a")
    assert await worker.settle(worker.end(claimed)) == [1]
    assert (await bench.record("a")).status == "success"


async def test_claim_against_abort(bench: Bench) -> None:
    """Either the abort wins and nothing starts, or the claim does and its worker is asked."""
    worker = await bench.worker()
    words: set[str] = set()
    for n in range(60):
        await bench.enqueue(f"t{n}")
        pair = [worker.claim(), bench.broker.abort(f"t{n}")]
        if n % 2:
            pair.reverse()
        results = dict(zip(["claim", "abort"][:: -1 if n % 2 else 1],
                           await asyncio.gather(*pair), strict=True))  # fmt: skip
        words.add(word := results["abort"].word)
        assert (word, len(results["claim"])) in {("aborted", 0), ("asked", 1)}
        for claimed in results["claim"]:
            await worker.settle(worker.end(claimed, "aborted"))
        assert (await bench.record(f"t{n}")).status == "aborted"
    assert words == {"aborted", "asked"}
    await bench.assert_nothing_is_left()


async def test_racing_aborts_end_a_task_once(bench: Bench) -> None:
    await bench.publish(task("a"), task("b", otherwise="a"))
    aborted = await asyncio.gather(*(bench.broker.abort("a") for _ in range(10)))
    assert sorted(a.word for a in aborted) == ["aborted", *["done"] * 9]
    assert [c.task_id for a in aborted for c in a.changes] == ["b"]


# ------------------------------------------------------------------------------- schedules


async def test_a_schedule_that_has_not_fired(bench: Bench) -> None:
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await bench.publish(task("d", after=["s"]))
    aborted = await bench.broker.abort("s")
    assert (aborted.word, aborted.fields) == ("aborted", [])
    assert [(c.what, c.task_id) for c in aborted.changes] == [("failed", "d")]
    assert (await bench.record("d")).text == "task s was aborted"
    record = await bench.record("s")
    assert (record.status, record.reason, record.fn, record.tries) == ("aborted", "user", "work", 0)
    assert (await bench.broker.abort("s")).word == "done"
    await bench.assert_nothing_is_left()


async def test_a_schedule_whose_first_firing_is_queued(bench: Bench) -> None:
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await bench.becomes_due("s")
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "m")
    assert (await bench.broker.abort("s")).word == "aborted"
    assert (await bench.record("s")).status == "aborted"
    await bench.assert_nothing_is_left()


async def test_a_schedule_whose_first_firing_runs(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await bench.becomes_due("s")
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "m")
    claimed = await worker.claim_one("s")
    assert (await bench.broker.abort("s")).word == "asked"
    assert "schedules" not in await bench.keys()
    await worker.settle(worker.end(claimed, "aborted"))
    await bench.assert_nothing_is_left()
