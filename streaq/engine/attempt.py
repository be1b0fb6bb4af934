"""One attempt as a pipeline of values: decode, invoke, classify, settle.

The attempt never talks to Redis. It turns what was claimed into a settle, which the pump sends
with the next exchange.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import anyio

from streaq.broker.exchange import Claimed, End, Handover, Settle, new_tuple
from streaq.engine.lanes import Lane
from streaq.engine.outcome import (
    Aborted,
    Cause,
    Failed,
    Outcome,
    Retried,
    Returned,
    Succeeded,
    classify,
    real_error,
    said,
)
from streaq.engine.telling import Events
from streaq.hooks import Attempt, Dispatcher, Ending, Reclaim
from streaq.task import task_context
from streaq.types import StreaqError, TaskContext
from streaq.wire import Codec, make_record, one_line

logger = logging.getLogger("streaq")


Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""What a function is called with."""
WAITS_ANEW = "+0"
"""When a task is due that ran and is handed back: the time that it ran is no waiting."""


class Lease:
    """The right to run one attempt, and the means to stop it."""

    # Class attributes: one is made for each attempt, and to set them all would take its time.
    call: Call = ((), MappingProxyType({}))
    """What the function is called with, once it is decoded."""
    scope: anyio.CancelScope | None = None
    cause: Cause | None = None
    attempt: Attempt | None = None
    """For hooks; None while none of them watches."""
    task: object = None
    overdue_s: float = 0.0
    """Seconds between when its task could first have run, and the claim; for hooks that count."""

    def __init__(self, claimed: Claimed, lane: Lane) -> None:
        self.claimed = claimed
        self.lane = lane
        self.function = lane.function

    @property
    def trace(self) -> str:
        """The attempt's traceparent; empty when nobody traces."""
        return self.attempt.mark.trace if self.attempt is not None else ""

    def about(self) -> TaskContext:
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
    outcome: Outcome
    ending: Ending | None
    """None when nobody listens."""
    duration_s: float


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
        self._worker_id = worker_id
        self._finished = finished
        self._events = Events(queue, worker_id)
        self.traced: Callable[[str], None] = _ignore
        """Told of the trace of each attempt that begins and has one."""
        self._enter = hooks.on_enter
        # The backend's own class: anyio.CancelScope looks for it anew each time it is called.
        self._new_scope = type(anyio.CancelScope())
        # Whether anybody wants to know of attempts that nobody watches, if they do not succeed.
        self._observed = any(
            (
                hooks.around_attempt, hooks.on_start, hooks.on_retry, hooks.on_fail,
                hooks.on_finish, hooks.on_abort, hooks.on_refuse, hooks.on_return,
                hooks.on_fenced, hooks.on_reclaim,
            )
        )  # fmt: skip

    async def run(self, lease: Lease) -> None:
        """Run one attempt to its end; never raises."""
        for enter in self._enter:
            try:
                enter(lease.claimed)
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001 - no hook may harm a task, whatever it raises
                self._hooks.report(enter)
        began = time.monotonic()
        try:
            outcome = await self._outcome(lease, began)
            duration_s = time.monotonic() - began
            settle = await self._settle(lease, outcome, duration_s)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as e:  # noqa: BLE001 - whatever it is, the task ends, and has a slot no more
            # Without the message, which may quote what was passed to the task.
            where = "".join(traceback.format_tb(e.__traceback__))
            logger.error(  # noqa: TRY400 - see above
                "attempt of %s failed in the engine itself: %s\n%s",
                lease.claimed.task_id,
                type(e).__name__,
                where,
            )
            outcome, duration_s = Failed(e), time.monotonic() - began
            settle = self._end(lease, "failed", "error", duration_s, b"", one_line(e))
            if lease.attempt is not None:
                lease.attempt.mark.end = None  # it may say something else
        ending = None
        if self._observed and (lease.attempt is not None or type(outcome) is not Succeeded):
            ending = self._events.end(lease, outcome, duration_s)
            duration_s = ending.duration_s
        lease.task = None  # its context refers to the lease: a cycle
        fields = (lease, settle, outcome, ending, duration_s)
        self._finished(new_tuple(Finished, fields))

    async def _outcome(self, lease: Lease, began: float) -> Outcome:
        """Decode, then run the body, with hooks around it if anybody watches."""
        hooks, claimed = self._hooks, lease.claimed
        try:
            lease.call = await self._decode(claimed)
        except StreaqError as e:
            self._tell_reclaim(lease)
            return Failed(e, "undecodable")
        if claimed.lost_worker:
            self._tell_reclaim(lease)
        if not hooks.watching:
            return await self._invoke(lease)
        attempt = lease.attempt = lease.attempt or self._events.attempt(lease)
        if hooks.on_start:
            hooks.emit(hooks.on_start, attempt)
        if not hooks.around_attempt:
            return await self._invoke(lease)
        with hooks.around(hooks.around_attempt, attempt):
            if attempt.mark.trace:
                self.traced(attempt.mark.trace)
            outcome = await self._invoke(lease)
            duration_s = time.monotonic() - began
            attempt.mark.end = self._events.ending(attempt, outcome, duration_s)
        return outcome

    def _tell_reclaim(self, lease: Lease) -> None:
        lost_worker = lease.claimed.lost_worker
        if lost_worker and self._hooks.on_reclaim:
            attempt = self._events.attempt(lease)
            if self._hooks.watching:
                lease.attempt = attempt
            self._hooks.emit(self._hooks.on_reclaim, Reclaim(attempt, lost_worker))

    async def _decode(self, claimed: Claimed) -> Call:
        call = await self._codec.load_call(claimed.fn, claimed.args)
        if claimed.input:
            return await self._codec.load_input(claimed.input), call[1]
        return call

    async def _invoke(self, lease: Lease) -> Outcome:
        function = lease.function
        args, kwargs = lease.call
        task_context.set(lease.about)
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

    async def _settle(self, lease: Lease, outcome: Outcome, duration_s: float) -> Settle | None:
        """The outcome as the exchange takes it."""
        if isinstance(outcome, Succeeded):
            return self._end(lease, "success", "ok", duration_s, outcome.raw)
        if isinstance(outcome, Failed | Aborted):
            status = "failed" if isinstance(outcome, Failed) else "aborted"
            value = await self._codec.dump_error(outcome.error)
            text = one_line(outcome.error)
            return self._end(lease, status, outcome.reason, duration_s, value, text)
        if isinstance(outcome, Retried):
            value = await self._codec.dump_error(real_error(outcome.error))
            text = said(outcome.error)
            return self._hand_over(lease, "retry", value, text, outcome.when, outcome.reason)
        if isinstance(outcome, Returned):
            return self._hand_over(lease, "return", when=WAITS_ANEW)
        return None

    def _end(
        self,
        lease: Lease,
        status: str,
        reason: str,
        duration_s: float,
        value: bytes,
        text: str = "",
    ) -> End:
        c, f = lease.claimed, lease.function
        enqueued_ms, _, _ = c.message_id.partition(b"-")
        record = make_record(
            status, reason, c.fn, c.task_id, c.created_ms, enqueued_ms.decode(), c.started_ms,
            c.started_ms + round(duration_s * 1000), c.try_number,
            self._worker_id, c.priority, c.due_ms, lease.trace, text, c.log, value,
        )  # fmt: skip
        flags = f.flags if status == "success" else f.flags.replace("c", "")
        fields = (c.task_id, c.message_id, c.priority, c.try_number, f.keep, flags, record)
        return new_tuple(End, fields)

    @staticmethod
    def _hand_over(
        lease: Lease,
        action: str,
        value: bytes = b"",
        text: str = "",
        when: str = "",
        reason: str = "",
    ) -> Handover:
        c = lease.claimed
        return Handover(
            c.task_id, c.message_id, c.priority, c.try_number, action, value, text, when,
            lease.trace, lease.function.flags, reason,
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
    return Finished(lease, settle, Returned(), None, 0.0)


def _ignore(_: str) -> None:
    """While nobody wants to know."""


def _asyncio_cancels() -> bool:
    """Whether the asyncio task that runs here was cancelled from outside."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
