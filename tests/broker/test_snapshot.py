"""snapshot.lua: the whole queue at a glance."""

from __future__ import annotations

import json

import pytest

from streaq.broker.inspect import PrioritySnapshot
from streaq.broker.link import CronFiring
from tests.broker.bench import DEFAULT, LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def look(bench: Bench, priority: str = DEFAULT) -> PrioritySnapshot:
    snapshot = await bench.broker.snapshot()
    (found,) = [p for p in snapshot.priorities if p.priority == priority]
    return found


def counts(seen: PrioritySnapshot) -> tuple[int, int, int, int]:
    return seen.depth, seen.scheduled, seen.blocked, seen.running


async def test_an_empty_queue(bench: Bench) -> None:
    snapshot = await bench.broker.snapshot()
    assert (snapshot.priorities, snapshot.workers, snapshot.crons, snapshot.repeating) == (
        [], [], [], 0,
    )  # fmt: skip
    assert snapshot.now_ms > 1_700_000_000_000


async def test_counts_before_any_worker_came(bench: Bench) -> None:
    await bench.publish(
        task("a"), task("b"), task("c", after=["a"]), task("d", due=f"+{LONG_MS}"),
        task("e", priority="high"),
    )  # fmt: skip
    assert counts(await look(bench)) == (2, 1, 1, 0)
    assert counts(await look(bench, "high")) == (1, 0, 0, 0)
    snapshot = await bench.broker.snapshot()
    assert snapshot.size(include_scheduled=False) == 3
    assert snapshot.size(include_scheduled=True) == 4


