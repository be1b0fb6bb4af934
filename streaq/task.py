"""Tasks as users hold them: what is registered, what is enqueued, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from os import urandom
from typing import TYPE_CHECKING, Any, Concatenate, Generic, cast, overload

from streaq.types import (
    AsyncTask,
    Middleware,
    P,
    POther,
    R,
    ReturnCoroutine,
    ROther,
    Step,
    StreaqError,
    SyncTask,
    TaskContext,
    Ts,
    TupleStep,
    TypedCoroutine,
)

if TYPE_CHECKING:
    from streaq.worker import Worker


def new_id() -> str:
    """128 random bits in hex: what a UUID would be, for a third of its cost."""
    return urandom(16).hex()


task_context: ContextVar[Callable[[], TaskContext]] = ContextVar("streaq_task_context")


def current_context() -> TaskContext:
    """The context of the task that runs here.

    :raises StreaqError: outside of a running task.
    """
    try:
        return task_context.get()()
    except LookupError:
        raise StreaqError("Context is only available in running tasks.") from None


class TaskStatus(StrEnum):
    """Where a task is. Printing one shows its name, as ``TaskStatus.QUEUED``."""

    #: no such task is known (any more)
    NOT_FOUND = "missing"
    #: waits for a worker
    QUEUED = "queued"
    #: a worker runs it
    RUNNING = "running"
    #: due later, or waits for other tasks
    SCHEDULED = "scheduled"
    #: ended, and its result is stored
    DONE = "done"

    def __str__(self) -> str:
        return f"TaskStatus.{self.name}"


@dataclass(frozen=True)
class TaskInfo:
    """A task that has not ended. Times are milliseconds since the epoch."""

    task_id: str
    fn_name: str
    created_time: int
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    tries: int = 0
    scheduled: datetime | None = None
    dependencies: set[str] = field(default_factory=set[str])
    dependents: set[str] = field(default_factory=set[str])
    status: TaskStatus = TaskStatus.NOT_FOUND


@dataclass(frozen=True)
class TaskResult(Generic[R]):
    """How a task ended. Times are milliseconds since the epoch, by the server's clock."""

    task_id: str
    fn_name: str
    created_time: int
    enqueue_time: int
    success: bool
    start_time: int
    finish_time: int
    tries: int
    worker_id: str
    _result: R | BaseException

    @property
    def result(self) -> R:
        """What the function returned.

        :raises StreaqError: when the task failed.
        """
        if not self.success:
            raise StreaqError(
                "This task failed, so it has no result; its error is in TaskResult.exception."
            )
        return cast("R", self._result)

    @property
    def exception(self) -> BaseException:
        """Why the task failed.

        :raises StreaqError: when it succeeded.
        """
        if self.success:
            raise StreaqError(
                "This task succeeded, so it has no exception; its value is in TaskResult.result."
            )
        return cast("BaseException", self._result)


