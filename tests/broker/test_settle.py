"""exchange.lua, settling: running to done, scheduled or queued, by who holds the lease."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.broker.bench import LONG_MS, Bench, Options, task

pytestmark = pytest.mark.anyio


async def published(bench: Bench, *task_ids: str) -> asyncio.Queue[bytes]:
    """What is published for these tasks from now on."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    for task_id in task_ids:
        ready = asyncio.Event()
        channel = bench.broker.keys.done(task_id)
        bench.broker._subscription.add(channel, heard.put_nowait, ready.set)
        await ready.wait()
    return heard


# --------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("status", ["success", "failed", "aborted"])
async def test_an_end_stores_and_publishes_one_result(bench: Bench, status: str) -> None:
    worker = await bench.worker()
    heard = await published(bench, "a")
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    value = b"\n" + bytes(range(256))
    end = worker.end(claimed, status, reason="why", value=value, text="what", trace="tr")
    assert await worker.settle(end) == [1]
    record = await bench.record("a")
    assert (record.status, record.reason, record.value, record.text, record.trace) == (
        status, "why", value, "what", "tr",
    )  # fmt: skip
    assert (record.fn, record.task_id, record.tries, record.worker_id) == ("work", "a", 1, "w1")
    assert record.created_ms <= record.enqueued_ms <= record.started_ms < record.finished_ms
    (stored,) = await bench.broker.fetch_results(["a"])
    assert await heard.get() == stored
    await bench.assert_nothing_is_left()


async def test_a_result_is_kept_for_as_long_as_was_asked(bench: Bench) -> None:
    worker = await bench.worker()
    for fn in ("work", "secret", "kept"):
        await bench.enqueue(fn, fn)
        await worker.run_one(fn)
    keys = await bench.keys()
    assert 0 < await bench.ttl_ms("result:work") <= 300_000
    assert "result:secret" not in keys
    assert await bench.ttl_ms("result:kept") == -1
    assert await bench.broker.list_ids("done", 10, []) == ["kept", "work"]
    assert await bench.ttl_ms("done") > 300_000
    await bench.raw("DEL", f"{bench.base}result:kept")
    await bench.assert_nothing_is_left()


async def test_an_unkept_result_still_reaches_who_waits_and_who_depends(bench: Bench) -> None:
    worker = await bench.worker()
    heard = await published(bench, "a")
    await bench.publish(task("a", "secret"), task("b", then="a"))
    await worker.run_one("a", value=b"of a")
    assert (await heard.get()).endswith(b"\nof a")
    assert (await worker.claim_one("b")).input == b"of a"


async def test_the_list_of_what_ended_lives_as_long_as_its_longest_result(bench: Bench) -> None:
    worker = await bench.worker(functions={"work": Options(), "long": Options(keep_ms=LONG_MS)})
    for task_id, fn in (("a", "work"), ("b", "long"), ("c", "work")):
        await bench.enqueue(task_id, fn)
        await worker.run_one(task_id)
    assert LONG_MS - 5_000 < await bench.ttl_ms("done") <= LONG_MS


