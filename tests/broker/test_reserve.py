"""exchange.lua, reserving and starting: messages held without a counted try, and how they start."""

from __future__ import annotations

import asyncio

import pytest

from streaq.broker.exchange import Reserved
from tests.broker.bench import Bench, Hand, task

pytestmark = pytest.mark.anyio


async def reserve(worker: Hand, count: int = 1) -> list[Reserved]:
    return (await worker.exchange(reserve=count)).reserved


async def test_a_reserved_task_is_still_queued(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    (message,) = await reserve(worker)
    assert (message.task_id, message.priority) == ("a", "default")
    assert await bench.pending() == {"a": "w1"}
    fields = await bench.fields("a")
    assert fields["state"] == "queued"
    assert "try" not in fields
    assert "who" not in fields


async def test_what_is_wanted_is_taken_before_what_is_reserved(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "low"))
    await bench.enqueue("low0", priority="low")
    await bench.enqueue("low1", priority="low")
    await bench.enqueue("high0", priority="high")
    reply = await worker.exchange(want=2, reserve=2)
    assert [c.task_id for c in reply.claimed] == ["high0", "low0"]
    assert [r.task_id for r in reply.reserved] == ["low1"]
    assert reply.short


async def test_a_reserved_task_starts_with_its_try_counted(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", args=b"x")
    reply = await worker.exchange(starts=await reserve(worker))
    (claimed,) = reply.claimed
    assert (claimed.task_id, claimed.try_number, claimed.args) == ("a", 1, b"x")
    assert await worker.settle(worker.end(claimed)) == [1]
    await bench.assert_nothing_is_left()


async def test_a_start_meets_the_same_checks_as_a_claim(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("late", expires_in="60000"), task("gone", "nobody"))
    messages = await reserve(worker, 2)
    await bench.raw("HSET", f"{bench.base}task:late", "till", 1)
    reply = await worker.exchange(starts=messages)
    assert [(r.task_id, r.reason) for r in reply.refused] == [
        ("late", "expired"),
        ("gone", "unknown"),
    ]
    await bench.assert_nothing_is_left()


async def test_a_task_aborted_while_it_was_reserved_does_not_start(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    messages = await reserve(worker)
    assert (await bench.broker.abort("a")).word == "aborted"
    reply = await worker.exchange(starts=messages)
    assert (reply.claimed, reply.refused) == ([], [])
    assert (await bench.record("a")).status == "aborted"
    await bench.assert_nothing_is_left()


async def test_a_reserved_task_of_a_dead_worker_is_reclaimed_with_its_tries(bench: Bench) -> None:
    dead, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "once")
    await reserve(dead)
    assert await other.claim(reclaim=True) == []
    await dead.dies()
    (claimed,) = await other.claim(reclaim=True)
    assert (claimed.try_number, claimed.lost_worker) == (1, "")


async def test_a_paused_worker_does_not_take_back_what_another_runs(bench: Bench) -> None:
    """It was silent for a lease with a task reserved; then it wakes and wants to start it. With
    one try, it would even have failed a task that is well and running."""
    paused, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "once")
    messages = await reserve(paused)
    await paused.dies()
    (running,) = await other.claim(reclaim=True)
    reply = await paused.exchange(starts=messages)
    assert (reply.claimed, reply.refused) == ([], [])
    assert await bench.pending() == {"a": "w2"}
    assert await other.settle(other.end(running)) == [1]
    assert (await bench.record("a")).worker_id == "w2"
    await bench.assert_nothing_is_left()


async def test_a_start_of_a_message_that_was_handed_back_takes_it_again(bench: Bench) -> None:
    """A blocking read was answered while its worker recovered from a lost connection."""
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a", "once")
    messages = await reserve(worker)
    assert await bench.broker.recover("w1", ["default"], []) == 1
    assert await bench.pending() == {"a": "-"}
    (claimed,) = (await worker.exchange(starts=messages)).claimed
    # Nobody else may see it as handed back any more.
    assert await other.claim(reclaim=True) == []
    assert await bench.pending() == {"a": "w1"}
    assert await worker.settle(worker.end(claimed)) == [1]
    await bench.assert_nothing_is_left()


async def test_of_two_that_hold_a_message_one_starts_it(bench: Bench) -> None:
    workers = [await bench.worker(f"w{i}") for i in range(4)]
    await bench.enqueue("a", "once")
    messages = await reserve(workers[0])
    replies = await asyncio.gather(*(w.exchange(starts=messages) for w in workers))
    started = [c for reply in replies for c in reply.claimed]
    assert len(started) == 1
    assert not any(reply.refused for reply in replies)


async def test_starting_renews_the_lease(bench: Bench) -> None:
    """The message may have been reserved for almost a lease."""
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    messages = await reserve(worker)
    await worker.dies()  # its lease, not the worker
    assert len((await worker.exchange(starts=messages)).claimed) == 1
    assert await other.claim(reclaim=True) == []


async def test_a_message_that_no_group_remembers_is_not_started(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    messages = await reserve(worker)
    await bench.raw("XGROUP", "DESTROY", f"{bench.base}stream:default", "workers")
    assert (await worker.exchange(starts=messages)).claimed == []
    assert [c.try_number for c in await worker.claim()] == [1]
    assert (await worker.exchange(starts=messages)).claimed == []


async def test_reserving_needs_room_for_nothing_else(bench: Bench) -> None:
    worker = await bench.worker()
    for i in range(5):
        await bench.enqueue(f"t{i}")
    assert [r.task_id for r in await reserve(worker, 3)] == ["t0", "t1", "t2"]
    reply = await worker.exchange(want=1, reserve=1)
    assert [c.task_id for c in reply.claimed] == ["t3"]
    assert [r.task_id for r in reply.reserved] == ["t4"]
    assert not reply.short


async def test_a_blocking_read_reserves(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "low"))
    reading = asyncio.create_task(bench.broker.read("w1", ["high", "low"]))
    await bench.until_blocked(1)
    await bench.enqueue("a", priority="low")
    (message,) = await reading
    assert (message.task_id, message.priority) == ("a", "low")
    assert (await worker.exchange(starts=[message])).claimed[0].try_number == 1


async def test_one_message_wakes_one_reader(bench: Bench) -> None:
    readers: list[asyncio.Task[list[Reserved]]] = []
    for i in range(5):
        await bench.worker(f"w{i}")
        readers.append(asyncio.create_task(bench.broker.read(f"w{i}", ["default"])))
    await bench.until_blocked(5)
    await bench.enqueue("a")
    done, waiting = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(waiting)) == (1, 4)
    await bench.enqueue("b")
    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(waiting)) == (1, 3)
    for reader in waiting:
        reader.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
