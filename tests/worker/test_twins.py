"""Runs of workers that were given one name: two at a time, as `streaq run --workers 2` makes them,
and one after the other, as a pod that comes back."""

from __future__ import annotations

import anyio
import pytest
import redis

from streaq.broker.keys import GROUP, Keys
from tests.support import MakeWorker, running, until

pytestmark = pytest.mark.anyio


def consumers(client: redis.Redis, queue: str) -> set[str]:
    """Who is known to the group of the default priority."""
    found = client.xinfo_consumers(Keys(queue).stream("normal"), GROUP)
    return {consumer["name"].decode() for consumer in found}


async def test_a_twin_that_leaves_takes_nothing_along(make_worker: MakeWorker) -> None:
    stays, leaves = make_worker(id="twin"), make_worker(id="twin")
    runs: list[int] = []
    started, go_on = anyio.Event(), anyio.Event()

    @stays.task(name="work")
    async def work(number: int) -> None:
        runs.append(number)
        started.set()
        await go_on.wait()

    async with running(stays):
        task = await work.enqueue(1)
        with anyio.fail_after(10):
            await started.wait()
            async with running(leaves):
                pass
            marker = await work.enqueue(2)  # whatever was handed back comes before it
            while 2 not in runs:
                await anyio.lowlevel.checkpoint()
            go_on.set()
            await task.result()
            await marker.result()
    assert runs == [1, 2]


async def test_everybody_is_shown_the_name_that_was_given(make_worker: MakeWorker) -> None:
    worker = make_worker(id="shop:till 1", concurrency=1, prefetch=1)
    started, go_on = anyio.Event(), anyio.Event()

    @worker.task
    async def work() -> None:
        started.set()
        await go_on.wait()

    async with running(worker):
        tasks = [work.enqueue(), work.enqueue()]
        await worker.enqueue_many(tasks)  # what comes later is not reserved
        with anyio.fail_after(10):
            await started.wait()
            first, second = tasks
            while "prefetched" not in (told := await worker.explain_by_id(second.id)):
                await anyio.lowlevel.checkpoint()
            assert "Worker shop:till 1 has" in told
            assert "on worker shop:till 1," in await worker.explain_by_id(first.id)
            history = await worker.history_by_id(first.id)
            assert history is not None
            assert [attempt.worker_id for attempt in history.attempts] == ["shop:till 1"]
            snapshot = await worker.snapshot()
            assert [found["id"] for found in snapshot.workers] == ["shop:till 1"]
            go_on.set()
            results = [await task.result() for task in tasks]
    assert [result.worker_id for result in results] == ["shop:till 1"] * 2


async def test_what_a_dead_run_of_the_same_name_held_is_taken_over_by_its_lease(
    make_worker: MakeWorker, redis_client: redis.Redis
) -> None:
    worker = make_worker(id="pod-0", idle_timeout=0.2)
    queue = worker.queue_name
    keys = Keys(queue)

    @worker.task(name="work")
    async def work() -> int:
        return work.context.tries

    async with running(worker):
        pass  # the group is there
    async with worker:
        task = await work.enqueue()
    # A run that claimed the task, and died before it could say anything more.
    dead = "pod-0:dead0000"
    redis_client.zadd(keys.base + "workers", {dead: 1})
    ((_, ((message, _),)),) = redis_client.xreadgroup(GROUP, dead, {keys.stream("normal"): ">"})
    fields = {"state": "running", "who": dead, "try": 1, "began": 1, "msg": message}
    redis_client.hset(keys.task(task.id), mapping=fields)
    async with running(worker):
        with anyio.fail_after(10):
            assert (await task.result()).result == 2
        history = await worker.history_by_id(task.id)
        assert history is not None
        assert [(a.worker_id, a.outcome) for a in history.attempts] == [
            ("pod-0", "lost"), ("pod-0", "success"),
        ]  # fmt: skip
        await until(lambda: dead not in consumers(redis_client, queue))
        assert redis_client.zscore(keys.base + "workers", dead) is None
    assert consumers(redis_client, queue) <= {"-"}
