"""Which functions a worker knows: the decorators, and including other workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast, overload

from streaq.engine.cron import Crontab
from streaq.task import AsyncRegisteredTask, RegisteredMiddleware, SyncRegisteredTask, Task
from streaq.types import (
    AsyncTask,
    CronDecorator,
    Middleware,
    P,
    R,
    StreaqError,
    SyncTask,
    TaskDecorator,
    is_async_task,
)
from streaq.utils import to_ms

if TYPE_CHECKING:
    from datetime import tzinfo

    from streaq.worker import Worker

FIVE_MINUTES = timedelta(minutes=5)


async def _elsewhere() -> None:
    raise StreaqError("This task was enqueued by name; its function is not known here.")


class Registry:
    """The part of a worker that is filled while modules are imported."""

    tz: tzinfo
    id: str

    def __init__(self) -> None:
        #: registered tasks by name
        self.registry: dict[str, AsyncRegisteredTask[Any, Any] | SyncRegisteredTask[Any, Any]] = {}
        #: registered middlewares, the outermost first
        self.middlewares: list[RegisteredMiddleware] = []
        self.included_in: Worker[Any] | None = None

    @overload
    def task(self, fn: AsyncTask[P, R], /) -> AsyncRegisteredTask[P, R]: ...  # pyright: ignore[reportOverlappingOverload]

    @overload
    def task(self, fn: SyncTask[P, R], /) -> SyncRegisteredTask[P, R]: ...

    @overload
    def task(
        self,
        *,
        expire: timedelta | float | None = None,
        max_tries: int | None = 3,
        name: str | None = None,
        retry_timeouts: bool = False,
        silent: bool = False,
        timeout: timedelta | float | None = None,
        ttl: timedelta | float | None = FIVE_MINUTES,
        unique: bool = False,
    ) -> TaskDecorator: ...

    def task(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        expire: timedelta | float | None = None,
        max_tries: int | None = 3,
        name: str | None = None,
        retry_timeouts: bool = False,
        silent: bool = False,
        timeout: timedelta | float | None = None,
        ttl: timedelta | float | None = FIVE_MINUTES,
        unique: bool = False,
    ) -> Any:
        """Register a function, with or without options.

        :param expire: seconds (or a ``timedelta``) after which a task that no worker has started
            is refused; None never.
        :param max_tries: how often a task is tried in all; None without end. A try is counted
            when it starts, so a task that kills its worker does not loop for ever.
        :param name: instead of the function's own name.
        :param retry_timeouts: whether a task that times out is tried again.
        :param silent: whether its logs are left out.
        :param timeout: seconds one try may take; None without limit.
        :param ttl: seconds its result is kept; None for ever, 0 not at all.
        :param unique: whether a second instance fails while one runs.

        :raises StreaqError: for a name that is taken, an option that can't work, or a worker that
            runs already.

        Example::

            @worker.task(timeout=5, max_tries=1)
            async def charge(order: int) -> str: ...
        """
        options = {
            "expire": expire, "max_tries": max_tries, "retry_timeouts": retry_timeouts,
            "silent": silent, "timeout": timeout, "ttl": ttl, "unique": unique,
            "max_schedule_drift": None, "crontab": None,
        }  # fmt: skip

        def register(fn: Callable[..., Any]) -> Any:
            return self._register(fn, name, options)

        return register if fn is None else register(fn)

    def cron(
        self,
        tab: str,
        *,
        max_schedule_drift: timedelta | float | None = None,
        max_tries: int | None = 3,
        name: str | None = None,
        retry_timeouts: bool = False,
        silent: bool = False,
        timeout: timedelta | float | None = timedelta(hours=1),
        ttl: timedelta | float | None = FIVE_MINUTES,
        unique: bool = True,
    ) -> CronDecorator:
        """Register a function without arguments to run by a timetable.

        :param tab: a crontab: 5 fields, 6 with leading seconds, 7 with a trailing year as well,
            names as ``mon-fri``, or ``@hourly`` and the like. Taken in the worker's ``tz``.
        :param max_schedule_drift: seconds by which a firing may be late before it is refused;
            None without limit.

        The other parameters are those of ``task``.

        :raises StreaqError: for an invalid crontab, a name that is taken, an option that can't
            work, or a worker that runs already.

        Example::

            @worker.cron("30 9 * * mon-fri")
            async def report() -> None: ...
        """
        Crontab.parse(tab, self.tz)
        options = {
            "expire": None, "max_tries": max_tries, "retry_timeouts": retry_timeouts,
            "silent": silent, "timeout": timeout, "ttl": ttl, "unique": unique,
            "max_schedule_drift": max_schedule_drift, "crontab": tab,
        }  # fmt: skip

        def register(fn: Callable[..., Any]) -> Any:
            return self._register(fn, name, options)

        return cast("CronDecorator", register)

    def middleware(self, fn: Middleware) -> RegisteredMiddleware:
        """Wrap every task. The first registered is the outermost.

        :raises StreaqError: when the worker runs already.

        Example::

            @worker.middleware
            def timer(call: ReturnCoroutine) -> ReturnCoroutine:
                async def wrapper(*args: Any, **kwargs: Any) -> Any:
                    began = perf_counter()
                    try:
                        return await call(*args, **kwargs)
                    finally:
                        print(timer.context.task_id, perf_counter() - began)

                return wrapper
        """
        self._check_not_running("This middleware")
        registered = RegisteredMiddleware(fn)
        self.middlewares.append(registered)
        return registered

    def include(self, other: Worker[Any]) -> None:
        """Take over another worker's tasks and cron jobs, for modules that define their own.

        :raises StreaqError: for a name that both have (then none is taken over), a worker that is
            included already, or when this one runs already.
        """
        if clash := sorted(set(self.registry) & set(other.registry)):
            raise StreaqError(f"Both workers have a task named {', '.join(clash)}.")
        self._check_not_running(f"Worker {other.id}, to be included,")
        owner = cast("Worker[Any]", self)
        if other.owner() is self.owner():
            raise StreaqError(f"Worker {other.id} is included already.")
        for name, task in other.registry.items():
            task.worker = owner
            self.registry[name] = task
        other.included_in = owner

    def owner(self) -> Worker[Any]:
        """The worker that runs these tasks: itself, or the outermost that includes it."""
        worker = cast("Worker[Any]", self)
        while worker.included_in is not None:
            worker = worker.included_in
        return worker

    def enqueue_unsafe(self, fn_name: str, *args: Any, **kwargs: Any) -> Task[Any, Any]:
        """A call by name, of a function that only the workers know. Nothing is checked here.

        :param fn_name: the name it is registered by where it runs.

        Example::

            await worker.enqueue_unsafe("charge", 42, currency="EUR")
        """
        known = self.registry.get(fn_name)
        silent = known is not None and known.silent
        placeholder = AsyncRegisteredTask(
            fn=_elsewhere, expire=None, max_schedule_drift=None, max_tries=None,
            retry_timeouts=False, silent=silent, timeout=None, ttl=FIVE_MINUTES, unique=False,
            fn_name=fn_name, crontab=None, worker=cast("Worker[Any]", self),
        )  # fmt: skip
        return Task(args, kwargs, placeholder, placeholder.worker)

    def _register(self, fn: Callable[..., Any], name: str | None, options: dict[str, Any]) -> Any:
        if not callable(cast("object", fn)):
            raise StreaqError(f"{fn!r} is not a function, and can't be a task.")
        fn_name = name or getattr(fn, "__qualname__", "")
        self._check(fn_name, options)
        kind: Any = AsyncRegisteredTask if is_async_task(fn) else SyncRegisteredTask
        task = kind(fn=fn, fn_name=fn_name, worker=cast("Worker[Any]", self), **options)
        self.registry[fn_name] = task
        return task

    def _check_not_running(self, what: str) -> None:
        """Refuse what comes too late for a worker that runs."""

    def _check(self, name: str, options: dict[str, Any]) -> None:
        self._check_not_running(f"Task {name}")
        if name in self.registry:
            raise StreaqError(f"A task named {name} is registered already; give one a name=.")
        if "\n" in name or not name:
            raise StreaqError(f"{name!r} can't be the name of a task; give it another with name=.")
        tries = options["max_tries"]
        if tries is not None and tries < 1:
            raise StreaqError(f"Task {name}: max_tries must be at least 1, or None; it is {tries}.")
        for option in ("expire", "timeout", "ttl", "max_schedule_drift"):
            value = options[option]
            if value is not None and to_ms(value) < 0:
                raise StreaqError(f"Task {name}: {option} can't be negative; it is {value}.")
