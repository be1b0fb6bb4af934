"""One log line for everything that happens to a task, as structlog's fields.

The lines go to the standard library's logger ``streaq.events``, so that the application's own
configuration says where they end up. Arguments and results are never in them unless asked for,
nor in the messages of exceptions that quote them, and a traceback is a list of places in the code,
without the values of any variable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple

from streaq.hooks import (
    Attempt,
    Cron,
    Ending,
    Enqueue,
    Fence,
    Hook,
    LoopBlocked,
    Reclaim,
    RedisLink,
    WorkerEvent,
)
from streaq.telemetry.lines import DEBUG, ERROR, INFO, METHODS, WARNING, writer_of
from streaq.telemetry.masking import masked
from streaq.telemetry.names_logs import LOGGER
from streaq.telemetry.propagation import ids
from streaq.types import StreaqError
from streaq.wire import MAX_MEMBERS, leaves_of, message_of, text_of

MAX_FRAMES = 20
MAX_CAUSES = 5
MAX_PLACES = 100
_ENGINE = str(Path(__file__).parents[1])


class LogRules(NamedTuple):
    """What may be in a line.

    :param arguments: log the arguments of each attempt.
    :param results: log the results.
    :param messages: log the messages of exceptions, with what they quote of the arguments masked
        unless ``arguments`` are logged.
    :param limit: characters after which a logged value is cut.
    """

    arguments: bool = False
    results: bool = False
    messages: bool = True
    limit: int = 500


class LogsHook(Hook):
    """Writes the lines of one worker.

    :param logger: a structlog logger; by default the lines go to ``streaq.events``.
    """

    def __init__(self, rules: LogRules | None = None, logger: Any = None) -> None:
        self._rules = rules or LogRules()
        self._write: dict[int, Callable[..., Any]] = {
            level: writer_of(level) if logger is None else getattr(logger, method)
            for level, method in METHODS.items()
        }
        target = logging.getLogger(LOGGER) if logger is None else logger
        self._enabled: Callable[[int], bool] = getattr(target, "isEnabledFor", lambda _: True)

    def is_quiet(self) -> bool:
        """While nobody reads of tasks that start or succeed."""
        return not self._enabled(INFO)

    # ----------------------------------------------------------------------------- tasks

    def on_enqueued(self, e: Enqueue) -> None:
        """``task.enqueued``."""
        if self._enabled(DEBUG) and not e.silent:
            trace_id, span_id = ids(e.headers.get("traceparent", ""))
            fields: dict[str, Any] = {
                "task": e.task,
                "task_id": e.task_id,
                "queue": e.queue,
                "priority": e.priority,
                "kind": e.kind,
                "delay_ms": e.delay_ms,
                "after": len(e.after),
            }
            if trace_id:
                fields.update(trace_id=trace_id, span_id=span_id)
            self._write[DEBUG]("task.enqueued", **fields)

    def on_cron(self, e: Cron) -> None:
        """``task.enqueued`` for a firing."""
        if e.fired_ms and self._enabled(DEBUG) and not e.silent:
            self._write[DEBUG](
                "task.enqueued",
                task=e.task,
                task_id=e.task_id,
                queue=e.queue,
                priority=e.priority,
                kind="cron",
                delay_ms=0,
                after=0,
            )

    def started(self, e: Attempt) -> None:
        """``task.started``; called once the attempt's span is open, so that its ids are known."""
        if not self._enabled(INFO) or e.silent:
            return
        fields = _attempt(e)
        fields.update(kind=e.kind, max_tries=e.max_tries, wait_ms=e.wait_ms)
        if self._rules.arguments:
            fields.update(args=self._cut(e.args), kwargs=self._cut(dict(e.kwargs)))
        self._write[INFO]("task.started", **fields)

    def on_finish(self, e: Ending) -> None:
        """``task.finished``."""
        if self._enabled(INFO) and not e.attempt.silent:
            fields = _ended(e)
            if self._rules.results:
                fields["result"] = self._cut(e.result)
            self._write[INFO]("task.finished", **fields)

    def on_retry(self, e: Ending) -> None:
        """``task.retried``."""
        if self._enabled(WARNING) and not e.attempt.silent:
            fields = _ended(e)
            fields["retry_in_ms"] = max(0, e.retry_due_ms - e.finished_ms)
            fields.update(self._error(e))
            self._write[WARNING]("task.retried", **fields)

    def on_return(self, e: Ending) -> None:
        """``task.retried`` with the outcome ``returned``: another worker will run it."""
        if self._enabled(WARNING) and not e.attempt.silent:
            self._write[WARNING]("task.retried", **_ended(e), retry_in_ms=0)

    def on_fail(self, e: Ending) -> None:
        """``task.failed``."""
        if self._enabled(ERROR) and not e.attempt.silent:
            self._write[ERROR]("task.failed", **_ended(e), **self._error(e))

    def on_abort(self, e: Ending) -> None:
        """``task.aborted``."""
        if self._enabled(WARNING) and not e.attempt.silent:
            self._write[WARNING]("task.aborted", **_ended(e))

    def on_refuse(self, e: Ending) -> None:
        """``task.refused``."""
        level = WARNING if e.reason == "expired" else ERROR
        if self._enabled(level) and not e.attempt.silent:
            fields = _attempt(e.attempt)
            fields["reason"] = e.reason
            self._write[level]("task.refused", **fields, **self._error(e))

    def on_reclaim(self, e: Reclaim) -> None:
        """``task.reclaimed``."""
        if self._enabled(WARNING) and not e.attempt.silent:
            fields = _attempt(e.attempt)
            self._write[WARNING]("task.reclaimed", **fields, lost_worker=e.lost_worker)

    def on_fenced(self, e: Fence) -> None:
        """``task.fenced``."""
        if self._enabled(WARNING) and not e.ending.attempt.silent:
            self._write[WARNING]("task.fenced", **_ended(e.ending))

    # ---------------------------------------------------------------------------- worker

    def on_worker_start(self, e: WorkerEvent) -> None:
        """``worker.started``."""
        from streaq import __version__

        self._write[INFO](
            "worker.started",
            queue=e.queue,
            worker_id=e.worker_id,
            concurrency=e.concurrency,
            priorities=list(e.priorities),
            tasks=list(e.tasks),
            backend=e.backend,
            version=__version__,
        )

    def on_worker_stop(self, e: WorkerEvent) -> None:
        """``worker.stopped``."""
        fields = {"queue": e.queue, "worker_id": e.worker_id, "reason": e.reason}
        self._write[INFO]("worker.stopped", **fields)

    def on_redis_lost(self, e: RedisLink) -> None:
        """``redis.lost``."""
        fields = {"queue": e.queue, "worker_id": e.worker_id, "error": e.error}
        self._write[WARNING]("redis.lost", **fields)

    def on_redis_restored(self, e: RedisLink) -> None:
        """``redis.restored``."""
        fields = {"queue": e.queue, "worker_id": e.worker_id}
        self._write[INFO]("redis.restored", **fields, outage_ms=round(e.outage_s * 1000))

    def on_loop_blocked(self, e: LoopBlocked) -> None:
        """``loop.blocked``, from the watchdog's thread."""
        self._write[WARNING](
            "loop.blocked",
            queue=e.queue,
            worker_id=e.worker_id,
            blocked_ms=round(e.blocked_s * 1000),
            where=e.where,
            tasks=list(e.tasks),
        )

    # ----------------------------------------------------------------------------- parts

    def _cut(self, value: object) -> str:
        text = repr(value)
        limit = self._rules.limit
        return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"

    def _error(self, e: Ending) -> dict[str, Any]:
        error = e.error
        if error is None:
            return {}
        fields: dict[str, Any] = {"error": type(error).__name__}
        if self._rules.messages:
            fields["message"] = self._message(error, e.attempt)
        places = list(traceback_of(error))
        if places:
            fields["traceback"] = places
        return fields

    def _message(self, error: BaseException, a: Attempt) -> str:
        limit = self._rules.limit
        text = message_of(error, self._text_of)
        is_brief = isinstance(error, StreaqError) and text == error.brief
        if not (is_brief or self._rules.arguments):
            return masked(text, a.args, a.kwargs, limit)
        return text if len(text) <= limit else f"{text[:limit]}..."

    def _text_of(self, error: BaseException) -> str:
        everything = self._rules.arguments and self._rules.results
        brief = error.brief if isinstance(error, StreaqError) else ""
        return brief if brief and not everything else text_of(error)


