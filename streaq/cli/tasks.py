"""``streaq task list|show|result|abort`` and ``streaq explain``: one task at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich import box
from rich.pretty import pretty_repr
from rich.table import Table
from rich.text import Text

from streaq.cli.asking import ask
from streaq.cli.options import AsJson, State, TaskId, WorkerPath
from streaq.cli.timeline import headline, timeline
from streaq.cli.words import DIM, STATE_STYLES, complain, relative, screen
from streaq.history import TaskHistory
from streaq.queries import MAX_LISTED
from streaq.task import TaskInfo, TaskResult, TaskStatus
from streaq.types import StreaqCancelled, StreaqError
from streaq.wire import one_line, visible
from streaq.worker import Worker

UNKNOWN = "There is no task {id} in queue {queue}: it never was, or its result has expired."
ABORTED = "The task was aborted"

T = TypeVar("T")


def _ask(task_id: str, path: str, question: Callable[[Worker[Any]], Awaitable[T]]) -> T:
    if ":" in task_id and ":" not in path:
        raise StreaqError(f"The task comes first, then where its worker is: {path} {task_id}")
    return ask(path, question)


def show(task_id: TaskId, path: WorkerPath, *, as_json: AsJson = False) -> None:
    """Show what happened to a task, attempt by attempt."""

    async def look(worker: Worker[Any]) -> tuple[TaskHistory | None, str, int, str]:
        history = await worker.history_by_id(task_id)
        why = await worker.explain_by_id(task_id)
        return history, worker.queue_name, (await worker.snapshot()).now_ms, why

    history, queue, now_ms, why = _ask(task_id, path, look)
    if history is None:
        raise StreaqError(UNKNOWN.format(id=task_id, queue=queue))
    out = screen()
    if as_json:
        out.print_json(json.dumps(asdict(history)))
        return
    out.print(headline(history, queue))
    out.print()
    out.print(timeline(history, now_ms))
    if history.state != "done":
        out.print()
        out.print(visible(why), markup=False)


def explain(task_id: TaskId, path: WorkerPath) -> None:
    """Say in one line why a task is not running."""

    async def look(worker: Worker[Any]) -> str:
        if await worker.history_by_id(task_id) is None:
            raise StreaqError(UNKNOWN.format(id=task_id, queue=worker.queue_name))
        return await worker.explain_by_id(task_id)

    screen().print(visible(_ask(task_id, path, look)), markup=False, soft_wrap=True)


def result(
    task_id: TaskId,
    path: WorkerPath,
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0, help="Seconds to wait for its end.")
    ] = 0,
) -> None:
    """Print what a task returned.

    Exits with 1 and the error when it failed or was aborted, and with 2 when it has not ended in
    time.
    """

    async def wait(worker: Worker[Any]) -> TaskResult[Any] | str | None:
        status = await worker.status_by_id(task_id)
        if status is TaskStatus.NOT_FOUND:
            raise StreaqError(UNKNOWN.format(id=task_id, queue=worker.queue_name))
        if status is not TaskStatus.DONE and not timeout:
            return await worker.explain_by_id(task_id)
        try:
            return await worker.result_by_id(task_id, timeout=timeout or 5)
        except TimeoutError:
            return await worker.explain_by_id(task_id)

    found = _ask(task_id, path, wait)
    if isinstance(found, TaskResult) and found.success:
        screen().print(pretty_repr(found.result), markup=False, soft_wrap=True)
    elif isinstance(found, TaskResult):
        complain(_why(found.exception))
        sys.exit(1)
    else:
        complain(f"It has not ended. {found}")
        sys.exit(2)


def _why(error: BaseException) -> str:
    if not isinstance(error, StreaqCancelled):
        return f"The task failed: {one_line(error, sys.maxsize)}"
    # streaq's own message says that already, a user's need not.
    said = str(error)
    return said if said.startswith(ABORTED) else f"{ABORTED}: {said or 'it gave no reason'}"


def abort(
    task_id: TaskId,
    path: WorkerPath,
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0, help="Seconds to wait for it to stop.")
    ] = 5,
) -> None:
    """Stop a task, running or not; a repeating one is not fired again."""

    async def stop(worker: Worker[Any]) -> tuple[bool, str]:
        unscheduled = await worker.unschedule_by_id(task_id)
        aborted = await worker.abort_by_id(task_id, timeout=timeout)
        return unscheduled or aborted, await worker.explain_by_id(task_id)

    stopped, why = _ask(task_id, path, stop)
    if not stopped:
        raise StreaqError(f"Task {task_id} was not stopped. {why}")
    screen().print(f"stopped {task_id}", markup=False)


def list_tasks(
    path: WorkerPath,
    *,
    state: Annotated[
        State, typer.Option("--state", "-s", help="Tasks in which state; of ended ones the newest.")
    ] = State.DONE,
    limit: Annotated[
        int, typer.Option("--limit", "-l", min=1, max=MAX_LISTED, help="How many at most.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List tasks in a state."""

    async def look(worker: Worker[Any]) -> tuple[list[dict[str, Any]], int]:
        found = await worker.get_tasks_by_status(TaskStatus(state.value), limit=limit)
        return [_brief(task) for task in found], (await worker.snapshot()).now_ms

    briefs, now_ms = ask(path, look)
    out = screen()
    if as_json:
        out.print_json(json.dumps(briefs))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("task", "function", "state", "tries", "created"):
        table.add_column(column, justify="right" if column == "tries" else "left", no_wrap=True)
    for task_id, fn, word, tries, created_ms in (brief.values() for brief in briefs):
        style = STATE_STYLES.get(word, "default")
        table.add_row(task_id, fn, Text(word, style), str(tries), relative(created_ms, now_ms))
    out.print(table if briefs else Text(f"no task is {state.value}", style=DIM))


def _brief(task: TaskInfo | TaskResult[Any]) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "fn_name": task.fn_name,
        "state": _state(task),
        "tries": task.tries,
        "created_ms": task.created_time,
    }


def _state(task: TaskInfo | TaskResult[Any]) -> str:
    if not isinstance(task, TaskResult):
        return task.status.value
    if task.success:
        return "success"
    return "aborted" if isinstance(task.exception, StreaqCancelled) else "failed"
