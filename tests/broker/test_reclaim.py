"""exchange.lua, reclaiming: a dead worker's tasks, and those that were handed back."""

from __future__ import annotations

import json

import pytest

from tests.broker.bench import Bench, task

pytestmark = pytest.mark.anyio


async def test_a_lease_that_runs_is_left_alone(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    await worker.claim_one("a")
    reply = await other.exchange(want=1, reclaim=True)
    assert (reply.claimed, reply.more, reply.short) == ([], False, True)


async def test_a_dead_workers_task_runs_again_elsewhere(bench: Bench) -> None:
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    first = await dead.claim_one("a")
    await dead.dies()
    assert await other.claim() == []  # only when it is asked to look
    (second,) = await other.claim(reclaim=True)
    assert (second.task_id, second.message_id) == ("a", first.message_id)
    assert (second.try_number, second.lost_worker) == (2, "w1")
    assert await bench.pending() == {"a": "w2"}
    (entry,) = json.loads(f"[{second.log}]")
    assert (entry["outcome"], entry["worker"], entry["try"]) == ("lost", "w1", 1)
    assert entry["began"] == first.started_ms <= entry["ended"]


async def test_the_late_settle_of_a_reclaimed_task_is_fenced(bench: Bench) -> None:
    late, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(task("a"), task("b", then="a"))
    first = await late.claim_one("a")
    await late.dies()
    (second,) = await other.claim(reclaim=True)
    before = await bench.fields("a")
    for settle in (late.end(first), late.fail(first), late.retry(first), late.hand_back(first)):
        reply = await late.exchange(settle)
        assert (reply.codes, reply.changes) == ([0], [])
        reply = await late.exchange(settle, resent=True)
        assert reply.codes == [0]
    assert await bench.fields("a") == before
    assert await bench.state("b") == "blocked"
    assert await other.settle(other.end(second, value=b"second")) == [1]
    assert await late.settle(late.end(first)) == [0]
    record = await bench.record("a")
    assert (record.value, record.tries, record.worker_id) == (b"second", 2, "w2")
    assert (await other.claim_one("b")).input == b"second"


async def test_a_worker_may_reclaim_its_own(bench: Bench) -> None:
    """It was started again under the same id."""
    worker = await bench.worker("w1")
    await bench.enqueue("a")
    first = await worker.claim_one("a")
    await worker.dies()
    (second,) = await worker.claim(reclaim=True)
    assert (second.try_number, second.lost_worker) == (2, "w1")
    assert await worker.settle(worker.end(first)) == [0]
    assert await worker.settle(worker.end(second)) == [1]


async def test_exhausted_by_dying_workers(bench: Bench) -> None:
    await bench.publish(task("a"), task("b", otherwise="a"))
    for n in (1, 2, 3):
        worker = await bench.worker(f"w{n}")
        (claimed,) = await worker.claim(reclaim=True)
        assert claimed.try_number == n
        await worker.dies()
    last = await bench.worker("last")
    reply = await last.exchange(want=1, reclaim=True)
    (refused,) = reply.refused
    assert (refused.reason, refused.text, refused.tries) == ("exhausted", "3", 3)
    assert [c.task_id for c in reply.claimed] == ["b"]  # released, and there was room for it
    record = await bench.record("a")
    assert (record.status, record.reason, record.tries, record.value) == (
        "failed", "exhausted", 3, b"",
    )  # fmt: skip
    assert [(e["outcome"], e["worker"]) for e in record.ledger] == [
        ("lost", "w1"),
        ("lost", "w2"),
        ("lost", "w3"),
    ]


async def test_exhausted_with_the_last_real_error_kept(bench: Bench) -> None:
    worker, last = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), value=b"first error"))
    await worker.settle(worker.retry(await worker.claim_one("a"), value=b"second error"))
    await worker.claim_one("a")
    await worker.dies()
    assert (await last.exchange(want=1, reclaim=True)).refused[0].reason == "exhausted"
    record = await bench.record("a")
    assert (record.value, record.reason, record.tries) == (b"second error", "exhausted", 3)
    assert [e["outcome"] for e in record.ledger] == ["retried", "retried", "lost"]


async def test_an_error_without_a_value_does_not_hide_the_one_before(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), value=b"can be read"))
    await worker.settle(worker.retry(await worker.claim_one("a"), value=b""))
    assert (await bench.fields("a"))["err"] == "can be read"


