"""Aborting tasks wherever they are: queued, scheduled, blocked, prefetched, running, in a retry."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta

import anyio
import pytest

from streaq import StreaqCancelled, StreaqRetry, TaskStatus
from streaq.hooks import Ending, Hook
from streaq.task import Task
from streaq.utils import gather
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def was_aborted(task: Task, when: str) -> bool:
    result = await task.result(3)
    assert isinstance(result.exception, StreaqCancelled)
    assert when in str(result.exception)
    return not result.success and await task.status() is TaskStatus.DONE


async def test_before_they_run(make_worker: MakeWorker) -> None:
    worker = make_worker()
    ran: list[int] = []

    @worker.task
    async def sleeper(time: int) -> None:
        ran.append(time)

    async with worker:
        queued = await sleeper.enqueue(1)
        scheduled = await sleeper.enqueue(2).start(delay=60)
        root = await sleeper.enqueue(3)
        blocked = await sleeper.enqueue(4).start(after=[root.id, scheduled.id])
        # The dependent first: it lets go of what it waited for.
        for task in (blocked, queued, scheduled):
            assert await task.abort() is True
            assert await was_aborted(task, "before it ran")
            result = await task.result(3)
            assert (result.tries, result.start_time, result.worker_id) == (0, 0, "")
            assert await task.abort() is False  # it ended already
        info = await root.info()
        assert info is not None
        assert info.dependents == set()
        async with running(worker):
            assert (await root.result(3)).success
    assert ran == [3]


async def test_while_running(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, cleaned = anyio.Event(), anyio.Event()

    @worker.task
    async def sleeper() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    async with running(worker):
        task = await sleeper.enqueue()
        await started.wait()
        assert await task.abort() is True
        assert cleaned.is_set()
        assert await was_aborted(task, "while running")
        assert (await task.result(3)).tries == 1
        assert worker.running() == 0
    assert worker.counters == {"aborted": 1}


async def test_a_sync_function_in_its_thread(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, go = threading.Event(), threading.Event()

    @worker.task
    def sleeper() -> None:
        started.set()
        go.wait(5)

    async with running(worker):
        task = await sleeper.enqueue()
        await anyio.to_thread.run_sync(started.wait)
        assert await task.abort() is True
        assert await was_aborted(task, "while running")
        go.set()


async def test_without_waiting(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, stubborn, go = anyio.Event(), anyio.Event(), anyio.Event()

    @worker.task
    async def sleeper() -> str:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                stubborn.set()
                await go.wait()

    async with running(worker):
        task = await sleeper.enqueue()
        await started.wait()
        assert await task.abort(timeout=0) is False  # not known yet
        await stubborn.wait()
        assert await task.abort(timeout=timedelta(milliseconds=10)) is False
        assert await task.status() is TaskStatus.RUNNING
        go.set()
        assert await was_aborted(task, "while running")


async def test_what_was_done_in_time_counts(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, go = anyio.Event(), anyio.Event()

    @worker.task
    async def finishes() -> str:
        started.set()
        with anyio.CancelScope(shield=True):
            await go.wait()
        return "done"

    async with running(worker):
        task = await finishes.enqueue()
        await started.wait()
        assert await task.abort(timeout=0) is False
        go.set()
        result = await task.result(3)
        assert (result.success, result.result) == (True, "done")
        assert await task.abort() is False


async def test_between_tries(make_worker: MakeWorker) -> None:
    retried = anyio.Event()

    class Retries(Hook):
        def on_retry(self, e: Ending) -> None:
            retried.set()

    worker = make_worker(hooks=[Retries()])
    tries: list[int] = []

    @worker.task
    async def again() -> None:
        tries.append(again.context.tries)
        raise StreaqRetry(delay=60)

    async with running(worker):
        task = await again.enqueue()
        waiter = await again.enqueue().start(after=task.id)
        with anyio.fail_after(3):
            await retried.wait()
        assert await task.status() is TaskStatus.SCHEDULED
        assert await task.abort() is True
        assert (await task.result(3)).tries == 1
        assert not (await waiter.result(3)).success
    assert tries == [1]


async def test_prefetched(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=1, prefetch=4)
    started, go = anyio.Event(), anyio.Event()
    ran: list[int] = []

    @worker.task
    async def sleeper(i: int) -> None:
        ran.append(i)
        started.set()
        await go.wait()

    async with worker:
        tasks = [sleeper.enqueue(i) for i in range(4)]
        await worker.enqueue_many(tasks)
        async with running(worker):
            await started.wait()
            assert await tasks[2].status() is TaskStatus.QUEUED
            assert await tasks[2].abort() is True
            assert await was_aborted(tasks[2], "before it ran")
            go.set()
            for task in (tasks[0], tasks[1], tasks[3]):
                assert (await task.result(3)).success
    assert ran == [0, 1, 3]


async def test_dependents_of_an_aborted_task_fail(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def first() -> int:
        return 1

    @worker.task
    async def second(val: int) -> int:
        return val

    async with worker:
        root = await first.enqueue().start(delay=60)
        then = await root.then(second).then(second)
        after = await first.enqueue().start(after=[root.id])
        assert await root.abort()
        for task in (then, after):
            result = await task.result(3)
            assert "ependency" in str(result.exception)


async def test_a_fallback_runs_when_its_task_is_aborted(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def first(val: int) -> int:
        return val

    @worker.task
    async def instead(val: int) -> int:
        return val * 2

    async with running(worker):
        root = await first.enqueue(4).start(delay=60)
        task = await root.otherwise(instead)
        assert await root.abort()
        assert (await task.result(3)).result == 8


async def test_what_is_not_there(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def echo() -> None: ...

    async with running(worker):
        assert await worker.abort_by_id("no such task") is False
        never_enqueued = echo.enqueue()
        assert await never_enqueued.abort() is False
        await never_enqueued  # asking for it first has not spoilt it
        assert (await never_enqueued.result(3)).success


async def test_many_at_once_and_one_twice(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=20)
    started = 0
    all_started = anyio.Event()

    @worker.task
    async def sleeper() -> None:
        nonlocal started
        started += 1
        if started == 20:
            all_started.set()
        await anyio.sleep_forever()

    async with running(worker):
        tasks = [sleeper.enqueue() for _ in range(20)]
        await worker.enqueue_many(tasks)
        await all_started.wait()
        answers = await gather(*[task.abort() for task in (*tasks, tasks[0])])
        assert all(answers[1:20])
        assert answers[0] or answers[20]  # whoever comes late is told that it ended
    assert worker.counters == {"aborted": 20}


ABORT_SCRIPT = """
import sys, anyio
from streaq import Worker

async def main() -> None:
    async with Worker(sys.argv[1], queue_name=sys.argv[2], telemetry=False) as worker:
        print(await worker.abort_by_id(sys.argv[3]))

anyio.run(main)
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_from_another_process(make_worker: MakeWorker, redis_url: str, queue: str) -> None:
    worker = make_worker()
    started = anyio.Event()

    @worker.task
    async def sleeper() -> None:
        started.set()
        await anyio.sleep_forever()

    async with running(worker):
        task = await sleeper.enqueue()
        await started.wait()
        ran = await anyio.run_process(
            [sys.executable, "-c", ABORT_SCRIPT, redis_url, queue, task.id],
            stderr=subprocess.STDOUT,
        )
        assert ran.stdout == b"True\n"
        assert await was_aborted(task, "while running")
