"""The only way out of the core: what happens to tasks, told to whoever listens.

The engine and the broker know nothing of telemetry. They build an event only when some hook has
overridden the method for it, so a slot without an implementer costs one truth test. Hooks are
called synchronously and must not do I/O; one that raises is logged and counted, and never harms
a task. Hooks that tell an outcome fire after the settle has committed in Redis.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias

from streaq.happenings import (
    Attempt,
    Cron,
    Due,
    Ending,
    Enqueue,
    Entry,
    Fence,
    Kind,
    Lane,
    LoopBlocked,
    Mark,
    Publish,
    Reclaim,
    RedisCall,
    RedisLink,
    Release,
    Starts,
    Status,
    Successes,
    WorkerEvent,
)

__all__ = [
    "SLOTS",
    "Attempt",
    "Cron",
    "Dispatcher",
    "Due",
    "Ending",
    "Enqueue",
    "Entry",
    "Fence",
    "Hook",
    "Kind",
    "Lane",
    "LoopBlocked",
    "Mark",
    "Publish",
    "Reclaim",
    "RedisCall",
    "RedisLink",
    "Release",
    "Slot",
    "Starts",
    "Status",
    "Successes",
    "WorkerEvent",
]

logger = logging.getLogger("streaq")


class Hook:
    """Subclass, override what you need, and pass an instance: ``Worker(hooks=[MyHook()])``.

    Every method is a no-op, synchronous, and called with a frozen event.

    Example::

        class Count(Hook):
            done = 0

            def on_successes(self, e: Successes) -> None:
                self.done += len(e.durations_s)

        worker = Worker(hooks=[Count()])
    """

    def is_quiet(self) -> bool:
        """Whether this hook can do without ``around_attempt``, ``on_start`` and ``on_finish`` of
        the attempts that begin now; False by default.

        Asked whenever attempts begin. While all hooks that have one of these say True, they are
        not called for these attempts, and no event is made for those that succeed. How the others
        end is told all the same (``on_fail``, ``on_retry`` and so on), without an ``on_start``
        before it.
        """
        return False

    def around_publish(self, e: Publish) -> AbstractContextManager[None]:
        """Entered around the call that enqueues, in the caller's context."""
        raise NotImplementedError

    def on_enqueue(self, e: Enqueue) -> None:
        """Before a task is written. May write ``e.headers``, nothing else."""

    def on_enqueued(self, e: Enqueue) -> None:
        """After it was written (not called for a task id that was there already)."""

    def on_lane(self, e: Lane) -> None:
        """Called once in each run of a worker for each task and priority, before its first attempt.
        Context variables that are set here are set in every attempt of it.
        """

    def on_enter(self, e: Entry) -> None:
        """In the attempt's own context, before anything else, even if its arguments turn out to be
        undecodable. Set context variables here that differ from attempt to attempt; the task's
        name is for ``on_lane``.
        """

    def on_starts(self, e: Starts) -> None:
        """The same as ``on_start``, once for all that begin together, for hooks that only count.

        It includes those whose arguments turn out to be undecodable.
        """

    def on_successes(self, e: Successes) -> None:
        """The same as ``on_finish``, once for all that were committed together, for hooks that
        only count. A fail-over that was not needed had no attempt, and is not among them.
        """

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
    on_lane: Slot
    on_enter: Slot
    on_starts: Slot
    on_successes: Slot
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

    def __init__(
        self,
        hooks: Sequence[Hook] = (),
        is_silent: Callable[[str], bool] = lambda _: False,
        max_tries: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self.hooks = tuple(hooks)
        self.is_silent = is_silent
        """Whether the task of this name is registered as silent."""
        self.max_tries = max_tries
        """How often the task of this name may be tried, as far as it is registered here."""
        self.errors = 0
        self._complaints = Complaints()
        for name in SLOTS:
            setattr(self, name, self._implementers(name))
        self._watchers = tuple(hook.is_quiet for hook in self.hooks if _may_watch(hook))
        self.watching = bool(self._watchers)
        # What needs no guard around attempts: the only implementer, if it lets nothing through.
        last = self.around_attempt[0] if len(self.around_attempt) == 1 else None
        self._contained = getattr(last, "lets_nothing_through", False)

    def _implementers(self, name: str) -> Slot:
        return tuple(getattr(hook, name) for hook in self.hooks if _implements(hook, name))

    def look(self) -> None:
        """Find out whether anybody watches single attempts now: ``watching`` tells."""
        self.watching = False
        for is_quiet in self._watchers:
            try:
                self.watching = not is_quiet()
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001 - no hook may harm a task, whatever it raises
                self.watching = True
                self.report(is_quiet)
            if self.watching:
                return

    def emit(self, slot: Slot, event: object) -> None:
        """Call every implementer with ``event``; what one raises is logged and counted."""
        for call in slot:
            try:
                call(event)
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001 - no hook may harm a task, whatever it raises
                self.report(call)

    def around(self, slot: Slot, event: object) -> AbstractContextManager[None]:
        """Enter every implementer's context manager around the body of the ``with``."""
        # The usual cases, one implementer and telemetry's own, cost a fraction of the general one.
        if len(slot) != 1:
            return self._around_all(slot, event)
        if self._contained and slot is self.around_attempt:
            return slot[0](event)
        return _Guard(self, slot[0], event)

    @contextmanager
    def _around_all(self, slot: Slot, event: object) -> Generator[None]:
        with ExitStack() as stack:
            for call in slot:
                guard = _Guard(self, call, event)
                stack.enter_context(guard)
            yield

    def report(self, call: Callable[..., Any]) -> None:
        """Log and count what a hook raised; called while it is handled."""
        self.errors += 1
        owner = type(getattr(call, "__self__", call)).__name__
        name = getattr(call, "__name__", "hook")
        self._complaints.tell(f"hook {owner}.{name} raised; the task is not affected")


class Complaints:
    """Logs exceptions with their traceback, each kind at most once in a while: what fails for one
    task may fail for a million.

    :param every_s: seconds until the same message about the same class of exception is logged
        again, with the number of times that it was not.
    """

    def __init__(self, every_s: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._quiet_until: dict[tuple[str, type | None], float] = {}
        self._left_out: Counter[tuple[str, type | None]] = Counter()

    def tell(self, message: str) -> None:
        """Log ``message`` and the exception that is being handled."""
        kind = (message, sys.exc_info()[0])
        now = self._clock()
        if now < self._quiet_until.get(kind, now):
            self._left_out[kind] += 1
            return
        self._quiet_until[kind] = now + self._every_s
        more = self._left_out.pop(kind, 0)
        again = f" ({more} more since this was logged last)" if more else ""
        logger.exception("%s%s", message, again)  # noqa: LOG004 - see above


def _implements(hook: Hook, name: str) -> bool:
    return getattr(type(hook), name) is not getattr(Hook, name)


def _may_watch(hook: Hook) -> bool:
    return any(_implements(hook, name) for name in ("around_attempt", "on_start", "on_finish"))


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
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - no hook may harm a task, whatever it raises
            self._owner.report(self._call)

    def __exit__(self, *exc_info: Any) -> None:  # noqa: PYI036 - handed on as they are
        if self._manager is None:
            return
        try:
            self._manager.__exit__(*exc_info)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - no hook may harm a task, whatever it raises
            self._owner.report(self._call)


SLOTS: tuple[str, ...] = tuple(name for name in vars(Hook) if name.startswith(("on_", "around_")))