def _attempt(e: Attempt) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "task": e.task,
        "task_id": e.task_id,
        "queue": e.queue,
        "priority": e.priority,
        "try": e.try_number,
        "worker_id": e.worker_id,
    }
    if e.mark.trace:
        fields["trace_id"], fields["span_id"] = ids(e.mark.trace)
    return fields


def _ended(e: Ending) -> dict[str, Any]:
    fields = _attempt(e.attempt)
    fields["outcome"] = e.status
    fields["reason"] = e.reason
    fields["wait_ms"] = e.attempt.wait_ms
    fields["duration_ms"] = round(e.duration_s * 1000, 3)
    return fields


def traceback_of(error: BaseException) -> Iterator[str]:
    """Where an exception was raised, outermost call first: ``file:line in function``, then the
    same for those that a group is of, and for what caused it. No values of variables, no source
    lines, none of streaq's frames.
    """
    return islice(_places(error, set()), MAX_PLACES)


def _places(error: BaseException, told: set[int]) -> Iterator[str]:
    seen: BaseException | None = error
    for depth in range(MAX_CAUSES):
        if seen is None or id(seen) in told:
            return
        told.add(id(seen))
        if depth:
            yield f"caused by {type(seen).__name__}"
        places = [
            f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_qualname}"
            for frame, line in walk_tb(seen.__traceback__)
            if not frame.f_code.co_filename.startswith(_ENGINE)
        ]
        yield from places[-MAX_FRAMES:]
        for one in islice(leaves_of(seen), MAX_MEMBERS):
            if one is not seen:  # it is a group
                yield f"in the group: {type(one).__name__}"
                yield from _places(one, told)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
