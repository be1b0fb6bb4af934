"""Higher priorities go first, whatever was enqueued before."""

from __future__ import annotations

import pytest

from streaq import StreaqError, TaskStatus
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def test_the_promised_example(
    make_worker: MakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = make_worker(concurrency=1)  # max 1 task running at a time for demo

    @worker.task
    async def low() -> None:
        print("Low priority task")

    @worker.task
    async def high() -> None:
        print("High priority task")

    async with worker:
        first = await low.enqueue().start(priority="low")
        await high.enqueue().start(priority="high")
        async with running(worker):
            await first.result(3)
    assert capsys.readouterr().out == "High priority task\nLow priority task\n"


async def test_priorities_of_ones_own(make_worker: MakeWorker) -> None:
    # this list should be ordered from lowest to highest
    worker = make_worker(priorities=["bulk", "mail", "money"], concurrency=1)
    order: list[str] = []

    @worker.task
    async def note(name: str) -> None:
        order.append(name)

    async with worker:
        tasks = [
            await note.enqueue(f"{priority or 'none'} {i}").start(priority=priority)
            for i in range(2)
            for priority in ("bulk", "money", None, "mail")
        ]
        async with running(worker):
            for task in tasks:
                await task.result(3)
    # Within a priority: as they came. What names none goes to the lowest.
    assert order == [
        "money 0", "money 1", "mail 0", "mail 1", "bulk 0", "none 0", "bulk 1", "none 1",
    ]  # fmt: skip


async def test_the_default_is_the_middle_one_of_three(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=1)
    order: list[str] = []

    @worker.task
    async def note(name: str) -> None:
        order.append(name)

    async with worker:
        tasks = [
            await note.enqueue("low").start(priority="low"),
            await note.enqueue("none"),
            await note.enqueue("high").start(priority="high"),
        ]
        async with running(worker):
            for task in tasks:
                await task.result(3)
    assert order == ["high", "none", "low"]


async def test_retries_and_delayed_tasks_keep_their_priority(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def echo() -> None: ...

    async with worker:
        later = await echo.enqueue().start(delay=60, priority="high")
        blocked = await echo.enqueue().start(after=later.id, priority="low")
        for task, priority in ((later, "high"), (blocked, "low")):
            listed = await worker.get_tasks_by_status(TaskStatus.SCHEDULED, priority=priority)
            assert [info.task_id for info in listed] == [task.id]
        assert await later.abort()


def test_priorities_that_cannot_work_are_refused(make_worker: MakeWorker) -> None:
    with pytest.raises(StreaqError, match="can't be empty"):
        make_worker(priorities=[])
    with pytest.raises(StreaqError, match="must differ"):
        make_worker(priorities=["a", "b", "a"])