@dataclass(slots=True, eq=False)
class Task(Generic[P, R]):
    """One call of a registered function, enqueued when it is awaited.

    Example::

        task = await sleeper.enqueue(3).start(delay=10)
        result = await task.result(timeout=30)
    """

    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    parent: RegisteredTask
    worker: Worker[Any]
    id: str = field(default_factory=new_id)
    after: Sequence[str] = ()
    delay: timedelta | float | None = None
    schedule: datetime | str | None = None
    priority: str | None = None
    previous: Task[Any, Any] | None = None
    """The task before it in a pipeline or fail-over."""
    fallback: bool = False
    """Runs only if ``previous`` fails, with the same arguments."""
    enqueued: bool = False
    """Whether it was enqueued by this object."""
    doubtful: bool = False
    """Whether enqueueing it failed, perhaps after it was written."""

    def start(
        self,
        after: str | Iterable[str] | None = None,
        delay: timedelta | float | None = None,
        schedule: datetime | str | None = None,
        priority: str | None = None,
    ) -> Task[P, R]:
        """Say when and where the task is to run. Await the result to enqueue it.

        :param after: id(s) of tasks that must succeed first.
        :param delay: seconds (or a ``timedelta``) to wait; not negative.
        :param schedule: the moment to run at, or a crontab to run by repeatedly. A naive datetime
            is taken in the worker's ``tz``; one in the past means at once.
        :param priority: one of the worker's priorities. The default is ``normal``, or the lowest
            where the worker has priorities of its own.

        :raises StreaqError: for more than one of ``after``, ``delay`` and ``schedule``, for one of
            the latter two on a task that follows another in a pipeline, a negative delay, a
            crontab that is none, or a priority that the worker does not have.

        Example::

            await sleeper.enqueue(1).start(schedule="*/5 * * * *", priority="high")
        """
        waits_for = [*self.after, *([after] if isinstance(after, str) else after or ())]
        later = delay is not None or schedule is not None
        if (delay is not None and schedule is not None) or (waits_for and later):
            raise StreaqError(
                f"Task {self.parent.fn_name}: use one of 'after', 'delay' and 'schedule'."
            )
        if self.previous is not None and later:
            raise StreaqError(
                f"Task {self.parent.fn_name} runs when the task before it ends: give 'delay' or "
                f"'schedule' to the first task of the pipeline."
            )
        self.after = waits_for
        self.delay, self.schedule, self.priority = delay, schedule, priority
        self.worker.check_start(self)
        return self

    @overload
    def then(
        self: Task[Any, R],
        task: Step[R, POther, ROther],
        *_: POther.args,
        **kwargs: POther.kwargs,
    ) -> Task[Concatenate[R, POther], ROther]: ...

    @overload
    def then(
        self: Task[Any, tuple[*Ts]], task: TupleStep[*Ts, ROther], **kwargs: Any
    ) -> Task[Any, ROther]: ...

    def then(self: Task[Any, Any], task: Any, *_: Any, **kwargs: Any) -> Task[Any, Any]:
        """Feed this task's result to another one.

        :param task: gets the result as its positional arguments (a tuple is unpacked).
        :param kwargs: further arguments for it.

        :returns: the new task; awaiting it enqueues the whole pipeline.

        Example::

            task = await fetch.enqueue(url).then(double).then(store, to="disk")
        """
        return Task((), kwargs, _registered(task), self.worker, previous=self)

    def otherwise(self, task: AsyncRegisteredTask[P, R] | SyncRegisteredTask[P, R]) -> Task[P, R]:
        """Have another task run with the same arguments if this one fails.

        :param task: must take the same arguments and return the same type.

        :returns: the new task. Its result is this task's where that succeeds.

        Example::

            task = await fetch.enqueue(url).otherwise(fetch_from_mirror)
        """
        return Task(
            self.args, self.kwargs, _registered(task), self.worker, previous=self, fallback=True
        )

    @overload
    def __or__(self: Task[Any, R], other: Step[R, [], ROther]) -> Task[[R], ROther]: ...

    @overload
    def __or__(self: Task[Any, tuple[*Ts]], other: TupleStep[*Ts, ROther]) -> Task[Any, ROther]: ...

    def __or__(self: Task[Any, Any], other: Any) -> Task[Any, Any]:
        return self.then(other)

    def __xor__(self, other: AsyncRegisteredTask[P, R] | SyncRegisteredTask[P, R]) -> Task[P, R]:
        return self.otherwise(other)

    def __await__(self) -> Generator[Any, None, Task[P, R]]:
        return self._enqueue().__await__()

    async def _enqueue(self) -> Task[P, R]:
        await self.worker.publish([self])
        return self

    def chain(self) -> list[Task[Any, Any]]:
        """The tasks that it follows in a pipeline or fail-over, then itself.

        Without those that were enqueued before: one whose result has expired must not run again
        because somebody joins it late.
        """
        links: list[Task[Any, Any]] = [self]
        link = self.previous
        while link is not None and not link.enqueued:
            links.append(link)
            link = link.previous
        return links[::-1]

    @property
    def is_plain(self) -> bool:
        """Whether it is due at once, waits for nobody, and goes to the default priority."""
        return (
            self.previous is None
            and self.delay is None
            and self.schedule is None
            and self.priority is None
            and not self.after
        )

    @property
    def takes_input(self) -> bool:
        """Whether its positional arguments are the result of a task before it."""
        link: Task[Any, Any] = self
        while link.fallback and link.previous is not None:
            link = link.previous
        return link.previous is not None

    async def status(self) -> TaskStatus:
        """Where the task is now."""
        return await self.worker.status_by_id(self.id)

    async def result(self, timeout: timedelta | float | None = None) -> TaskResult[R]:
        """Wait for the task to end.

        :param timeout: seconds (or a ``timedelta``) to wait at most; None waits for ever.

        :raises TimeoutError: when it has not ended by then.
        """
        return await self.worker.result_by_id(self.id, timeout=timeout)

    async def abort(self, timeout: timedelta | float | None = 5) -> bool:
        """Cancel the task, running or not.

        :param timeout: seconds to wait for a running task to stop; 0 does not wait, None waits
            for ever.

        :returns: whether it was cancelled, as far as is known by then.
        """
        return await self.worker.abort_by_id(self.id, timeout=timeout)

    async def info(self) -> TaskInfo | None:
        """What is known of the task; None once it has ended, or when it is not known."""
        return await self.worker.info_by_id(self.id)

    async def unschedule(self) -> bool:
        """Stop a repeating task; whether it was one."""
        return await self.worker.unschedule_by_id(self.id)


