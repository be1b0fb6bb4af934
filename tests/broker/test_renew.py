"""renew.lua: leases that are still ours are kept, and a worker says that it lives."""

from __future__ import annotations

import json

import pytest

from tests.broker.bench import DEFAULT, LEASE_MS, Bench, task

pytestmark = pytest.mark.anyio


async def test_a_renewed_lease_does_not_run_out(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(task("a"), task("b"))
    a, _ = await worker.claim(2)
    await worker.dies()
    assert await worker.renew(a) == ([], [], False)
    assert [c.task_id for c in await other.claim(5, reclaim=True)] == ["b"]
    assert await worker.settle(worker.end(a)) == [1]


async def test_reserved_messages_are_renewed_too(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    (message,) = (await worker.exchange(reserve=1)).reserved
    await worker.dies()
    assert (await worker.renew(message)).lost == []
    assert await other.claim(reclaim=True) == []


async def test_what_was_handed_back_meanwhile_is_not_taken_again(bench: Bench) -> None:
    """The thread that renews may have asked what is held just before it was released."""
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(task("a"), task("b"))
    messages = (await worker.exchange(reserve=2)).reserved
    await bench.broker.release("w1", messages[:1])
    assert (await worker.renew(*messages)).lost == [("a", 0)]
    assert [c.task_id for c in await other.claim(5, reclaim=True)] == ["a"]


async def test_lost_leases_are_told_by_task_and_try(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(*(task(task_id) for task_id in ("taken", "ended", "reserved", "gone")))
    taken, ended = await worker.claim(2)
    reserved, gone = (await worker.exchange(reserve=2)).reserved
    await worker.settle(worker.end(ended))
    await bench.broker.abort("gone")
    await worker.dies()
    assert {c.task_id for c in await other.claim(5, reclaim=True)} == {"taken", "reserved"}
    renewed = await worker.renew(taken, ended, reserved, gone)
    assert renewed.lost == [("taken", 1), ("ended", 1), ("reserved", 0), ("gone", 0)]
    assert set((await bench.pending()).values()) == {"w2"}


async def test_a_lease_is_told_from_the_one_after_it(bench: Bench) -> None:
    """The retry was due at once, and the same worker runs it again by now."""
    worker = await bench.worker()
    await bench.enqueue("a")
    first = await worker.claim_one("a")
    (second,) = (await worker.exchange(worker.retry(first), want=1)).claimed
    renewed = await worker.renew(first, second)
    assert renewed.lost == [("a", 1)]
    assert first.message_id != second.message_id
    await worker.dies()
    (third,) = await worker.claim(reclaim=True)
    assert third.message_id == second.message_id
    assert (await worker.renew(second, third)).lost == [("a", 2)]


async def test_aborts_that_were_not_heard_are_told(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"))
    claimed = await worker.claim(2)
    await bench.broker.abort("b")
    assert (await worker.renew(*claimed)).stop == ["b"]


async def test_a_unique_lock_is_renewed_by_its_holder_alone(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", "sole")
    claimed = await worker.claim_one("a")
    await bench.raw("PEXPIRE", f"{bench.base}lock:sole", 5_000)
    await worker.renew(claimed)
    assert await bench.ttl_ms("lock:sole") > LEASE_MS
    await bench.raw("SET", f"{bench.base}lock:sole", "another", "PX", 5_000)
    await worker.renew(claimed)
    assert await bench.ttl_ms("lock:sole") <= 5_000


async def test_a_worker_that_lives_is_seen(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "low"))
    health = {"id": "w1", "running": 0}
    await worker.renew(health=json.dumps(health))
    snapshot = await bench.broker.snapshot()
    assert snapshot.workers == [health]
    assert [p.priority for p in snapshot.priorities] == ["high", "low"]
    assert 0 < await bench.ttl_ms("worker:w1") <= LEASE_MS


async def test_the_registry_lives_as_long_as_its_workers(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.raw("PEXPIRE", f"{bench.base}registry:d1", 5_000)
    assert not (await worker.renew()).gone
    assert await bench.ttl_ms("registry:d1") > 5_000
    await bench.raw("DEL", f"{bench.base}registry:d1")
    assert (await worker.renew()).gone


async def test_after_a_flush_everything_is_lost_and_told(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    await bench.raw("FLUSHALL")
    assert await worker.renew(claimed) == ([("a", 1)], [], True)
    assert await bench.keys() == {"workers", "worker:w1", "priorities"}


async def test_thousands_across_priorities(bench: Bench) -> None:
    priorities = ("high", DEFAULT)
    worker = await bench.worker(priorities=priorities)
    other = await bench.worker("w2", priorities=priorities)
    await bench.publish(*(task(f"t{i}", priority=priorities[i % 2]) for i in range(2_500)))
    claimed = await worker.claim(2_500)
    await worker.dies()
    assert await worker.renew(*claimed) == ([], [], False)
    assert await other.claim(10, reclaim=True) == []


async def test_the_next_attempt_knows_the_trace_of_the_one_that_was_lost(bench: Bench) -> None:
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue()
    claimed = await worker.claim_one()
    await worker.renew(claimed)
    worker.trace = "00-a-b-01"
    await worker.renew(claimed)
    await worker.dies()
    (again,) = await other.claim(1, reclaim=True)
    assert (again.previous, again.lost_worker) == ("00-a-b-01", "w1")
    await other.settle(other.end(again))
