"""The only way out of the core: what happens to tasks, told to whoever listens.

The engine and the broker know nothing of telemetry. They build an event only when some hook has
overridden the method for it, so a slot without an implementer costs one truth test. Hooks are
called synchronously and must not do I/O; one that raises is logged and counted, and never harms
a task. Hooks that tell an outcome fire after the settle has committed in Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

logger = logging.getLogger("streaq")

Kind: TypeAlias = Literal["immediate", "delayed", "cron", "dependent", "retry"]
"""Why a task became due: at once, later, by a schedule, after another task, or again."""

Status: TypeAlias = Literal["success", "failed", "aborted", "retried", "returned", "refused"]
"""How an attempt (or the refusal to start one) ended."""


class Enqueue(NamedTuple):
    """One task on its way into the queue. ``headers`` may be written: they travel with it."""

    queue: str
    task: str
    task_id: str
    priority: str
    kind: Kind
    delay_ms: int
    """Intended delay from now until due; 0 when it is due at once."""
    after: tuple[str, ...]
    """Ids of the tasks it waits for."""
    headers: dict[str, str]
    silent: bool
    fired_ms: int = 0
    """The firing that this task stands for, when a cron job of the code makes it and no caller
    does; else 0."""


class Publish(NamedTuple):
    """One call that enqueues: a single task, a pipeline, or a batch."""

    queue: str
    client_id: str
    tasks: Sequence[Enqueue]


class Mark:
    """What a hook leaves on an attempt, and what the engine tells it at the end.

    ``trace`` (a W3C traceparent) is kept in the ledger and handed to the next attempt and to the
    tasks that wait for this one. ``end`` is set by the engine before ``around_attempt`` exits.
    """

    __slots__ = ("end", "trace")

    def __init__(self) -> None:
        self.trace: str = ""
        self.end: Ending | None = None


class Attempt(NamedTuple):
    """One run of a task, or the refusal to start one (then ``started_ms`` is 0)."""

    queue: str
    task: str
    task_id: str
    priority: str
    kind: Kind
    try_number: int
    max_tries: int | None
    worker_id: str
    created_ms: int
    due_ms: int
    enqueued_ms: int
    started_ms: int
    headers: Mapping[str, str]
    previous: str
    """Trace of the attempt before this one, or empty."""
    links: tuple[str, ...]
    """Traces of the attempts that this task waited for."""
    silent: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mark: Mark
    first_due_ms: int = 0
    """When the task's first attempt was due, so that a retry can tell the time since then without
    the intended delay; 0 when it is not known (then ``created_ms`` is used)."""

    @property
    def wait_ms(self) -> int:
        """Milliseconds between being due and queued, and being started; never negative."""
        if not self.started_ms:
            return 0
        return max(0, self.started_ms - max(self.due_ms, self.created_ms))


class Ending(NamedTuple):
    """How an attempt ended. ``reason`` is one word; ``error`` is the exception, if there is one."""

    attempt: Attempt
    status: Status
    reason: str
    """success: ``ok`` or ``skipped`` (a fail-over not needed); failed: ``error``, ``timeout`` or
    ``exhausted``; retried: ``asked`` or ``timeout``; aborted: ``user`` or ``raised``; returned:
    ``shutdown``; refused: ``expired``, ``unknown``, ``undecodable``, ``exhausted``, ``unique``,
    ``drift`` or ``dependency``."""
    error: BaseException | None
    finished_ms: int
    duration_s: float
    """Of the body, on a monotonic clock, in seconds."""
    retry_due_ms: int
    """When the next try is due, for ``retried``; else 0."""
    result: Any


class Reclaim(NamedTuple):
    """An attempt taken over from a worker whose lease ran out."""

    attempt: Attempt
    lost_worker: str


class Fence(NamedTuple):
    """A settle that came too late and changed nothing."""

    ending: Ending


class Release(NamedTuple):
    """A task whose dependencies are all met, or a fail-over whose turn it is."""

    queue: str
    task: str
    task_id: str
    priority: str
    by: str
    """Id of the task whose end released it."""


class Due(NamedTuple):
    """A scheduled task moved to its queue: ``lag_s`` seconds after it was due."""

    queue: str
    task: str
    task_id: str
    priority: str
    due_ms: int
    lag_s: float


class Cron(NamedTuple):
    """A schedule seen by this worker: registered (``fired_ms`` 0), or fired for that moment."""

    queue: str
    task: str
    task_id: str
    fired_ms: int
    next_ms: int
    """The next firing, or 0 when there is none."""
    missed: int
    """Firings that passed with no worker alive, and were not run."""
    lag_s: float
    priority: str = ""
    """Of the task that a firing makes. A firing reports itself here once, by the worker that made
    the task, and not by ``on_enqueued``; a repeating schedule of a user's is enqueued (kind
    ``cron``) when it is made, and fires here."""


class WorkerEvent(NamedTuple):
    """A worker that starts or stops."""

    queue: str
    worker_id: str
    concurrency: int
    priorities: tuple[str, ...]
    tasks: tuple[str, ...]
    reason: str
    backend: str


class RedisCall(NamedTuple):
    """One call to Redis. ``error`` is the exception class name, or empty."""

    operation: str
    duration_s: float
    error: str


class RedisLink(NamedTuple):
    """Redis lost (``outage_s`` is 0) or restored."""

    queue: str
    worker_id: str
    error: str
    outage_s: float


class LoopBlocked(NamedTuple):
    """The event loop has not run for ``blocked_s`` seconds; ``where`` is the line it stands on."""

    queue: str
    worker_id: str
    blocked_s: float
    where: str
    tasks: tuple[str, ...]


class Hook:
    """Subclass, override what you need, and pass an instance: ``Worker(hooks=[MyHook()])``.

    Every method is a no-op, synchronous, and called with a frozen event.

    Example::

        class Count(Hook):
            done = 0

            def on_finish(self, e: Ending) -> None:
                self.done += 1

        worker = Worker(hooks=[Count()])
    """

    def around_publish(self, e: Publish) -> AbstractContextManager[None]:
        """Entered around the call that enqueues, in the caller's context."""
        raise NotImplementedError

    def on_enqueue(self, e: Enqueue) -> None:
        """Before a task is written. May write ``e.headers``, nothing else."""

    def on_enqueued(self, e: Enqueue) -> None:
        """After it was written (not called for a task id that was there already)."""

    def around_attempt(self, e: Attempt) -> AbstractContextManager[None]:
        """Entered in the coroutine that runs the body; ``e.mark.end`` is set at exit."""
        raise NotImplementedError

    def on_start(self, e: Attempt) -> None:
        """The attempt is claimed, its try counted, and its body about to run."""

    def on_retry(self, e: Ending) -> None:
        """The attempt ended and the task will be tried again."""

    def on_fail(self, e: Ending) -> None:
        """The attempt ended the task in failure."""

    def on_finish(self, e: Ending) -> None:
        """The attempt ended the task in success."""

    def on_abort(self, e: Ending) -> None:
        """The task was aborted; before it ran when ``e.attempt.started_ms`` is 0."""

    def on_refuse(self, e: Ending) -> None:
        """The task failed without its body being run."""

    def on_return(self, e: Ending) -> None:
        """The attempt was handed back at shutdown, its try refunded."""

    def on_reclaim(self, e: Reclaim) -> None:
        """A dead worker's attempt was taken over."""

    def on_fenced(self, e: Fence) -> None:
        """A late settle was refused."""

    def on_release(self, e: Release) -> None:
        """A dependent was released."""

    def on_due(self, e: Due) -> None:
        """A scheduled task became due."""

    def on_cron(self, e: Cron) -> None:
        """A schedule was registered or fired."""

    def on_worker_start(self, e: WorkerEvent) -> None:
        """The worker is ready to claim."""

    def on_worker_stop(self, e: WorkerEvent) -> None:
        """The worker has settled or handed back everything."""

    def on_redis_call(self, e: RedisCall) -> None:
        """A call to Redis returned or failed."""

    def on_redis_lost(self, e: RedisLink) -> None:
        """The connection is gone; the worker goes on trying."""

    def on_redis_restored(self, e: RedisLink) -> None:
        """The connection is back."""

    def on_loop_blocked(self, e: LoopBlocked) -> None:
        """Called from the watchdog's thread, not from the event loop."""


