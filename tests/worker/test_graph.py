"""Tasks that wait for others, and what becomes of them when those fail."""

from __future__ import annotations

import random

import anyio
import pytest

from streaq import StreaqError, TaskStatus
from streaq.task import Task
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def test_the_promised_example_of_a_failing_dependency(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def foobar() -> None:
        raise Exception("Oh no!")  # noqa: TRY002 - as the page has it

    @worker.task
    async def do_nothing() -> None:
        pass

    async with running(worker):
        task = await foobar.enqueue().start()
        dep = await do_nothing.enqueue().start(after=task.id)
        result = await dep.result(3)
        assert not result.success
        assert isinstance(result.exception, StreaqError)
        assert task.id in str(result.exception)
        assert (result.fn_name, result.tries) == (do_nothing.fn_name, 0)
        # The failure of the first is the first's alone.
        assert str((await task.result(3)).exception) == "Oh no!"


async def test_a_failure_goes_all_the_way_down(make_worker: MakeWorker) -> None:
    worker = make_worker()
    ran: list[int] = []

    @worker.task
    async def step(i: int) -> None:
        ran.append(i)
        if i == 0:
            raise ValueError

    async with worker:
        root = await step.enqueue(0)
        chain: list[Task] = [root]
        for i in range(1, 40):
            # Each waits for the one before it and for the root.
            chain.append(await step.enqueue(i).start(after=[chain[-1].id, root.id]))
        async with running(worker):
            for task in chain:
                assert not (await task.result(3)).success
    assert ran == [0]


async def test_a_diamond_runs_once_and_last(make_worker: MakeWorker) -> None:
    worker = make_worker()
    order: list[str] = []
    go = anyio.Event()

    @worker.task
    async def note(name: str) -> None:
        if name == "slow":
            await go.wait()
        order.append(name)
        if name == "quick":
            go.set()

    async with running(worker):
        top = await note.enqueue("top")
        slow = await note.enqueue("slow").start(after=top.id)
        quick = await note.enqueue("quick").start(after=top.id)
        bottom = await note.enqueue("bottom").start(after=[slow.id, quick.id])
        assert (await bottom.result(3)).success
    assert order == ["top", "quick", "slow", "bottom"]


async def test_random_graphs_respect_every_edge(make_worker: MakeWorker) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # shown when the test fails
    rng = random.Random(seed)
    worker = make_worker(concurrency=8)
    done: list[int] = []

    @worker.task
    async def node(i: int, waits_for: list[int]) -> None:
        assert set(waits_for) <= set(done)
        await anyio.sleep(rng.random() * 0.003)
        done.append(i)

    async with running(worker):
        tasks: list[Task] = []
        for i in range(60):
            before = rng.sample(range(i), min(i, rng.randrange(4)))
            task = node.enqueue(i, before)
            if before:
                task.start(after=[tasks[j].id for j in before])
            tasks.append(await task)
        for task in tasks:
            assert (await task.result(5)).success
    assert sorted(done) == list(range(60))


async def test_after_a_task_that_ended_already(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def step(fail: bool = False) -> int:
        if fail:
            raise ValueError
        return 1

    async with running(worker):
        good, bad = await step.enqueue(), await step.enqueue(fail=True)
        await good.result(3)
        await bad.result(3)
        after_good = await step.enqueue().start(after=good.id)
        after_bad = await step.enqueue().start(after=bad.id)
        after_both = await step.enqueue().start(after=(good.id, bad.id))
        assert (await after_good.result(3)).success
        for task in (after_bad, after_both):
            assert bad.id in str((await task.result(3)).exception)


async def test_after_a_task_that_is_not_known(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def step() -> None: ...

    async with worker:
        task = await step.enqueue().start(after="no such task")
        result = await task.result(3)
        assert "no such task is not known" in str(result.exception)
        waiting = await step.enqueue().start(delay=60)
        both = await step.enqueue().start(after=[waiting.id, "no such task"])
        assert not (await both.result(3)).success
        info = await waiting.info()
        assert info is not None
        assert info.dependents == set()
        assert await waiting.abort()


async def test_after_scheduled_and_repeating_tasks(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def step() -> None: ...

    async with running(worker):
        later = await step.enqueue().start(delay=0.05)
        after_later = await step.enqueue().start(after=later.id)
        assert (await after_later.result(3)).success
        yearly = await step.enqueue().start(schedule="0 0 1 1 *")
        after_yearly = await step.enqueue().start(after=yearly.id)
        assert await after_yearly.status() is TaskStatus.SCHEDULED
        assert await yearly.unschedule()
        assert "unscheduled" in str((await after_yearly.result(3)).exception)


async def test_dependents_on_other_priorities(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def step() -> None: ...

    async with running(worker):
        first = await step.enqueue().start(priority="low")
        second = await step.enqueue().start(after=first.id, priority="high")
        third = await step.enqueue().start(after=[first.id, second.id])
        assert (await third.result(3)).success