async def test_older_ones_come_first_whoever_held_them(bench: Bench) -> None:
    """Handed back, lost and new: in the order they were enqueued, and new ones last."""
    w1, w2, w3 = [await bench.worker(f"w{i}") for i in (1, 2, 3)]
    for i in range(6):
        await bench.enqueue(f"t{i}")
    await w1.claim(2)
    t2, t3 = await w2.claim(2)
    await w2.settle(w2.hand_back(t3), w2.hand_back(t2))
    await w1.dies()
    claimed = await w3.claim(5, reclaim=True)
    assert [c.task_id for c in claimed] == ["t0", "t1", "t2", "t3", "t4"]
    assert [c.lost_worker for c in claimed] == ["w1", "w1", "", "", ""]
    assert [c.try_number for c in claimed] == [2, 2, 1, 1, 1]


async def test_new_ones_of_a_higher_priority_come_before_old_ones_of_a_lower(bench: Bench) -> None:
    dead = await bench.worker("w1", priorities=("high", "low"))
    other = await bench.worker("w2", priorities=("high", "low"))
    await bench.enqueue("low", priority="low")
    await dead.claim()
    await dead.dies()
    await bench.enqueue("high", priority="high")
    reply = await other.exchange(want=1, reclaim=True)
    assert [c.task_id for c in reply.claimed] == ["high"]
    assert reply.more
    reply = await other.exchange(want=2, reclaim=True)
    assert [c.task_id for c in reply.claimed] == ["low"]
    assert not reply.more


async def test_what_is_left_to_reclaim_is_told(bench: Bench) -> None:
    """A worker with few slots must not wait half a lease for the rest of what another left."""
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    for i in range(10):
        await bench.enqueue(f"t{i}")
    await dead.claim(10)
    await dead.dies()
    told: list[tuple[int, bool]] = []
    for _ in range(3):
        reply = await other.exchange(want=4, reclaim=True)
        told.append((len(reply.claimed), reply.more))
    assert told == [(4, True), (4, True), (2, False)]


async def test_dead_ones_are_found_behind_many_that_run(bench: Bench) -> None:
    """One XAUTOCLAIM looks at ten messages for each it may return, which is not far."""
    busy, dead, other = [await bench.worker(f"w{i}") for i in (1, 2, 3)]
    await bench.broker.publish([[task(f"t{i}")] for i in range(12_005)])
    await busy.claim(12_000)
    await dead.claim(5)
    await dead.dies()
    for i in range(5):
        (claimed,) = await other.claim(1, reclaim=True)
        assert claimed.task_id == f"t{12_000 + i}"
    assert await other.claim(1, reclaim=True) == []


async def test_an_abort_of_a_dead_workers_task_ends_it_when_it_is_reclaimed(bench: Bench) -> None:
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "sole")
    await dead.claim_one("a")
    assert (await bench.broker.abort("a")).word == "asked"
    await bench.lease_runs_out("w1", locks=False)
    reply = await other.exchange(want=1, reclaim=True)
    assert reply.claimed == []
    assert [(r.status, r.reason) for r in reply.refused] == [("aborted", "user")]
    await bench.assert_nothing_is_left()


async def test_a_task_that_ended_meanwhile_is_not_run_again(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    await worker.dies()
    await worker.settle(worker.end(claimed))  # late, but nobody had taken it over
    assert await other.claim(reclaim=True) == []
    assert (await bench.record("a")).status == "success"
    await bench.assert_nothing_is_left()


async def test_a_late_renewal_keeps_what_nobody_took(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    await worker.dies()
    assert (await worker.renew(claimed)).lost == []
    assert await other.claim(reclaim=True) == []


@pytest.mark.parametrize("told", [True, False])
async def test_a_lost_attempt_has_its_own_trace_or_none(bench: Bench, *, told: bool) -> None:
    """Never that of the attempt before it."""
    first, second, other = [await bench.worker(f"w{i}") for i in (1, 2, 3)]
    await bench.enqueue("a")
    await first.settle(first.retry(await first.claim_one("a"), trace="trace of try 1"))
    claimed = await second.claim_one("a")
    assert claimed.previous == "trace of try 1"
    if told:
        second.trace = "trace of try 2"
        await second.renew(claimed)
    await second.dies()
    (again,) = await other.claim(reclaim=True)
    assert again.previous == second.trace
    entries = json.loads(f"[{again.log}]")
    assert [entry["trace"] for entry in entries] == ["trace of try 1", second.trace]


async def test_a_running_attempt_does_not_show_the_trace_of_the_one_before(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), trace="trace of try 1"))
    (seen,) = await bench.broker.look(["a"])
    assert seen.text("trace") == "trace of try 1"
    await worker.claim_one("a")
    (seen,) = await bench.broker.look(["a"])
    assert seen.text("trace") == ""