async def test_settles_of_one_exchange_are_answered_in_their_order(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    for i in range(6):
        await bench.enqueue(f"t{i}")
    t0, t1, t2, t3, t4 = await worker.claim(5)
    await worker.dies()
    await other.claim(2, reclaim=True)
    reply = await worker.exchange(
        worker.retry(t4), worker.end(t2), worker.retry(t1), worker.end(t0), worker.hand_back(t3),
        want=1,
    )  # fmt: skip
    assert reply.codes == [1, 1, 0, 0, 1]
    assert [c.task_id for c in reply.claimed] == ["t5"]
    assert await bench.states("t0", "t1", "t2", "t3", "t4") == [
        "running", "running", "done", "queued", "queued",
    ]  # fmt: skip


async def test_an_end_and_its_dependents_start_go_in_one_exchange(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a"))
    claimed = await worker.claim_one("a")
    reply = await worker.exchange(worker.end(claimed), want=1)
    assert [c.task_id for c in reply.claimed] == ["b"]


async def test_thousands_are_settled_at_once(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.broker.publish([[task(f"t{i}")] for i in range(5_000)])
    claimed = await worker.claim(5_000)
    assert await worker.settle(*map(worker.end, claimed)) == [1] * 5_000
    await bench.assert_nothing_is_left()


# ------------------------------------------------------------------------------------ fencing


async def test_only_the_holder_of_the_lease_settles(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    before = await bench.fields("a")
    assert await other.settle(other.end(claimed)) == [0]
    assert await worker.settle(worker.end(claimed, try_number=2)) == [0]
    assert await worker.settle(worker.end(claimed._replace(message_id=b"1-1"))) == [0]
    assert await worker.settle(worker.end(claimed._replace(task_id="b"))) == [0]
    assert await bench.fields("a") == before
    assert await worker.settle(worker.end(claimed)) == [1]
    assert await worker.settle(worker.end(claimed)) == [0]


async def test_a_second_attempt_of_the_same_worker_fences_the_first(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    first = await worker.claim_one("a")
    await worker.settle(worker.retry(first))
    second = await worker.claim_one("a")
    assert await worker.settle(worker.end(first, value=b"first")) == [0]
    assert await worker.settle(worker.end(second, value=b"second")) == [1]
    assert (await bench.record("a")).value == b"second"


async def test_a_fenced_settle_leaves_the_lock_alone(bench: Bench) -> None:
    late, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "sole")
    first = await late.claim_one("a")
    await bench.lease_runs_out("w1", locks=False)
    await other.claim(reclaim=True)
    assert await late.settle(late.end(first)) == [0]
    assert await bench.raw("GET", f"{bench.base}lock:sole") == b"a"


async def test_racing_settles_give_one_result(bench: Bench) -> None:
    worker = await bench.worker()
    heard = await published(bench, "a")
    await bench.publish(task("a"), task("b", then="a"))
    claimed = await worker.claim_one("a")
    ends = [worker.end(claimed, value=b"%d" % i) for i in range(20)]
    replies = await asyncio.gather(*(worker.exchange(end) for end in ends))
    (winner,) = [i for i, reply in enumerate(replies) if reply.codes == [1]]
    assert (await bench.record("a")).value == b"%d" % winner
    assert [c.task_id for reply in replies for c in reply.changes] == ["b"]
    await worker.run_one("b")
    assert heard.qsize() == 1


# ---------------------------------------------------------------------- answers that were lost


@pytest.mark.parametrize("action", ["end", "fail", "retry", "retry later", "hand_back"])
async def test_a_resent_settle_finds_that_it_was_settled(bench: Bench, action: str) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    name, _, later = action.partition(" ")
    settle = getattr(worker, name)(claimed, **({"when": f"+{LONG_MS}"} if later else {}))
    assert await worker.settle(settle) == [1]
    before = await bench.fields("a"), await bench.keys(), await bench.pending()
    assert await worker.settle(settle, resent=True) == [2]
    assert await worker.settle(settle) == [0]
    assert (await bench.fields("a"), await bench.keys(), await bench.pending()) == before


async def test_a_resent_settle_of_a_task_without_a_result(bench: Bench) -> None:
    worker, other = await bench.worker("w:1"), await bench.worker("x:1")
    await bench.enqueue("a", "secret")
    claimed = await worker.claim_one("a")
    end = worker.end(claimed, value=b"secret")
    await worker.settle(end)
    assert await worker.settle(end, resent=True) == [2]
    assert await other.settle(end, resent=True) == [0]
    tombstone = await bench.raw("GET", f"{bench.base}ended:a")
    assert b"secret" not in tombstone.replace(
        b"\nsecret\n", b"", 1
    )  # the function's name, not the value
    await bench.assert_nothing_is_left()


async def test_a_resent_settle_that_never_arrived_settles(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    assert await worker.settle(worker.end(claimed), resent=True) == [1]


async def test_a_resent_end_of_a_task_that_came_to_another_end_is_fenced(bench: Bench) -> None:
    late, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    first = await late.claim_one("a")
    await late.dies()
    (second,) = await other.claim(reclaim=True)
    await other.settle(other.end(second))
    assert await late.settle(late.end(first), resent=True) == [0]


async def test_a_resent_settle_does_not_take_anothers_return_for_its_own(bench: Bench) -> None:
    """Reclaimed and handed back, the task has the tries again that the first attempt had."""
    late, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    first = await late.claim_one("a")
    await late.dies()
    (second,) = await other.claim(reclaim=True)
    await other.settle(other.hand_back(second))
    for settle in (late.end(first), late.retry(first), late.hand_back(first)):
        assert await late.settle(settle, resent=True) == [0]
    (third,) = await other.claim(reclaim=True)
    assert third.try_number == 2


async def test_a_resent_exchange_with_its_claims_lost(bench: Bench) -> None:
    """The whole story: settle and claim arrive, the answer does not."""
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"), task("c", then="a"))
    claimed = await worker.claim_one("a")
    lost = await worker.exchange(worker.end(claimed), want=2)  # nobody reads this
    assert len(lost.claimed) == 2
    reply = await worker.exchange(worker.end(claimed), resent=True)
    assert (reply.codes, reply.changes) == ([2], [])
    assert await bench.broker.recover("w1", ["default"], []) == 2
    again = await worker.claim(2, reclaim=True)
    assert [(c.task_id, c.try_number) for c in again] == [("b", 1), ("c", 1)]
    await worker.settle(*map(worker.end, again))
    await bench.assert_nothing_is_left()


# ------------------------------------------------------------------------------------- retries


async def test_a_retry_that_is_due_is_queued_again_at_the_end(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"))
    first = await worker.claim_one("a")
    reply = await worker.exchange(worker.retry(first, trace="tr"))
    assert reply.codes == [1]
    assert await bench.waiting() == ["b", "a"]
    assert await bench.pending() == {}
    fields = await bench.fields("a")
    assert not {"who", "began"} & set(fields)
    assert (fields["state"], fields["try"], fields["kind"]) == ("queued", "1", "retry")
    _, second = await worker.claim(2)
    assert (second.task_id, second.try_number, second.previous, second.kind) == (
        "a", 2, "tr", "retry",
    )  # fmt: skip
    assert second.due_ms == reply.now_ms
    (entry,) = json.loads(f"[{second.log}]")
    assert (entry["outcome"], entry["error"], entry["trace"], entry["try"], entry["worker"]) == (
        "retried", "StreaqRetry: again", "tr", 1, "w1",
    )  # fmt: skip


@pytest.mark.parametrize("when", [f"+{LONG_MS}", "99999999999999"])
async def test_a_retry_that_is_due_later_is_scheduled(bench: Bench, when: str) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    reply = await worker.exchange(worker.retry(await worker.claim_one("a"), when))
    seen = await bench.seen("a")
    assert seen.state == "scheduled"
    expected = reply.now_ms + LONG_MS if when[0] == "+" else int(when)
    assert seen.scheduled_ms == expected
    assert "msg" not in seen.fields
    assert await bench.waiting() == []
    await bench.becomes_due("a")
    await bench.broker.tick(10, ["default"])
    assert (await worker.claim_one("a")).try_number == 2


async def test_a_retry_of_long_ago_is_due_now(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    reply = await worker.exchange(worker.retry(await worker.claim_one("a"), "1000"), want=1)
    assert reply.claimed[0].due_ms == reply.now_ms


async def test_a_retried_task_keeps_its_dependents_waiting(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a"))
    reply = await worker.exchange(worker.retry(await worker.claim_one("a")))
    assert reply.changes == []
    assert await bench.state("b") == "blocked"
    await worker.run_one("a")
    await worker.run_one("b")
    await bench.assert_nothing_is_left()


async def test_the_ledger_has_every_attempt_in_order_and_at_most_twenty(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", "always")
    for n in range(1, 26):
        claimed = await worker.claim_one("a")
        await worker.settle(worker.retry(claimed, text=f'error {n} \n"é"'))
    await worker.run_one("a")
    ledger = (await bench.record("a")).ledger
    assert [entry["error"] for entry in ledger] == [f'error {n} \n"é"' for n in range(6, 26)]
    assert [entry["try"] for entry in ledger] == list(range(6, 26))


# ------------------------------------------------------------------- what is handed back


async def test_a_returned_task_is_there_for_others_at_once_with_its_try(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    ready = asyncio.Event()
    await bench.broker.listen(heard.put_nowait, ready.set)
    await ready.wait()
    await bench.enqueue("a", "once")
    assert await worker.settle(worker.hand_back(await worker.claim_one("a"))) == [1]
    assert await heard.get() == b"returned"
    assert await bench.pending() == {"a": "-"}
    fields = await bench.fields("a")
    assert (fields["state"], fields["try"]) == ("queued", "0")
    (claimed,) = await other.claim(reclaim=True)
    assert (claimed.try_number, claimed.lost_worker) == (1, "")
    assert [e["outcome"] for e in json.loads(f"[{claimed.log}]")] == ["returned"]
    await other.settle(other.end(claimed))
    await bench.assert_nothing_is_left()


@pytest.mark.parametrize("began", [True, False])
async def test_the_time_that_a_returned_task_ran_is_no_waiting(
    bench: Bench, *, began: bool
) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", due="1000"))
    for _ in range(2):
        (claimed,) = await worker.claim(reclaim=True)
        reply = await worker.exchange(worker.hand_back(claimed, when="+0" if began else ""))
    (claimed,) = await worker.claim(reclaim=True)
    first_due = (reply.now_ms, 1_000) if began else (1_000, 0)
    assert (claimed.due_ms, claimed.first_due_ms) == first_due


async def test_a_returned_task_is_not_late_for_having_run(bench: Bench) -> None:
    """A deploy would end a cron job that ran for longer than it may be late."""
    worker = await bench.worker()
    await bench.enqueue("a", "punctual")
    claimed = await worker.claim_one("a")
    await bench.raw("HSET", f"{bench.base}task:a", "due", 1_000)  # as if it had begun long ago
    await worker.settle(worker.hand_back(claimed, when="+0"))
    (again,) = await worker.claim(reclaim=True)
    assert again.task_id == "a"


async def test_a_returned_task_that_began_expires_no_more(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", expires_in="1000"), task("b", expires_in="1000"))
    a, b = await worker.claim(2)
    for task_id in "ab":
        await bench.raw("HSET", f"{bench.base}task:{task_id}", "till", 1)
    await worker.settle(worker.hand_back(a, when="+0"), worker.hand_back(b))
    reply = await worker.exchange(want=2, reclaim=True)
    assert [c.task_id for c in reply.claimed] == ["a"]
    assert [(r.task_id, r.reason) for r in reply.refused] == [("b", "expired")], "it never began"


async def test_an_attempt_that_never_began_has_no_trace_but_the_next_one_knows_one(
    bench: Bench,
) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), trace="trace of try 1"))
    claimed = await worker.claim_one("a")
    await worker.settle(worker.hand_back(claimed))
    (claimed,) = await worker.claim(reclaim=True)
    assert claimed.previous == "trace of try 1"
    assert [e["trace"] for e in json.loads(f"[{claimed.log}]")] == ["trace of try 1", ""]
    await worker.settle(worker.hand_back(claimed, when="+0", trace="trace of try 2"))
    (claimed,) = await worker.claim(reclaim=True)
    assert claimed.previous == "trace of try 2"


async def test_a_returned_task_can_be_aborted(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", "sole")
    await worker.settle(worker.hand_back(await worker.claim_one("a")))
    assert (await bench.broker.abort("a")).word == "aborted"
    await bench.assert_nothing_is_left()


async def test_an_abort_that_a_return_overtook_still_counts(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    assert (await bench.broker.abort("a")).word == "asked"
    await worker.settle(worker.hand_back(claimed))
    reply = await worker.exchange(want=1, reclaim=True)
    assert [r.status for r in reply.refused] == ["aborted"]
    await bench.assert_nothing_is_left()


async def test_an_abort_that_a_retry_overtook_ends_the_task_at_once(bench: Bench) -> None:
    """Not after the hour that the retry asked for."""
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", otherwise="a"))
    claimed = await worker.claim_one("a")
    assert (await bench.broker.abort("a")).word == "asked"
    await worker.settle(worker.retry(claimed, f"+{LONG_MS}"))
    reply = await worker.exchange(want=1)
    assert [r.status for r in reply.refused] == ["aborted"]
    assert (await bench.record("a")).status == "aborted"


# --------------------------------------------------------------------------------- unique locks


async def test_the_second_of_two_unique_tasks_fails(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", "sole"), task("b", "sole"), task("c", "work"))
    reply = await worker.exchange(want=3)
    assert [c.task_id for c in reply.claimed] == ["a", "c"]
    (refused,) = reply.refused
    assert (refused.task_id, refused.reason, refused.text) == ("b", "unique", "a")
    assert (await bench.record("b")).text == "a"
    assert await bench.raw("GET", f"{bench.base}lock:sole") == b"a"
    assert 60_000 < await bench.ttl_ms("lock:sole") <= 120_000


@pytest.mark.parametrize("action", ["end", "fail", "retry", "hand_back"])
async def test_every_settle_releases_the_lock(bench: Bench, action: str) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", "sole"))
    claimed = await worker.claim_one("a")
    await bench.enqueue("b", "sole")
    reply = await worker.exchange(getattr(worker, action)(claimed), want=1)
    assert [c.task_id for c in reply.claimed] == ["b"]
    assert await bench.raw("GET", f"{bench.base}lock:sole") == b"b"


async def test_a_reclaimed_unique_task_has_its_lock_already(bench: Bench) -> None:
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "sole")
    await dead.claim_one("a")
    await bench.lease_runs_out("w1", locks=False)
    await bench.enqueue("b", "sole")
    reply = await other.exchange(want=2, reclaim=True)
    assert [(c.task_id, c.try_number) for c in reply.claimed] == [("a", 2)]
    assert [(r.task_id, r.reason) for r in reply.refused] == [("b", "unique")]
    await other.settle(other.end(reply.claimed[0]))
    await bench.assert_nothing_is_left()


async def test_a_reclaimed_unique_task_whose_lock_ran_out_yields(bench: Bench) -> None:
    """Another instance runs meanwhile: two at once must not be."""
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "sole")
    await dead.claim_one("a")
    await dead.dies()
    await bench.enqueue("b", "sole")
    assert [c.task_id for c in await other.claim()] == ["b"]
    reply = await other.exchange(want=1, reclaim=True)
    assert [(r.task_id, r.reason, r.text) for r in reply.refused] == [("a", "unique", "b")]
    assert await bench.raw("GET", f"{bench.base}lock:sole") == b"b"


@pytest.mark.parametrize("why", ["exhausted", "aborted"])
async def test_a_reclaimed_unique_task_that_may_not_run_unlocks(bench: Bench, why: str) -> None:
    functions = {"sole": Options(tries=1, unique=True)}
    dead, other = await bench.worker("w1", functions), await bench.worker("w2", functions)
    await bench.enqueue("a", "sole")
    await dead.claim_one("a")
    if why == "aborted":
        await bench.broker.abort("a")
    await bench.lease_runs_out("w1", locks=False)
    await bench.enqueue("b", "sole")
    reply = await other.exchange(want=1, reclaim=True)
    assert [r.task_id for r in reply.refused] == ["a"]
    assert [c.task_id for c in reply.claimed] == ["b"]


# ----------------------------------------------------------------------------------- cron jobs


async def test_a_cron_jobs_success_is_noted(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.raw("HSET", f"{bench.base}cron:work", "tab", "* * * * *")
    await bench.enqueue("a")
    reply = await worker.run_one("a", flags="c")
    ok = await bench.raw("HGET", f"{bench.base}cron:work", "ok")
    assert int(ok) == reply.now_ms


async def test_a_success_leaves_no_trace_of_a_cron_job_that_is_forgotten(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a", flags="c")
    await bench.assert_nothing_is_left()


async def test_the_first_due_time_stays_known_through_retries(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    first = await worker.claim_one("a")
    assert first.first_due_ms == 0
    await worker.settle(worker.retry(first, when="1000"))
    second = await worker.claim_one("a")
    assert second.first_due_ms == first.due_ms
    await worker.settle(worker.retry(second))
    third = await worker.claim_one("a")
    assert third.first_due_ms == first.due_ms
    await worker.settle(worker.end(third))
