"""Names of the log events and of their fields; read them as ``streaq.telemetry.names``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["debug", "info", "warning", "error"]

LOGGER = "streaq.events"
"""Name of the standard-library logger that the events go through."""

CONTEXT_FIELDS = (
    "task",
    "task_id",
    "queue",
    "priority",
    "try",
    "worker_id",
    "trace_id",
    "span_id",
)
"""Bound while a task runs, so that the user's own lines carry them too."""

TASK_FIELDS = ("task", "task_id", "queue", "priority")

FIELDS: dict[str, str] = {
    "task": "Name of the task.",
    "task_id": "Id of the task.",
    "queue": "Name of the queue.",
    "priority": "Priority of the task.",
    "try": "Number of the try, from 1.",
    "worker_id": "Id of the worker.",
    "trace_id": "Trace of the attempt, 32 hex digits; absent without an OpenTelemetry SDK.",
    "span_id": "Span of the attempt, 16 hex digits; absent without an OpenTelemetry SDK.",
    "kind": "Why the task became due: immediate, delayed, cron, dependent or retry.",
    "delay_ms": "Intended delay in milliseconds.",
    "after": "Number of tasks that it waits for.",
    "max_tries": "Tries the task may have; null when unlimited.",
    "wait_ms": "Milliseconds from being due and queued to the start; intended delay excluded.",
    "duration_ms": "Milliseconds the body ran, with fractions.",
    "outcome": "success, failed, aborted, retried, returned, lost or refused.",
    "reason": "More on the outcome in one word, such as error, timeout, user, expired.",
    "error": "Class of the exception.",
    "message": "Message of the exception, of which 500 characters are told (then `...`), with "
    "`***` for what it quotes of the task's arguments; see Telemetry(log_errors=...).",
    "traceback": "Where it was raised: file, line and function, never the values of variables; "
    "then the same for the first of a group, and for what caused it.",
    "retry_in_ms": "Milliseconds until the next try is due.",
    "lost_worker": "Id of the worker whose lease ran out.",
    "concurrency": "Attempts the worker runs at once.",
    "priorities": "Priorities the worker serves, lowest first.",
    "tasks": "Tasks the worker registers, or those running while the loop is blocked.",
    "backend": "Event loop and Python, such as asyncio, Python 3.12.1.",
    "version": "Version of streaq.",
    "outage_ms": "Milliseconds that Redis was gone.",
    "blocked_ms": "Milliseconds since the event loop last ran.",
    "where": "File, line and function that the event loop stands on.",
    "args": "Positional arguments, cut; only with Telemetry(log_args=True).",
    "kwargs": "Keyword arguments, cut; only with Telemetry(log_args=True).",
    "result": "Result, cut; only with Telemetry(log_results=True).",
}
"""What each field of a log line means."""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One log line: its event name, level, meaning and fields (optional ones last).

    ``other_levels`` are those that it has for some reasons.
    """

    name: str
    level: Level
    help: str
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()
    other_levels: Mapping[str, Level] = field(default_factory=dict[str, Level])


_ATTEMPT = (*TASK_FIELDS, "try", "worker_id")
_TRACE = ("trace_id", "span_id")
_ENDED = (*_ATTEMPT, "outcome", "reason", "wait_ms", "duration_ms")
_ERROR = ("error", "message", "traceback")
_ARGUMENTS = ("args", "kwargs")

LOG_EVENTS: tuple[LogEvent, ...] = (
    LogEvent(
        "task.enqueued",
        "debug",
        "A task was written to the queue.",
        (*TASK_FIELDS, "kind", "delay_ms", "after"),
        _TRACE,
    ),
    LogEvent(
        "task.started",
        "info",
        "An attempt begins.",
        (*_ATTEMPT, "kind", "max_tries", "wait_ms"),
        (*_TRACE, *_ARGUMENTS),
    ),
    LogEvent(
        "task.finished",
        "info",
        "The canonical line of a task that succeeded: how long it waited, how long it ran.",
        _ENDED,
        (*_TRACE, "result"),
    ),
    LogEvent(
        "task.retried",
        "warning",
        "The attempt ended and another try will follow; also when it was handed back at shutdown "
        "(outcome returned).",
        (*_ENDED, "retry_in_ms"),
        (*_TRACE, *_ERROR),
    ),
    LogEvent("task.failed", "error", "The task failed for good.", _ENDED, (*_TRACE, *_ERROR)),
    LogEvent(
        "task.aborted",
        "warning",
        "The task was aborted, while it ran or before.",
        _ENDED,
        _TRACE,
    ),
    LogEvent(
        "task.refused",
        "error",
        "The task ended without its body being run.",
        (*_ATTEMPT, "reason"),
        (*_TRACE, *_ERROR),
        {"expired": "warning"},
    ),
    LogEvent(
        "task.reclaimed",
        "warning",
        "An attempt was taken over from a worker that stopped renewing its lease.",
        (*_ATTEMPT, "lost_worker"),
        _TRACE,
    ),
    LogEvent(
        "task.fenced",
        "warning",
        "A settle came too late and changed nothing: another worker has the task.",
        _ENDED,
        _TRACE,
    ),
    LogEvent(
        "worker.started",
        "info",
        "The worker is ready to claim.",
        (
            "queue",
            "worker_id",
            "concurrency",
            "priorities",
            "tasks",
            "backend",
            "version",
        ),
    ),
    LogEvent(
        "worker.stopped",
        "info",
        "The worker has settled or handed back everything.",
        ("queue", "worker_id", "reason"),
    ),
    LogEvent(
        "redis.lost",
        "warning",
        "Redis is gone; the worker goes on trying.",
        ("queue", "worker_id", "error"),
    ),
    LogEvent(
        "redis.restored",
        "info",
        "Redis is back.",
        ("queue", "worker_id", "outage_ms"),
    ),
    LogEvent(
        "loop.blocked",
        "warning",
        "Something holds the event loop; leases cannot be relied upon while it lasts.",
        ("queue", "worker_id", "blocked_ms", "where", "tasks"),
    ),
)