@dataclass(kw_only=True)
class RegisteredTask:
    """A function the worker knows, with the options given to the decorator."""

    expire: timedelta | float | None
    max_schedule_drift: timedelta | float | None
    max_tries: int | None
    retry_timeouts: bool
    silent: bool
    timeout: timedelta | float | None
    ttl: timedelta | float | None
    unique: bool
    fn_name: str
    crontab: str | None
    worker: Worker[Any]

    @property
    def context(self) -> TaskContext:
        """The context of the task that runs now.

        :raises StreaqError: outside of a running task.
        """
        return current_context()


@dataclass(kw_only=True)
class AsyncRegisteredTask(RegisteredTask, Generic[P, R]):
    """A coroutine function that can be enqueued; calling it runs it here."""

    fn: AsyncTask[P, R]

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Task[P, R]:
        """A call of this function, to be awaited (which enqueues it) or started with options."""
        return Task(args, kwargs, self, self.worker)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TypedCoroutine[R]:
        """Run the function here; needs no worker."""
        return self.fn(*args, **kwargs)


@dataclass(kw_only=True)
class SyncRegisteredTask(RegisteredTask, Generic[P, R]):
    """A plain function that can be enqueued; workers run it in a thread."""

    fn: SyncTask[P, R]

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Task[P, R]:
        """A call of this function, to be awaited (which enqueues it) or started with options."""
        return Task(args, kwargs, self, self.worker)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here, in this thread; needs no worker."""
        return self.fn(*args, **kwargs)


@dataclass
class RegisteredMiddleware:
    """A middleware of the worker, with access to the context of the task it wraps."""

    wrapped: Middleware

    def __call__(self, fn: ReturnCoroutine) -> ReturnCoroutine:
        """Wrap a task."""
        return self.wrapped(fn)

    @property
    def context(self) -> TaskContext:
        """The context of the task that runs now.

        :raises StreaqError: outside of a running task.
        """
        return current_context()


def _registered(task: Any) -> RegisteredTask:
    if not isinstance(task, RegisteredTask):
        raise StreaqError(
            f"{task!r} is not a registered task; decorate it with @worker.task first."
        )
    return task
