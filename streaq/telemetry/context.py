"""What every log line written inside a task carries: which task, which try, which trace.

The values are bound as structlog's own context variables, which ``merge_contextvars`` (part of
structlog's default configuration) merges into the user's lines. ``TaskContextFilter`` does the
same for the standard library.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from structlog.contextvars import bind_contextvars, reset_contextvars

from streaq.hooks import Entry, Hook, Lane
from streaq.telemetry.lines import Line
from streaq.telemetry.names_logs import CONTEXT_FIELDS


def _variables() -> tuple[ContextVar[Any], ...]:
    """Structlog's variables of our names: binding tells them, one by one."""
    tokens = bind_contextvars(**dict.fromkeys(CONTEXT_FIELDS))
    reset_contextvars(**tokens)
    return tuple(tokens[name].var for name in CONTEXT_FIELDS)


_TASK, _TASK_ID, _QUEUE, _PRIORITY, _TRY, _WORKER_ID, _TRACE_ID, _SPAN_ID = _variables()
_ALL = (_TASK, _TASK_ID, _QUEUE, _PRIORITY, _TRY, _WORKER_ID, _TRACE_ID, _SPAN_ID)


class ContextHook(Hook):
    """Binds the fields of each attempt.

    Every attempt runs in a context of its own, with which they go, so they are never unbound.
    """

    def on_lane(self, e: Lane) -> None:
        """Bind what all attempts of the lane share."""
        _TASK.set(e.task)
        _QUEUE.set(e.queue)
        _PRIORITY.set(e.priority)
        _WORKER_ID.set(e.worker_id)
        _TRY.set(1)

    def on_enter(self, e: Entry) -> None:
        """Bind what they do not."""
        _TASK_ID.set(e.task_id)
        if e.try_number != 1:
            _TRY.set(e.try_number)


def bind_trace(trace: str) -> None:
    """Bind the ids of the attempt's span, by its traceparent; a span that has none has no ids."""
    if not trace:
        return
    _TRACE_ID.set(trace[3:35])
    _SPAN_ID.set(trace[36:52])


def current_fields() -> dict[str, Any]:
    """The fields bound now, by name; empty outside a task."""
    found: dict[str, Any] = {}
    for name, var in zip(CONTEXT_FIELDS, _ALL, strict=True):
        value = var.get(...)
        if value is not ...:
            found[name] = value
    return found


class TaskContextFilter(logging.Filter):
    """Adds the fields of the running task to standard-library log records.

    ``task``, ``task_id``, ``queue``, ``priority``, ``try``, ``worker_id``, ``trace_id`` and
    ``span_id`` become attributes of the record; outside a task they are empty. Streaq's own lines
    are of the task that they tell of, wherever they are written. ``streaq run`` installs it;
    elsewhere put it on a handler.

    Example::

        handler.addFilter(TaskContextFilter())
        handler.setFormatter(logging.Formatter("%(task_id)s %(trace_id)s %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Write the fields to the record; it always passes."""
        said = record.msg
        fields = said if isinstance(said, Line) else current_fields()
        for name in CONTEXT_FIELDS:
            if not hasattr(record, name):
                setattr(record, name, fields.get(name, ""))
        return True
