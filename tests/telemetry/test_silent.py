"""A task registered as silent writes no line, wherever it ends; any other writes one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from streaq import StreaqRetry, TaskStatus, Worker
from streaq.testing import RecordingHook
from tests.support import running, until
from tests.telemetry.conftest import Stage

pytestmark = pytest.mark.anyio

TOLD = {
    ("task.enqueued", "fine"), ("task.started", "fine"), ("task.finished", "fine"),
    ("task.retried", "again"), ("task.failed", "bad"), ("task.refused", "late"),
    ("task.refused", "after"), ("task.refused", "sole"), ("task.aborted", "tomorrow"),
    ("task.aborted", "queued"), ("task.aborted", "stuck"), ("task.finished", "instead"),
    ("task.enqueued", "ticks"), ("task.finished", "ticks"), ("task.enqueued", "named"),
    ("task.enqueued", "repeats"), ("task.finished", "repeats"),
}  # fmt: skip


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def register(worker: Worker[Any], *, silent: bool) -> dict[str, Any]:
    """One task for each way to end."""

    async def fine() -> None: ...

    async def bad() -> None:
        raise ValueError

    async def again() -> None:
        if tasks["again"].context.tries == 1:
            raise StreaqRetry(delay=0)

    async def stuck() -> None:
        await anyio.sleep(60)

    bodies: dict[str, Any] = dict.fromkeys(
        ("fine", "after", "tomorrow", "queued", "instead", "repeats", "named"), fine
    )
    bodies.update(bad=bad, again=again, stuck=stuck)
    tasks = {name: worker.task(name=name, silent=silent)(body) for name, body in bodies.items()}
    tasks["late"] = worker.task(name="late", silent=silent, expire=0.001)(fine)
    tasks["sole"] = worker.task(name="sole", silent=silent, unique=True)(stuck)
    worker.cron("* * * * * *", name="ticks", silent=silent)(fine)
    return tasks


async def run_all(worker: Worker[Any], tasks: dict[str, Any], happened: RecordingHook) -> None:
    async with worker:
        ends = [await tasks["late"].enqueue()]
        tomorrow = await tasks["tomorrow"].enqueue().start(delay=86_400)
        assert await tomorrow.abort(5)
        queued = await tasks["queued"].enqueue()
        await queued.abort(0)
        bad = await tasks["bad"].enqueue()
        ends += [queued, bad, await tasks["after"].enqueue().start(after=bad.id)]
        ends += [await tasks[name].enqueue() for name in ("fine", "again")]
        ends += [
            await worker.enqueue_unsafe("named"),
            await (tasks["fine"].enqueue() ^ tasks["instead"]),
        ]
        repeating = await tasks["repeats"].enqueue().start(schedule="* * * * * *")
        await anyio.sleep(0.01)  # on the server's clock, for the one that is late
        async with running(worker):
            await hold_up(tasks)
            for task in ends:
                await task.result(10)
            await until(lambda: {"ticks", "repeats"} <= set(happened.names("on_finish")))
            await repeating.unschedule()


async def hold_up(tasks: dict[str, Any]) -> None:
    """What must run to be aborted, or to be clashed with."""
    held = [await tasks["sole"].enqueue(), await tasks["stuck"].enqueue()]
    for task in held:
        while await task.status() is not TaskStatus.RUNNING:  # noqa: ASYNC110 - of the server
            await anyio.sleep(0.002)
    await (await tasks["sole"].enqueue()).result(10)
    for task in held:
        assert await task.abort(10)


@pytest.mark.parametrize("silent", [False, True])
async def test_silent_tasks_write_nothing(stage: Stage, *, silent: bool) -> None:
    happened = RecordingHook()
    worker = stage.worker(hooks=[happened])
    tasks = register(worker, silent=silent)
    await run_all(worker, tasks, happened)
    told = {(line["event"], line["task"]) for line in stage.seen.logs if "task" in line}
    assert told >= TOLD if not silent else told == set()
    happenings = {
        *(("task.refused", name) for name in happened.names("on_refuse")),
        *(("task.aborted", name) for name in happened.names("on_abort")),
        *(("task.finished", name) for name in happened.names("on_finish")),
    }
    assert {pair for pair in TOLD if pair[0] in dict(happenings)} <= happenings


async def test_nobody_knows_whether_an_unknown_task_is_silent(stage: Stage) -> None:
    worker = stage.worker()
    async with running(worker):
        await (await worker.enqueue_unsafe("nobody")).result(5)
        await until(lambda: "task.refused" in {line["event"] for line in stage.seen.logs})