Slot: TypeAlias = tuple[Callable[[Any], Any], ...]


class Dispatcher:
    """Holds, per event, the hooks that implement it.

    Use: ``if hooks.on_start: hooks.emit(hooks.on_start, event)``, so that the event is not even
    built when nobody listens.
    """

    around_publish: Slot
    on_enqueue: Slot
    on_enqueued: Slot
    around_attempt: Slot
    on_start: Slot
    on_retry: Slot
    on_fail: Slot
    on_finish: Slot
    on_abort: Slot
    on_refuse: Slot
    on_return: Slot
    on_reclaim: Slot
    on_fenced: Slot
    on_release: Slot
    on_due: Slot
    on_cron: Slot
    on_worker_start: Slot
    on_worker_stop: Slot
    on_redis_call: Slot
    on_redis_lost: Slot
    on_redis_restored: Slot
    on_loop_blocked: Slot

    def __init__(self, hooks: Sequence[Hook] = ()) -> None:
        self.hooks = tuple(hooks)
        self.errors = 0
        for name in SLOTS:
            setattr(self, name, self._implementers(name))

    def _implementers(self, name: str) -> Slot:
        return tuple(
            getattr(hook, name)
            for hook in self.hooks
            if getattr(type(hook), name) is not getattr(Hook, name)
        )

    def emit(self, slot: Slot, event: object) -> None:
        """Call every implementer with ``event``; what one raises is logged and counted."""
        for call in slot:
            try:
                call(event)
            except Exception:  # noqa: BLE001 - no hook may harm a task
                self.report(call)

    def around(self, slot: Slot, event: object) -> AbstractContextManager[None]:
        """Enter every implementer's context manager around the body of the ``with``."""
        # The usual case, one implementer, costs a third of the general one.
        return _Guard(self, slot[0], event) if len(slot) == 1 else self._around_all(slot, event)

    @contextmanager
    def _around_all(self, slot: Slot, event: object) -> Generator[None]:
        with ExitStack() as stack:
            for call in slot:
                guard = _Guard(self, call, event)
                stack.enter_context(guard)
            yield

    def report(self, call: Callable[[Any], Any]) -> None:
        """Log and count what a hook raised; called while it is handled."""
        self.errors += 1
        owner = type(getattr(call, "__self__", call)).__name__
        name = getattr(call, "__name__", "hook")
        logger.exception(  # noqa: LOG004 - see above
            "hook %s.%s raised; the task is not affected", owner, name
        )


class _Guard:
    """One hook's context manager, with whatever it raises reported instead of let through."""

    __slots__ = ("_call", "_event", "_manager", "_owner")

    def __init__(self, owner: Dispatcher, call: Callable[[Any], Any], event: object) -> None:
        self._owner = owner
        self._call = call
        self._event = event
        self._manager: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        try:
            manager = self._call(self._event)
            manager.__enter__()
            self._manager = manager
        except Exception:  # noqa: BLE001 - no hook may harm a task
            self._owner.report(self._call)

    def __exit__(self, *exc_info: Any) -> None:  # noqa: PYI036 - handed on as they are
        if self._manager is None:
            return
        try:
            self._manager.__exit__(*exc_info)
        except Exception:  # noqa: BLE001 - no hook may harm a task
            self._owner.report(self._call)


SLOTS: tuple[str, ...] = tuple(name for name in vars(Hook) if name.startswith(("on_", "around_")))
