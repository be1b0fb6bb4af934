"""Enqueueing: arguments are checked as in a plain call, and results come back typed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import assert_type

from streaq import TaskInfo, TaskResult, TaskStatus, Worker
from streaq.task import Task
from streaq.utils import gather, to_tuple

worker = Worker()


@worker.task
async def sleeper(time: int) -> int:
    return time


@worker.task(timeout=5)
def sync_sleeper(seconds: float, *, loud: bool = False) -> str:
    return f"{seconds}{loud}"


@worker.task
async def nothing() -> None: ...


async def right_arguments() -> None:
    unawaited: Task[[int], int] = sleeper.enqueue(5)
    awaited: Task[[int], int] = await sleeper.enqueue(5)
    started: Task[[int], int] = await sleeper.enqueue(time=5).start()
    print(unawaited, awaited, started)
    await sync_sleeper.enqueue(5)
    await sync_sleeper.enqueue(5.5, loud=True)
    await nothing.enqueue()


async def wrong_arguments() -> None:
    sleeper.enqueue("5")  # error
    sleeper.enqueue(5.5)  # error
    sleeper.enqueue()  # error
    sleeper.enqueue(5, 6)  # error
    sleeper.enqueue(seconds=5)  # error
    sync_sleeper.enqueue("5")  # error
    sync_sleeper.enqueue(5, True)  # error
    sync_sleeper.enqueue(5, loud="yes")  # error
    sync_sleeper.enqueue(5, quiet=True)  # error
    nothing.enqueue(1)  # error


async def right_options() -> None:
    task = await sleeper.enqueue(1)
    await sleeper.enqueue(1).start(delay=10)
    await sleeper.enqueue(1).start(delay=0.5, priority="high")
    await sleeper.enqueue(1).start(delay=timedelta(seconds=5))
    await sleeper.enqueue(1).start(schedule=datetime(2030, 1, 1, tzinfo=UTC))
    await sleeper.enqueue(1).start(schedule="*/5 * * * *")
    await sleeper.enqueue(1).start(after=task.id)
    await sleeper.enqueue(1).start(after=[task.id, "other"])


async def wrong_options() -> None:
    task = await sleeper.enqueue(1)
    sleeper.enqueue(1).start(delay="10")  # error
    sleeper.enqueue(1).start(schedule=10)  # error
    sleeper.enqueue(1).start(priority=1)  # error
    sleeper.enqueue(1).start(after=task)  # error
    sleeper.enqueue(1).start(after=1)  # error
    sleeper.enqueue(1).start(soon=True)  # error


async def what_came_of_it() -> None:
    task = await sleeper.enqueue(1)
    assert_type(task.id, str)
    assert_type(await task.status(), TaskStatus)
    assert_type(await task.info(), TaskInfo | None)
    assert_type(await task.abort(), bool)
    assert_type(await task.abort(timeout=None), bool)
    assert_type(await task.unschedule(), bool)
    result = await task.result(3)
    assert_type(result, TaskResult[int])
    assert_type(result.result, int)
    assert_type(result.exception, BaseException)
    assert_type(result.success, bool)
    assert_type(result.tries, int)
    assert_type((await (await sync_sleeper.enqueue(1)).result(timedelta(seconds=3))).result, str)
    assert_type((await (await nothing.enqueue()).result()).result, None)

    text: str = result.result  # error
    await task.result("3")  # error
    result.success = False  # error
    len(result.result)  # error
    print(text)


async def batches() -> None:
    tasks = [sleeper.enqueue(n) for n in range(10)]
    await worker.enqueue_many(tasks)
    await worker.enqueue_many([sleeper.enqueue(1), nothing.enqueue(), sync_sleeper.enqueue(1)])
    await worker.enqueue_many([sleeper])  # error
    await worker.enqueue_many([1])  # error
    await worker.enqueue_many(sleeper.enqueue(1))  # error

    started = await gather(*(sleeper.enqueue(n).start() for n in range(3)))
    results = await gather(*[task.result(3) for task in started])
    assert_type([r.result for r in results], list[int])
    assert_type(to_tuple(3), tuple[int])
    assert_type(to_tuple((3, True)), tuple[int, bool])


async def by_name_and_id() -> None:
    task = worker.enqueue_unsafe("sleeper", 1, loud=True)
    started: Task[..., Any] = await task.start(priority="high")
    print(started)
    assert_type(await worker.queue_size(), int)
    assert_type(await worker.queue_size(include_scheduled=False), int)
    assert_type(await worker.status_by_id(task.id), TaskStatus)
    assert_type(await worker.result_by_id(task.id, timeout=3), TaskResult[Any])
    assert_type(await worker.info_by_id(task.id), TaskInfo | None)
    assert_type(await worker.abort_by_id(task.id), bool)
    assert_type(await worker.unschedule_by_id(task.id), bool)
    assert_type(await worker.get_tasks_by_status(TaskStatus.QUEUED, limit=5), list[TaskInfo])
    assert_type(
        await worker.get_tasks_by_status(TaskStatus.SCHEDULED, priority="low"), list[TaskInfo]
    )
    assert_type(await worker.get_tasks_by_status(TaskStatus.RUNNING), list[TaskInfo])
    assert_type(await worker.get_tasks_by_status(TaskStatus.DONE), list[TaskResult[Any]])

    worker.enqueue_unsafe(sleeper, 1)  # error
    await worker.status_by_id(task)  # error
    await worker.get_tasks_by_status("queued")  # error
    await worker.get_tasks_by_status(TaskStatus.QUEUED, 5)  # error
