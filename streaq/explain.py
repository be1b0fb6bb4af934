"""Why a task is not running, in one line for a person. Pure: all it says was looked up before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaq.broker.inspect import COUNT_BEFORE_UP_TO
from streaq.utils import say_ms

if TYPE_CHECKING:
    from streaq.broker.inspect import QueueSnapshot, Standing
    from streaq.history import TaskHistory

MENTIONED = 3
"""So many tasks or workers are named in one line; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A task that another waits for."""

    task_id: str
    fn_name: str
    state: str


def explain(
    history: TaskHistory | None,
    standing: Standing,
    snapshot: QueueSnapshot,
    dependencies: Sequence[Dependency] = (),
) -> str:
    """One line.

    :param history: of the task; None when there is no such task.
    :param dependencies: what it waits for.
    """
    if history is None:
        return "There is no such task: it never was, or its result has expired."
    now = snapshot.now_ms
    if history.state == "done":
        return _ended(history, now)
    if history.state == "running":
        return _running(history, snapshot)
    if history.state == "blocked":
        return _blocked(dependencies)
    if history.state == "scheduled":
        return _scheduled(history, snapshot)
    return _queued(history, standing, snapshot)


def _ended(history: TaskHistory, now_ms: int) -> str:
    how = {"success": "successfully", "aborted": "because it was aborted"}.get(
        history.outcome, f"in failure ({history.error})"
    )
    return f"It ended {say_ms(now_ms - history.finished_ms)} ago, {how}."


def _running(history: TaskHistory, snapshot: QueueSnapshot) -> str:
    attempt = history.attempts[-1]
    if attempt.worker_id not in {w.get("id") for w in snapshot.workers}:
        return (
            f"It was started (try {attempt.number}), but its worker {attempt.worker_id} gives no "
            f"sign of life; another takes it over when the lease has run out."
        )
    asked = "; it was asked to abort" if history.abort_asked else ""
    return (
        f"It runs: try {attempt.number} on worker {attempt.worker_id}, "
        f"for {say_ms(snapshot.now_ms - attempt.began_ms)} now{asked}."
    )


def _blocked(dependencies: Sequence[Dependency]) -> str:
    named = [f"{d.fn_name or 'task'} {d.task_id} ({d.state})" for d in dependencies[:MENTIONED]]
    if len(dependencies) > MENTIONED:
        named.append(f"{len(dependencies) - MENTIONED} more")
    return f"It waits for {_several('task', len(dependencies))} to end first: {', '.join(named)}."


def _scheduled(history: TaskHistory, snapshot: QueueSnapshot) -> str:
    wait_ms = history.due_ms - snapshot.now_ms
    if history.crontab and wait_ms > 0:
        return f"It repeats by {history.crontab!r}; the next firing is in {say_ms(wait_ms)}."
    what = f"until try {history.tries + 1}" if history.tries else "until it is due"
    if wait_ms > 0:
        return f"It is delayed: {say_ms(wait_ms)} more {what}."
    if not snapshot.workers:
        return f"It has been due for {say_ms(-wait_ms)}, and no worker lives to queue it."
    served = any(history.priority in w.get("priorities", ()) for w in snapshot.workers)
    if not (served or history.crontab):  # any worker sees to timetables
        return (
            f"It has been due for {say_ms(-wait_ms)}, and no live worker serves its priority, "
            f"{history.priority}, to queue it."
        )
    return f"It is due now ({say_ms(-wait_ms)} ago) and about to be queued."


def _queued(history: TaskHistory, standing: Standing, snapshot: QueueSnapshot) -> str:
    """The most serious reason is the one to tell."""
    fn, priority, workers = history.fn_name, history.priority, snapshot.workers
    if not workers:
        return f"It is queued, and no worker of queue {snapshot.queue} is alive."
    able = [w for w in workers if fn in w.get("functions", ())]
    if not able:
        who = _several("worker", len(workers))
        return f"It is queued, and none of {who} alive registers its function, {fn}."
    able = [w for w in able if priority in w.get("priorities", ())]
    if not able:
        return f"It is queued at priority {priority}, which no live worker that has {fn} serves."
    if standing.locked_by and standing.locked_by != history.task_id:
        return (
            f"It is queued, and locked: {fn} is unique and task {standing.locked_by} runs; "
            f"started now, it would be refused."
        )
    if standing.reserved_by:
        return _reserved(standing.reserved_by, workers)
    return _in_line(standing.before, priority, able)


def _reserved(by: str, workers: Sequence[dict[str, Any]]) -> str:
    if by in {w.get("id") for w in workers}:
        return f"Worker {by} has prefetched it and starts it in its turn."
    return (
        f"It is queued, but worker {by}, which has prefetched it, gives no sign of life; another "
        f"with a free slot takes it over when the lease has run out."
    )


def _in_line(before: int, priority: str, able: Sequence[dict[str, Any]]) -> str:
    slots = sum(int(w.get("concurrency", 0)) for w in able)
    taken = sum(int(w.get("running", 0)) for w in able)
    ahead = f"over {before:,}" if before >= COUNT_BEFORE_UP_TO else f"{before:,}"
    line = f"It is queued, with {ahead} ahead of it at priority {priority}"
    return f"{line}; {taken} of {slots} slots of {_several('worker', len(able))} are taken."


def _several(noun: str, n: int) -> str:
    return f"1 {noun}" if n == 1 else f"{n} {noun}s"
