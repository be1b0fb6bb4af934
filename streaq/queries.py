"""Questions about tasks, and the wish to stop one: from what Redis says to what users hold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any

import anyio

from streaq.broker.publish import text, whole
from streaq.events import never_started, tell_changes
from streaq.explain import Dependency, explain
from streaq.history import TaskHistory, history_of_ended, history_of_live
from streaq.hooks import Dispatcher, Ending
from streaq.task import TaskInfo, TaskResult, TaskStatus
from streaq.types import StreaqCancelled, StreaqError
from streaq.wire import GAVE_UP, Codec, Record, error_without_value, parse_record

if TYPE_CHECKING:
    from streaq.broker.inspect import Seen
    from streaq.broker.link import Aborted, Broker

logger = logging.getLogger("streaq")

_STATUS = {
    "": TaskStatus.NOT_FOUND,
    "queued": TaskStatus.QUEUED,
    "running": TaskStatus.RUNNING,
    "scheduled": TaskStatus.SCHEDULED,
    "blocked": TaskStatus.SCHEDULED,
    "done": TaskStatus.DONE,
}


MAX_LISTED = 100_000
"""Tasks in one list: one call to Redis reads it, and all others wait for that meanwhile."""


class Queries:
    """Asks one queue."""

    def __init__(
        self,
        broker: Broker,
        codec: Codec,
        hooks: Dispatcher,
        *,
        queue: str,
        client_id: str,
        priorities: Sequence[str],
        tz: tzinfo,
    ) -> None:
        self._broker = broker
        self._codec = codec
        self._hooks = hooks
        self._queue = queue
        self._client_id = client_id
        self._priorities = priorities
        self._tz = tz

    async def status(self, task_id: str) -> TaskStatus:
        """Where a task is."""
        (seen,) = await self._broker.look([task_id])
        return _STATUS[seen.state]

    async def result(self, task_id: str, timeout_s: float | None) -> TaskResult[Any]:
        """The result, waited for."""
        raw = None
        with anyio.move_on_after(timeout_s):
            raw = await self._broker.wait_result(task_id)
        if raw is None:
            raise TimeoutError(f"Task {task_id} has not ended within {timeout_s:g} s.")
        return await self.read_result(raw)

    async def read_result(self, raw: bytes) -> TaskResult[Any]:
        """A stored record as users hold it.

        :raises StreaqError: when the stored value can't be read.
        """
        record = parse_record(raw)
        success = record.status == "success"
        if record.value:
            value = await self._codec.load_value(record.value)
            if record.reason == "exhausted" and isinstance(value, BaseException):
                _note_tries(value, record.tries)
        else:
            value = None if success else error_without_value(record)
        return _result(record, success=success, value=value)

    async def info(self, task_id: str) -> TaskInfo | None:
        """What is known of a task that has not ended."""
        (seen,) = await self._broker.look([task_id], arguments=True)
        return await self._info(seen) if seen.state not in ("", "done") else None

    async def abort(self, task_id: str, timeout_s: float | None) -> bool:
        """Whether the task was cancelled, as far as is known in time."""
        aborted = await self._broker.abort(task_id)
        if aborted.word == "aborted":
            self._tell_aborted(task_id, aborted)
            return True
        if aborted.word != "asked" or timeout_s == 0:
            return False
        with anyio.move_on_after(timeout_s):
            record = parse_record(await self._broker.wait_result(task_id))
            return record.status == "aborted"
        return False

    async def history(self, task_id: str) -> TaskHistory | None:
        """The ledger of a task; None when it is not known."""
        (seen,) = await self._broker.look([task_id], arguments=True)
        if seen.state != "done":
            return history_of_live(seen) if seen.state else None
        # Once more and whole: a look has but the head of the record.
        (raw,) = await self._broker.fetch_results([task_id])
        return None if raw is None else history_of_ended(parse_record(raw))

    async def explain(self, task_id: str) -> str:
        """Why a task is not running, in one line."""
        history = await self.history(task_id)
        standing = await self._broker.standing(task_id)
        snapshot = await self._broker.snapshot()
        dependencies: list[Dependency] = []
        if history is not None and history.state == "blocked":
            (seen,) = await self._broker.look([task_id])
            others = await self._broker.look(sorted(seen.dependencies))
            dependencies = [Dependency(o.task_id, o.text("fn"), o.state) for o in others]
        return explain(history, standing, snapshot, dependencies)

    async def unschedule(self, task_id: str) -> bool:
        """Whether there was a repeating task."""
        there, changes = await self._broker.unschedule(task_id)
        tell_changes(self._hooks, self._queue, self._client_id, 0, changes)
        return there

    async def by_status(self, status: TaskStatus, priority: str | None, limit: int) -> list[Any]:
        """Tasks in a state."""
        if status is TaskStatus.NOT_FOUND:
            raise StreaqError("Tasks that don't exist can't be listed.")
        _check_limit(limit)
        if priority is not None and priority not in self._priorities:
            raise StreaqError(f"There is no priority {priority!r}.")
        priorities = [priority] if priority else self._priorities
        ids = await self._broker.list_ids(status.value, limit, priorities)
        if status is TaskStatus.DONE:
            records = await self._broker.fetch_results(ids)
            return [await self._listed_result(raw) for raw in records if raw is not None]
        seen = await self._broker.look(ids, arguments=True)
        return [await self._listed_info(task) for task in seen if _STATUS[task.state] is status]

    # One task that can't be read must not hide the others of a list.

    async def _listed_result(self, raw: bytes) -> TaskResult[Any]:
        try:
            return await self.read_result(raw)
        except StreaqError as e:
            return _result(parse_record(raw), success=False, value=e)

    async def _listed_info(self, seen: Seen) -> TaskInfo:
        try:
            return await self._info(seen)
        except StreaqError as e:
            why = e.brief or e
            logger.warning("task %s is listed without its arguments: %s", seen.task_id, why)
            return self._info_with(seen, (), {})

    async def _info(self, seen: Seen) -> TaskInfo:
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if raw := seen.fields.get("args"):
            args, kwargs = await self._codec.load_call(seen.text("fn"), raw)
        return self._info_with(seen, args, kwargs)

    def _info_with(self, seen: Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskInfo:
        scheduled = None
        if seen.scheduled_ms is not None:
            scheduled = datetime.fromtimestamp(seen.scheduled_ms / 1000, tz=self._tz)
        return TaskInfo(
            task_id=seen.task_id,
            fn_name=seen.text("fn"),
            created_time=seen.number("made"),
            args=args,
            kwargs=kwargs,
            tries=seen.number("try"),
            scheduled=scheduled,
            dependencies=seen.dependencies,
            dependents=seen.dependents,
            status=_STATUS[seen.state],
        )

    def _tell_aborted(self, task_id: str, aborted: Aborted) -> None:
        now_ms = int(aborted.fields[8]) if aborted.fields else 0
        if self._hooks.on_abort and aborted.fields:
            fields = aborted.fields
            attempt = never_started(
                self._hooks, self._queue, self._client_id, task_id, text(fields[1]),
                text(fields[0]), text(fields[5]), whole(fields[2]), whole(fields[3]), fields[6],
                now_ms, tries=whole(fields[4]), enqueued_ms=whole(fields[9]),
                previous=text(fields[7]),
            )  # fmt: skip
            error = StreaqCancelled("The task was aborted before it ran.")
            ending = Ending(attempt, "aborted", "user", error, now_ms, 0.0, 0, None)
            self._hooks.emit(self._hooks.on_abort, ending)
        tell_changes(self._hooks, self._queue, self._client_id, now_ms, aborted.changes)


def _check_limit(given: object) -> None:
    if not isinstance(given, int) or not 0 <= given <= MAX_LISTED:
        raise StreaqError(f"limit is a whole number up to {MAX_LISTED:,}; it is {given!r}.")


def _note_tries(error: BaseException, tries: int) -> None:
    """Redis, where a task whose workers died ends, can't write into its last error."""
    note = GAVE_UP.format(tries=tries)
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _result(record: Record, *, success: bool, value: Any) -> TaskResult[Any]:
    return TaskResult(
        task_id=record.task_id,
        fn_name=record.fn,
        created_time=record.created_ms,
        enqueue_time=record.enqueued_ms,
        success=success,
        start_time=record.started_ms,
        finish_time=record.finished_ms,
        tries=record.tries,
        worker_id=record.worker_id,
        _result=value,
    )
