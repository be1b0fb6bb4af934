"""Answers that never arrive, and tasks that are easily taken for another: each runs once, and hooks
hear of it once."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from streaq import Hook, StreaqError, Worker
from streaq.broker.keys import Keys
from streaq.hooks import Enqueue
from tests.support import MakeWorker, running, until

pytestmark = pytest.mark.anyio


class Enqueued(Hook):
    def __init__(self) -> None:
        self.ids: list[str] = []

    def on_enqueued(self, e: Enqueue) -> None:
        self.ids.append(e.task_id)


def lose_answers(worker: Worker[Any], monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    """Enqueueing arrives, but that many answers are lost."""
    broker = worker._session.broker()
    publish = broker.publish

    async def publish_and_lose(units: Any) -> Any:
        nonlocal count
        answer = await publish(units)
        if count > 0:
            count -= 1
            raise RedisConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(broker, "publish", publish_and_lose)


async def test_what_was_enqueued_without_an_answer_is_there_once(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Enqueued()
    worker = make_worker(hooks=[hook])
    runs: list[int] = []

    @worker.task
    async def note(number: int) -> None:
        runs.append(number)

    async with worker:
        lose_answers(worker, monkeypatch, 2)
        tasks = [note.enqueue(i) for i in range(20)]
        await worker.enqueue_many(tasks)
        async with running(worker):
            for task in tasks:
                await task.result(3)
    assert sorted(runs) == list(range(20))
    assert sorted(hook.ids) == sorted(task.id for task in tasks)


async def test_after_too_many_lost_answers_awaiting_again_is_safe(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()

    @worker.task
    async def work() -> str:
        return "done"

    async with worker:
        task = work.enqueue()
        with monkeypatch.context() as patch:
            lose_answers(worker, patch, math.inf)
            with pytest.raises(StreaqError, match="Awaiting the same task again is safe"):
                await task
        await task
        async with running(worker):
            assert (await task.result(3)).result == "done"
    assert worker.counters == {"completed": 1}


@pytest.mark.parametrize("how", ["sent again", "awaited again", "cancelled and awaited again"])
async def test_a_task_without_a_result_that_ended_before_it_is_sent_again_runs_once(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, redis_client: redis.Redis, how: str
) -> None:
    worker = make_worker()
    runs: list[int] = []

    @worker.task(ttl=0)
    async def work() -> None:
        runs.append(work.context.tries)

    @worker.task
    async def marker() -> None: ...

    async with running(worker):
        task = work.enqueue()
        tombstone = f"{Keys(worker.queue_name).base}ended:{task.id}"
        broker = worker._session.broker()
        publish = broker.publish

        async def publish_and_lose(units: Any) -> Any:
            monkeypatch.setattr(broker, "publish", publish)
            await publish(units)
            await until(lambda: bool(redis_client.exists(tombstone)))
            if how == "sent again":
                raise RedisConnectionError("the answer was lost")
            if how == "awaited again":
                raise RedisError("the answer makes no sense")
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        monkeypatch.setattr(broker, "publish", publish_and_lose)
        with anyio.CancelScope() as scope:
            if how == "awaited again":
                with pytest.raises(StreaqError, match="Awaiting the same task again is safe"):
                    await task
            else:
                await task
        assert scope.cancelled_caught is (how == "cancelled and awaited again")
        await task
        await (await marker.enqueue()).result(10)  # whatever was enqueued came before it
        assert redis_client.ttl(tombstone) > 0
    assert runs == [1]


async def test_tasks_of_two_priorities_enqueued_at_once_are_two_tasks(
    make_worker: MakeWorker,
) -> None:
    """Their messages have the same id, each in a stream of its own."""
    worker = make_worker(priorities=["low", "high"], concurrency=8)
    started: list[str] = []
    all_started, go_on = anyio.Event(), anyio.Event()

    @worker.task
    async def wait(name: str) -> str:
        started.append(name)
        if len(started) == 6:
            all_started.set()
        await go_on.wait()
        return name

    async with worker:
        names = [f"{priority}{i}" for i in range(3) for priority in ("low", "high")]
        tasks = [wait.enqueue(name).start(priority=name[:-1]) for name in names]
        await worker.enqueue_many(tasks)
        async with running(worker):
            with anyio.fail_after(10):
                await all_started.wait()
            assert worker.running() == 6
            go_on.set()
            assert [(await task.result(3)).result for task in tasks] == names
        assert sorted(started) == sorted(names)
    assert worker.counters == {"completed": 6}


async def test_a_burst_does_not_end_before_what_a_lost_read_brought_is_found_again(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(idle_timeout=1)
    worker.burst = True
    lost = anyio.Event()
    runs: list[str] = []

    @worker.task
    async def second() -> None:
        runs.append("second")

    @worker.task
    async def first() -> None:
        await second.enqueue()
        await lost.wait()
        runs.append("first")

    async with worker:
        broker = worker._session.broker()
        read = broker.read

        async def read_and_lose(*args: Any) -> Any:
            answer = await read(*args)
            if answer and not lost.is_set():
                lost.set()
                raise RedisConnectionError("the answer was lost")
            return answer

        monkeypatch.setattr(broker, "read", read_and_lose)
        await first.enqueue()
        with anyio.fail_after(20):
            await worker.run_async()
    assert runs == ["first", "second"]