async def test_counts_through_a_life(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(*(task(f"t{i}") for i in range(5)))
    t0, t1, t2 = await worker.claim(3)
    assert counts(await look(bench)) == (2, 0, 0, 3)
    await worker.settle(worker.end(t0), worker.hand_back(t1), worker.retry(t2, f"+{LONG_MS}"))
    assert counts(await look(bench)) == (3, 1, 0, 0)
    await worker.exchange(want=1, reserve=1)
    assert counts(await look(bench)) == (1, 1, 0, 2)  # what is reserved has a worker
    await worker.dies()
    assert counts(await look(bench)) == (1, 1, 0, 2)  # until somebody takes it over
    assert await bench.broker.recover("w1", [DEFAULT], []) == 2
    assert counts(await look(bench)) == (3, 1, 0, 0)


async def enqueue_long_ago(bench: Bench, **due_ms: int) -> None:
    """Tasks that were made when they were due."""
    await bench.publish(*(task(task_id, due=str(at)) for task_id, at in due_ms.items()))
    for task_id, at in due_ms.items():
        await bench.raw("HSET", f"{bench.base}task:{task_id}", "made", at)


async def test_the_oldest_that_waits_is_told(bench: Bench) -> None:
    worker = await bench.worker()
    assert (await look(bench)).oldest_due_ms is None
    await enqueue_long_ago(bench, a=1_000, b=2_000)
    assert (await look(bench)).oldest_due_ms == 1_000
    a = await worker.claim_one("a")
    assert (await look(bench)).oldest_due_ms == 2_000
    b = await worker.claim_one("b")
    assert (await look(bench)).oldest_due_ms is None
    await worker.settle(worker.hand_back(b))
    assert (await look(bench)).oldest_due_ms == 2_000
    await worker.settle(worker.hand_back(a))
    assert (await look(bench)).oldest_due_ms == 1_000


async def test_what_is_due_and_not_yet_moved_counts_as_waiting(bench: Bench) -> None:
    """Or a queue whose schedulers are all dead would look well."""
    await bench.publish(task("a", due=f"+{LONG_MS}"))
    assert (await look(bench)).oldest_due_ms is None
    await bench.becomes_due("a", 500)
    await bench.raw("HSET", f"{bench.base}task:a", "made", 400)
    assert (await look(bench)).oldest_due_ms == 500


async def test_nothing_waits_for_longer_than_it_has_been_there(bench: Bench) -> None:
    """Whoever schedules a task for yesterday wakes up nobody."""
    await bench.publish(task("a", due="1000"))
    assert (await look(bench)).oldest_due_ms == int((await bench.fields("a"))["made"])


async def test_what_was_moved_late_is_the_oldest_behind_what_came_before(bench: Bench) -> None:
    worker = await bench.worker()
    await enqueue_long_ago(bench, new=9_000)
    await bench.publish(task("late", due=f"+{LONG_MS}"), task("later", due=f"+{LONG_MS}"))
    for task_id, at in (("late", 1_000), ("later", 2_000)):
        await bench.becomes_due(task_id, at)
        await bench.raw("HSET", f"{bench.base}task:{task_id}", "made", 1)
    assert (await look(bench)).oldest_due_ms == 1_000
    await bench.call("tick", [100, 1, DEFAULT])
    assert (await look(bench)).oldest_due_ms == 1_000
    assert await bench.ttl_ms(f"late:{DEFAULT}") > 0
    new, late = await worker.claim(2)
    assert (await look(bench)).oldest_due_ms == 2_000
    await worker.settle(worker.end(new), worker.retry(late, "+0"))
    later = await worker.claim_one("later")
    retried = await worker.claim_one("late")
    assert (await look(bench)).oldest_due_ms is None
    await worker.settle(worker.end(later), worker.end(retried))
    assert f"late:{DEFAULT}" not in await bench.keys()


async def test_live_workers_alone(bench: Bench) -> None:
    w1, w2 = await bench.worker("w1"), await bench.worker("w2")
    await w1.renew(health=json.dumps({"id": "w1"}))
    await w2.renew(health=json.dumps({"id": "w2"}))
    assert sorted(w["id"] for w in (await bench.broker.snapshot()).workers) == ["w1", "w2"]
    await bench.raw("DEL", f"{bench.base}worker:w1")
    assert [w["id"] for w in (await bench.broker.snapshot()).workers] == ["w2"]
    await bench.raw("ZADD", f"{bench.base}workers", 1, "w2")
    assert (await bench.broker.snapshot()).workers == []


async def test_cron_jobs(bench: Bench) -> None:
    worker = await bench.worker()
    following = 99_999_999_999_999
    await bench.broker.cron(
        CronFiring("work", "* * * * * UTC", 5_000, following, 7, "c", DEFAULT, b"", "", "0", 4_999)
    )
    (cron,) = (await bench.broker.snapshot()).crons
    assert (cron.name, cron.last_success_ms, cron.next_ms, cron.missed, cron.crontab) == (
        "work", None, following, 7, "* * * * * UTC",
    )  # fmt: skip
    reply = await worker.run_one("c", flags="c")
    (cron,) = (await bench.broker.snapshot()).crons
    assert cron.last_success_ms == reply.now_ms


async def test_repeating_schedules_are_counted(bench: Bench) -> None:
    for i in range(3):
        await bench.publish(task(f"s{i}", due=f"+{LONG_MS}", crontab="@hourly"))
    assert (await bench.broker.snapshot()).repeating == 3


async def test_a_queue_whose_group_is_gone(bench: Bench) -> None:
    await bench.worker()
    await enqueue_long_ago(bench, a=1_000)
    await bench.raw("XGROUP", "DESTROY", f"{bench.base}stream:default", "workers")
    seen = await look(bench)
    assert (counts(seen), seen.oldest_due_ms) == ((1, 0, 0, 0), 1_000)


async def test_what_a_dead_worker_ran_waits(bench: Bench) -> None:
    """Or nothing would start a worker to take it over, where depth decides how many there are."""
    dead, alive = await bench.worker("w1"), await bench.worker("w2")
    await enqueue_long_ago(bench, a=1_000, b=2_000, c=3_000)
    await alive.claim_one("a")
    await dead.claim(2)
    assert counts(await look(bench)) == (0, 0, 0, 3)
    await bench.raw("ZADD", f"{bench.base}workers", 7_000, "w1")
    seen = await look(bench)
    assert (counts(seen), seen.oldest_due_ms) == ((2, 0, 0, 1), 7_000)


async def test_what_is_prefetched_waits(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", DEFAULT))
    await worker.renew(health='{"concurrency":2}')
    await enqueue_long_ago(bench, t0=1_000, t1=2_000, t2=3_000, t3=4_000)
    await worker.exchange(want=2)
    assert counts(await look(bench)) == (2, 0, 0, 2)
    reserved = (await worker.exchange(reserve=2)).reserved
    seen = await look(bench)
    assert (counts(seen), seen.oldest_due_ms) == ((2, 0, 0, 2), 3_000)
    await bench.publish(task("h", priority="high"))
    await worker.exchange(reserve=1)
    assert counts(await look(bench, "high")) == (1, 0, 0, 0)
    assert (await look(bench, "high")).oldest_due_ms is not None
    assert counts(await look(bench)) == (2, 0, 0, 2)
    await worker.exchange(starts=reserved)
    assert counts(await look(bench)) == (0, 0, 0, 4)


async def test_what_is_due_but_not_moved_yet_has_depth(bench: Bench) -> None:
    await bench.publish(task("a", due=f"+{LONG_MS}"), task("b", due=f"+{LONG_MS}"))
    await bench.becomes_due("a")
    assert counts(await look(bench)) == (1, 1, 0, 0)


async def test_a_sweep_makes_nothing_younger(bench: Bench) -> None:
    """Nobody would be told of tasks that no worker takes over."""
    dead, alive = await bench.worker("w1"), await bench.worker("w2")
    await enqueue_long_ago(bench, a=1_000)
    await dead.claim_one("a")
    await bench.raw("ZADD", f"{bench.base}workers", 5_000, "w1")
    assert await bench.broker.sweep(alive.lease_ms) == 0, "it holds a message"
    assert (await look(bench)).oldest_due_ms == 5_000


async def test_what_was_handed_back_hides_nothing_older(bench: Bench) -> None:
    """Its message keeps its place, its task waits anew."""
    worker = await bench.worker()
    await enqueue_long_ago(bench, a=1_000, b=2_000)
    a = await worker.claim_one("a")
    (b,) = (await worker.exchange(reserve=1)).reserved
    await worker.settle(worker.hand_back(a, when="+0"))
    await bench.call("release", [worker.worker_id, *b[:2], b.priority])
    assert (await look(bench)).oldest_due_ms == 2_000


async def test_what_a_dead_worker_had_prefetched_waited_all_along(bench: Bench) -> None:
    worker = await bench.worker()
    await enqueue_long_ago(bench, a=1_000, b=2_000)
    await worker.claim_one("a")
    await worker.exchange(reserve=1)
    await bench.raw("ZADD", f"{bench.base}workers", 7_000, "w1")
    assert (await look(bench)).oldest_due_ms == 2_000


async def test_of_very_many_prefetched_messages_the_number_is_reckoned(bench: Bench) -> None:
    """Not looked at one by one, while Redis does nothing else."""
    worker = await bench.worker()
    await worker.renew(health='{"concurrency":2}')
    await bench.publish(*(task(f"t{i}") for i in range(400)))
    await worker.exchange(want=2)
    await worker.exchange(reserve=398)
    assert counts(await look(bench)) == (398, 0, 0, 2)


async def test_it_is_told_while_redis_takes_no_writes(bench: Bench) -> None:
    await bench.worker()
    await enqueue_long_ago(bench, a=1_000)
    await bench.raw("ZADD", f"{bench.base}late:{DEFAULT}", 1, "gone", 2, "gone too")
    await bench.raw("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        assert (await look(bench)).oldest_due_ms == 1_000
    finally:
        await bench.raw("CONFIG", "SET", "min-replicas-to-write", 0)
    await look(bench)
    assert f"late:{DEFAULT}" not in await bench.keys()


async def test_many_messages_hide_none_of_others(bench: Bench) -> None:
    """A deploy that hands hundreds back says nothing of what a dead worker left."""
    dead, alive = await bench.worker("w1"), await bench.worker("w2")
    await enqueue_long_ago(bench, a=1_000)
    await dead.claim_one("a")
    await bench.raw("ZADD", f"{bench.base}workers", 5_000, "w1")
    await bench.publish(*(task(f"t{i}") for i in range(400)))
    await alive.settle(*map(alive.hand_back, await alive.claim(400)))
    seen = await look(bench)
    assert (counts(seen), seen.oldest_due_ms) == ((401, 0, 0, 0), 5_000)


async def test_what_is_reckoned_is_reckoned_once(bench: Bench) -> None:
    """Of a worker that runs tasks of one priority, and has prefetched those of another."""
    worker = await bench.worker(priorities=("high", DEFAULT))
    await worker.renew(health='{"concurrency":350}')
    await bench.publish(*(task(f"h{i}", priority="high") for i in range(350)))
    await worker.exchange(want=350)
    await bench.publish(*(task(f"t{i}") for i in range(50)))
    await bench.raw("HSET", f"{bench.base}task:t7", "due", 3_000, "made", 3_000)
    await worker.exchange(reserve=50)
    high, default = await look(bench, "high"), await look(bench)
    assert high.depth + default.depth == 50
    assert high.running + default.running == 350
    assert default.oldest_due_ms == 3_000
