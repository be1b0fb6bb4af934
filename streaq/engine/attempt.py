"""One attempt as a pipeline of values: decode, invoke, classify, settle.

The attempt never talks to Redis. It turns what was claimed into a settle, which the pump sends
with the next exchange.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import anyio

from streaq.broker.exchange import Claimed, End, Handover, Settle, new_tuple
from streaq.engine.catalog import Function
from streaq.engine.outcome import (
    Aborted,
    Cause,
    Failed,
    Forfeited,
    Outcome,
    Retried,
    Returned,
    Succeeded,
    classify,
    real_error,
)
from streaq.hooks import Attempt, Dispatcher, Ending, Kind, Mark, Reclaim, Status
from streaq.task import task_context
from streaq.types import StreaqError, TaskContext
from streaq.wire import Codec, decode_headers, make_record, one_line

logger = logging.getLogger("streaq")


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Lease:
    """The right to run one attempt, and the means to stop it."""

    __slots__ = ("attempt", "cause", "claimed", "function", "scope", "task")

    def __init__(self, claimed: Claimed, function: Function) -> None:
        self.claimed = claimed
        self.function = function
        self.scope: anyio.CancelScope | None = None
        self.cause: Cause | None = None
        self.attempt: Attempt | None = None
        self.task: object = None

    @property
    def trace(self) -> str:
        """The attempt's traceparent; empty when nobody traces."""
        return self.attempt.mark.trace if self.attempt is not None else ""

    def context(self) -> TaskContext:
        """What the task can know about itself; made when it asks."""
        c, task = self.claimed, self.function.task
        return TaskContext(self.function.name, c.task_id, task.timeout, c.try_number, task.ttl)

    def cancel(self, cause: Cause) -> None:
        """Stop the attempt; the first cause stands."""
        if self.cause is None:
            self.cause = cause
        if self.scope is not None:
            self.scope.cancel()


class Finished(NamedTuple):
    """An attempt that ended: what to settle, and what to tell hooks once that has committed."""

    lease: Lease
    settle: Settle | None
    """None when the lease was lost."""
    counter: str
    """Which of the worker's counters it adds to."""
    ending: Ending | None
    """None when nobody listens."""


_STATUS: dict[type[Outcome], Status] = {
    Succeeded: "success",
    Failed: "failed",
    Retried: "retried",
    Aborted: "aborted",
    Returned: "returned",
    Forfeited: "failed",
}

_COUNTER: dict[type[Outcome], str] = {
    Succeeded: "completed",
    Failed: "failed",
    Retried: "retried",
    Aborted: "aborted",
    Returned: "relinquished",
    Forfeited: "fenced",
}

_REASON: dict[type[Outcome], str] = {
    Succeeded: "ok",
    Returned: "shutdown",
    Forfeited: "lost",
}


