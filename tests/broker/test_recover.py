"""recover.lua: what was claimed in an answer that never arrived goes back, its try refunded."""

from __future__ import annotations

import asyncio

import pytest

from streaq.broker.exchange import Claimed, Reserved
from tests.broker.bench import DEFAULT, LONG_MS, Bench, Hand, task

pytestmark = pytest.mark.anyio


async def recover(worker: Hand, *known: Claimed | Reserved) -> int:
    held = [(one.priority, one.message_id) for one in known]
    return await worker.bench.broker.recover(worker.worker_id, worker.priorities, held)


async def test_nothing_to_recover(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", DEFAULT))
    assert await recover(worker) == 0
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    assert await recover(worker, claimed) == 0
    assert await bench.state("a") == "running"


async def test_what_the_worker_does_not_know_of_goes_back(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    for task_id in "abc":
        await bench.enqueue(task_id, "once")
    a, _, _ = await worker.claim(3)
    assert await recover(worker, a) == 2
    assert await bench.pending() == {"a": "w1", "b": "-", "c": "-"}
    fields = await bench.fields("b")
    assert (fields["state"], fields["try"]) == ("queued", "0")
    assert not {"who", "began"} & set(fields)
    again = await other.claim(5, reclaim=True)
    assert [(c.task_id, c.try_number, c.lost_worker) for c in again] == [("b", 1, ""), ("c", 1, "")]
    await other.settle(*map(other.end, again))
    assert await worker.settle(worker.end(a)) == [1]
    await bench.assert_nothing_is_left()


async def test_others_are_told(bench: Bench) -> None:
    worker = await bench.worker()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    ready = asyncio.Event()
    await bench.broker.listen(heard.put_nowait, ready.set)
    await ready.wait()
    await bench.enqueue("a")
    await worker.claim_one("a")
    await recover(worker)
    assert await heard.get() == b"returned"


async def test_reserved_messages_go_back_too(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    for task_id in "ab":
        await bench.enqueue(task_id)
    known, _ = (await worker.exchange(reserve=2)).reserved
    assert await recover(worker, known) == 1
    assert await bench.pending() == {"a": "w1", "b": "-"}
    assert [c.task_id for c in await other.claim(reclaim=True)] == ["b"]


async def test_every_priority_of_the_worker(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "low"))
    await bench.enqueue("a", priority="low")
    await bench.enqueue("b", priority="high")
    await worker.claim(2)
    assert await recover(worker) == 2
    assert (await bench.pending("low"), await bench.pending("high")) == ({"a": "-"}, {"b": "-"})


async def test_messages_of_two_priorities_may_have_the_same_id(bench: Bench) -> None:
    """They do, whenever one call enqueues to both."""
    worker = await bench.worker(priorities=("high", "low"))
    await bench.publish(task("a", priority="high"), task("b", priority="low"))
    a, b = await worker.claim(2)
    assert a.message_id == b.message_id
    assert await recover(worker, a) == 1
    assert await bench.states("a", "b") == ["running", "queued"]


async def test_what_another_worker_holds_is_left_alone(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    await worker.claim_one("a")
    await worker.dies()
    await other.claim(reclaim=True)
    assert await recover(worker) == 0
    assert (await bench.fields("a"))["who"] == "w2"


async def test_the_lock_of_a_task_that_goes_back_is_released(bench: Bench) -> None:
    """It does not run, so another instance may."""
    worker = await bench.worker()
    await bench.publish(task("a", "sole"))
    await worker.claim_one("a")
    assert await recover(worker) == 1
    assert "lock:sole" not in await bench.keys()
    await bench.enqueue("b", "sole")
    reply = await worker.exchange(want=1)
    assert [c.task_id for c in reply.claimed] == ["b"]
    assert reply.refused == []


async def test_the_lock_that_another_instance_holds_is_left_alone(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(task("a", "sole"))
    await worker.claim_one("a")
    await worker.dies()
    await bench.enqueue("b", "sole")
    await other.claim()
    assert await recover(worker) == 1
    assert await bench.raw("GET", f"{bench.base}lock:sole") == b"b"


async def test_a_task_that_ended_leaves_no_message(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.claim_one("a")
    await bench.raw("DEL", f"{bench.base}task:a")
    assert await recover(worker) == 0
    await bench.assert_nothing_is_left()


async def test_an_abort_of_a_recovered_task_still_counts(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.claim_one("a")
    await bench.broker.abort("a")
    await recover(worker)
    reply = await worker.exchange(want=1, reclaim=True)
    assert [r.status for r in reply.refused] == ["aborted"]
    await bench.assert_nothing_is_left()


async def test_a_server_without_the_queue(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.raw("FLUSHALL")
    assert await recover(worker) == 0
    assert await bench.keys() == set()


async def test_an_answer_lost_to_a_dead_connection(bench: Bench) -> None:
    """As it happens: the server did it all, the connection died, the worker starts over."""
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(*(task(f"t{i}", "once") for i in range(20)))
    running = await worker.claim(3)
    ends = [worker.end(c) for c in running[:2]]
    lost = asyncio.create_task(worker.exchange(*ends, want=10))
    await asyncio.sleep(0)
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    reply = await worker.exchange(*ends, resent=True)
    assert set(reply.codes) <= {1, 2}
    await recover(worker, running[2])
    assert {k: v for k, v in (await bench.pending()).items() if v != "-"} == {"t2": "w1"}
    again = await other.claim(30, reclaim=True)
    assert {c.try_number for c in again} == {1}
    assert [c.task_id for c in again] == [f"t{i}" for i in range(3, 20)]


async def test_thousands(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.broker.publish([[task(f"t{i}")] for i in range(3_000)])
    claimed = await worker.claim(3_000)
    assert await recover(worker, *claimed[::2]) == 1_500
    assert len([1 for owner in (await bench.pending()).values() if owner == "-"]) == 1_500


async def test_a_recovered_task_is_not_scheduled_or_expired_by_it(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", expires_in=str(LONG_MS)))
    before = await bench.fields("a")
    await worker.claim_one("a")
    await recover(worker)
    after = await bench.fields("a")
    assert after == {**before, "try": "0"}


async def test_what_goes_back_links_to_the_attempt_before(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.retry(await worker.claim_one("a"), trace="trace of try 1"))
    await worker.claim_one("a")
    assert await recover(worker) == 1
    (claimed,) = await worker.claim(reclaim=True)
    assert (claimed.try_number, claimed.previous) == (2, "trace of try 1")
