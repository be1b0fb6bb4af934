"""The ledger of a task: every attempt it had, kept for as long as the task or its result is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streaq.broker.keys import worker_of
from streaq.wire import Record, error_without_value

if TYPE_CHECKING:
    from streaq.broker.inspect import Seen


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """One attempt of a task. Times are milliseconds since the epoch, by the server's clock."""

    number: int
    """Its try, from 1."""
    worker_id: str
    began_ms: int
    ended_ms: int | None
    """None while it runs."""
    outcome: str
    """``success``, ``failed``, ``aborted``, ``retried`` (tried again), ``returned`` (handed back at
    shutdown, the try refunded), ``lost`` (its worker died) or ``running``."""
    error: str
    """Class and message of the exception; empty without one."""
    trace_id: str
    """Of its span; empty when it was not traced, or its worker died too soon to say."""
    why: str = ""
    """Why it was started, unless it is the first: ``asked`` (the one before raised
    ``StreaqRetry``), ``timeout``, ``lost`` (the worker died) or ``returned`` (it shut down)."""


@dataclass(frozen=True, slots=True)
class TaskHistory:
    """What became of a task so far. Times are milliseconds since the epoch; 0 when not known.

    Example::

        history = await worker.history_by_id(task.id)
        for attempt in history.attempts:
            print(attempt.number, attempt.outcome, attempt.error)
    """

    task_id: str
    fn_name: str
    priority: str
    state: str
    """``queued``, ``running``, ``scheduled`` (due later), ``blocked`` (waits for other tasks) or
    ``done``."""
    outcome: str
    """``success``, ``failed`` or ``aborted``; empty before its end."""
    reason: str
    """One word on the outcome, as ``timeout``, ``expired``, ``unique`` or ``dependency``."""
    error: str
    """Class and message of the error that ended it; empty without one."""
    created_ms: int
    due_ms: int
    enqueued_ms: int
    """When it was last put in the queue."""
    finished_ms: int
    tries: int
    attempts: tuple[PastAttempt, ...]
    """In their order; of very many the last twenty."""
    abort_asked: bool = False
    """Whether an abort was asked for that its worker has not seen to yet."""
    crontab: str = ""
    """Of a repeating schedule that waits for its next firing; else empty."""


def history_of_live(seen: Seen) -> TaskHistory:
    """What a look at a task that has not ended tells of it."""
    attempts, why = _earlier(json.loads(f"[{seen.text('log')}]"))
    if seen.state == "running":
        attempts.append(
            PastAttempt(
                seen.number("try"),
                worker_of(seen.text("who")),
                seen.number("began"),
                None,
                "running",
                "",
                _trace_id(seen.text("trace")),
                why,
            )
        )
    return TaskHistory(
        task_id=seen.task_id,
        fn_name=seen.text("fn"),
        priority=seen.text("pri"),
        state=seen.state,
        outcome="",
        reason="",
        error="",
        created_ms=seen.number("made"),
        due_ms=seen.scheduled_ms or seen.number("due"),
        enqueued_ms=int(seen.text("msg").partition("-")[0] or 0),
        finished_ms=0,
        tries=seen.number("try"),
        attempts=tuple(attempts),
        abort_asked=bool(seen.text("stop")),
        crontab=seen.text("tab"),
    )


def history_of_ended(record: Record) -> TaskHistory:
    """What a result record tells of its task."""
    attempts, why = _earlier(record.ledger)
    if record.started_ms:
        attempts.append(
            PastAttempt(
                record.tries,
                record.worker_id,
                record.started_ms,
                record.finished_ms,
                record.status,
                record.text,
                _trace_id(record.trace),
                why,
            )
        )
    return TaskHistory(
        task_id=record.task_id,
        fn_name=record.fn,
        priority=record.priority,
        state="done",
        outcome=record.status,
        reason=record.reason,
        error=_error(record),
        created_ms=record.created_ms,
        due_ms=record.due_ms,
        enqueued_ms=record.enqueued_ms,
        finished_ms=record.finished_ms,
        tries=record.tries,
        attempts=tuple(attempts),
    )


def _error(record: Record) -> str:
    if record.status == "success":
        return ""
    if record.started_ms and record.text:
        return record.text
    return str(error_without_value(record))


def _earlier(ledger: Sequence[Mapping[str, Any]]) -> tuple[list[PastAttempt], str]:
    """The attempts in a ledger, and why the one after them was started."""
    attempts: list[PastAttempt] = []
    why = ""
    for entry in ledger:
        outcome = str(entry["outcome"])
        attempts.append(PastAttempt(
            int(entry["try"]), str(entry["worker"]), int(entry["began"]), int(entry["ended"]),
            outcome, str(entry["error"]), _trace_id(str(entry["trace"])), why,
        ))  # fmt: skip
        why = str(entry.get("reason") or outcome)
    return attempts, why


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) > 1 else ""