class Attempts:
    """Runs attempts for one worker.

    :param finished: called with each attempt that ended.
    """

    def __init__(
        self,
        codec: Codec,
        hooks: Dispatcher,
        *,
        queue: str,
        worker_id: str,
        finished: Callable[[Finished], None],
    ) -> None:
        self._codec = codec
        self._hooks = hooks
        self._queue = queue
        self._worker_id = worker_id
        self._finished = finished
        # The backend's own class: anyio.CancelScope looks for it anew each time it is called.
        self._new_scope = type(anyio.CancelScope())
        # Whether anybody wants to know of single attempts at all.
        self._observed = any(
            (
                hooks.around_attempt, hooks.on_start, hooks.on_retry, hooks.on_fail,
                hooks.on_finish, hooks.on_abort, hooks.on_refuse, hooks.on_return,
                hooks.on_fenced, hooks.on_reclaim,
            )
        )  # fmt: skip

    async def run(self, lease: Lease) -> None:
        """Run one attempt to its end; never raises."""
        began = time.monotonic()
        try:
            outcome = await self._outcome(lease, began)
            settle = await self._settle(lease, outcome, began)
        except Exception as e:
            logger.exception("attempt of %s failed in the engine itself", lease.claimed.task_id)
            outcome = Failed(e)
            settle = self._end(lease, "failed", "error", began, b"", one_line(e))
        ending = None
        if (attempt := lease.attempt) is not None:
            ending = attempt.mark.end or self._ending(attempt, outcome, began)
            # It refers to the attempt: a cycle, which only the garbage collector would free.
            attempt.mark.end = None
        lease.task = None  # its context refers to the lease: the same
        self._finished(new_tuple(Finished, (lease, settle, _COUNTER[type(outcome)], ending)))

    async def _outcome(self, lease: Lease, began: float) -> Outcome:
        """Decode, then run the body, with hooks around it if there are any."""
        try:
            args, kwargs = await self._decode(lease.claimed)
        except StreaqError as e:
            if self._observed:
                self._announce(lease, (), {}, start=False)
            return Failed(e, "undecodable")
        if not self._observed:
            return await self._invoke(lease, args, kwargs)
        attempt = self._announce(lease, args, kwargs, start=True)
        hooks = self._hooks
        if not hooks.around_attempt:
            return await self._invoke(lease, args, kwargs)
        with hooks.around(hooks.around_attempt, attempt):
            outcome = await self._invoke(lease, args, kwargs)
            attempt.mark.end = self._ending(attempt, outcome, began)
        return outcome

    async def _decode(self, claimed: Claimed) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = await self._codec.load_call(claimed.fn, claimed.args)
        if claimed.input:
            args = await self._codec.load_input(claimed.input)
        return args, kwargs

    async def _invoke(self, lease: Lease, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
        function = lease.function
        task_context.set(lease.context)
        policy = function.policy
        scope = self._new_scope()
        error: BaseException | None = None
        value, succeeded = None, False
        lease.scope = scope
        if lease.cause is not None:
            scope.cancel()
        try:
            with scope:
                if policy.timeout_s is not None:
                    scope.deadline = anyio.current_time() + policy.timeout_s
                value = await function.call(*args, **kwargs)
                # What was done in time counts, even if a cancellation was on its way.
                succeeded = True
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # noqa: BLE001 - a task may raise what it likes, SystemExit included
            error = e
        finally:
            lease.scope = None
        if succeeded:
            return await self._succeed(value)
        return classify(error, self._cause(lease, scope, error), policy, lease.claimed.try_number)

    async def _succeed(self, value: Any) -> Outcome:
        try:
            return Succeeded(value, await self._codec.dump_value(value))
        except StreaqError as e:
            return Failed(e)

    @staticmethod
    def _cause(lease: Lease, scope: anyio.CancelScope, error: BaseException | None) -> Cause | None:
        if lease.cause is not None:
            return lease.cause
        if error is None:
            return Cause.TIMEOUT if scope.cancelled_caught else None
        if isinstance(error, asyncio.CancelledError) and _asyncio_cancels():
            return Cause.SHUTDOWN  # somebody tears the event loop down
        return None

    def _announce(
        self, lease: Lease, args: tuple[Any, ...], kwargs: dict[str, Any], *, start: bool
    ) -> Attempt:
        hooks, c = self._hooks, lease.claimed
        attempt = new_tuple(Attempt, (
            self._queue, c.fn, c.task_id, c.priority, cast("Kind", c.kind), c.try_number,
            lease.function.policy.max_tries, self._worker_id, c.created_ms, c.due_ms,
            int(c.message_id.partition(b"-")[0]), c.started_ms,
            decode_headers(c.headers) if c.headers else _NO_HEADERS, c.previous,
            tuple(c.links.split()) if c.links else (), lease.function.silent, args, kwargs, Mark(),
            c.first_due_ms,
        ))  # fmt: skip
        lease.attempt = attempt
        if c.lost_worker and hooks.on_reclaim:
            hooks.emit(hooks.on_reclaim, Reclaim(attempt, c.lost_worker))
        if start and hooks.on_start:
            hooks.emit(hooks.on_start, attempt)
        return attempt

    def _ending(self, attempt: Attempt, outcome: Outcome, began: float) -> Ending:
        duration_s = time.monotonic() - began
        finished_ms = attempt.started_ms + round(duration_s * 1000)
        if isinstance(outcome, Succeeded):
            value = outcome.value
            fields = (attempt, "success", "ok", None, finished_ms, duration_s, 0, value)
            return new_tuple(Ending, fields)
        error = None if isinstance(outcome, Returned | Forfeited) else outcome.error
        retry_due_ms = 0
        if isinstance(outcome, Retried):
            relative = outcome.when.startswith("+")
            retry_due_ms = int(outcome.when) + (finished_ms if relative else 0)
        status = _STATUS[type(outcome)]
        if isinstance(outcome, Failed) and outcome.reason == "undecodable":
            status = "refused"
        reason = _REASON.get(type(outcome)) or getattr(outcome, "reason", "")
        return Ending(attempt, status, reason, error, finished_ms, duration_s, retry_due_ms, None)

    async def _settle(self, lease: Lease, outcome: Outcome, began: float) -> Settle | None:
        """The outcome as the exchange takes it."""
        if isinstance(outcome, Succeeded):
            return self._end(lease, "success", "ok", began, outcome.raw)
        if isinstance(outcome, Failed | Aborted):
            status = "failed" if isinstance(outcome, Failed) else "aborted"
            value = await self._codec.dump_error(outcome.error)
            text = one_line(outcome.error)
            return self._end(lease, status, outcome.reason, began, value, text)
        if isinstance(outcome, Retried):
            value = await self._codec.dump_error(real_error(outcome.error))
            return self._hand_over(lease, "retry", value, one_line(outcome.error), outcome.when)
        if isinstance(outcome, Returned):
            return self._hand_over(lease, "return")
        return None

    def _end(
        self, lease: Lease, status: str, reason: str, began: float, value: bytes, text: str = ""
    ) -> End:
        c, f = lease.claimed, lease.function
        enqueued_ms, _, _ = c.message_id.partition(b"-")
        record = make_record(
            status, reason, c.fn, c.task_id, c.created_ms, enqueued_ms.decode(), c.started_ms,
            c.started_ms + round((time.monotonic() - began) * 1000), c.try_number,
            self._worker_id, c.priority, c.due_ms, lease.trace, text, c.log, value,
        )  # fmt: skip
        flags = f.flags if status == "success" else f.flags.replace("c", "")
        fields = (c.task_id, c.message_id, c.priority, c.try_number, f.keep, flags, record)
        return new_tuple(End, fields)

    @staticmethod
    def _hand_over(
        lease: Lease, action: str, value: bytes = b"", text: str = "", when: str = ""
    ) -> Handover:
        c = lease.claimed
        return Handover(
            c.task_id, c.message_id, c.priority, c.try_number, action, value, text, when,
            lease.trace, lease.function.flags,
        )  # fmt: skip


def never_began(lease: Lease) -> Finished:
    """The end of an attempt whose claim arrived when the worker had stopped claiming: handed back
    before its body ran.
    """
    c = lease.claimed
    settle = Handover(
        c.task_id, c.message_id, c.priority, c.try_number, "return", b"", "", "", "",
        lease.function.flags,
    )  # fmt: skip
    return Finished(lease, settle, _COUNTER[Returned], None)


def _asyncio_cancels() -> bool:
    """Whether the asyncio task that runs here was cancelled from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
