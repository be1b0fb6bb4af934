"""The face of the queue: configuration, registration, and one method per thing to ask of it."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, timedelta, tzinfo
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, cast, overload
from uuid import uuid4

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus as AnyioTaskStatus

from streaq.engine.health import Health
from streaq.hooks import Hook
from streaq.registry import Registry
from streaq.task import Task, TaskInfo, TaskResult, TaskStatus
from streaq.types import C, Deserializer, Serializer, StreaqError
from streaq.utils import to_ms, to_seconds
from streaq.wire import Codec

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

    from streaq.broker.connection import Connector
    from streaq.broker.inspect import QueueSnapshot
    from streaq.history import TaskHistory
    from streaq.queries import Queries
    from streaq.session import Session
    from streaq.telemetry import Telemetry

DEFAULT_PRIORITIES = ("low", "normal", "high")
DEFAULT_PRIORITY = "normal"
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024


@asynccontextmanager
async def _no_lifespan() -> AsyncGenerator[None]:
    yield


class Worker(Registry, Generic[C]):
    """Enqueues tasks, and runs them.

    Constructing one does no I/O. Enter it (``async with worker``) to enqueue and to ask questions;
    call ``run_sync``/``run_async``, or ``streaq run module:worker``, to work.

    :param redis_url: ``redis://``, ``rediss://`` (TLS), ``unix://``, or ``embedded://`` for a
        local Valkey from the ``embedded`` extra (``embedded:///path`` keeps its data there).
    :param redis_pool: a ``redis.asyncio.ConnectionPool`` instead of a URL.
    :param redis_kwargs: further arguments for the redis-py client.
    :param concurrency: tasks run at once.
    :param sync_concurrency: plain functions run at once, each in a thread; as ``concurrency`` when
        not given.
    :param queue_name: name of the queue.
    :param priorities: lowest to highest. When not given: low, normal, high, with tasks going to
        normal; else tasks that name none go to the lowest.
    :param prefetch: messages to hold beyond those that run; none by default, since it gains
        nothing and keeps them from other workers for a while.
    :param lifespan: async context manager around the worker's life; what it yields is
        ``worker.context``.
    :param serializer: value to bytes or str, sync or async.
    :param deserializer: bytes to value, sync or async.
    :param tz: time zone of crontabs and of naive datetimes.
    :param handle_signals: whether SIGINT and SIGTERM stop the worker in good order.
    :param signing_secret: signs what is stored with HMAC-SHA256, and refuses what is not signed.
        With pickle, whoever can write to Redis can otherwise run code in your workers.
    :param idle_timeout: seconds (or a ``timedelta``) after which the tasks of a silent worker are
        taken over by others.
    :param grace_period: seconds that running tasks get after a signal before they are handed back.
    :param anyio_backend: ``asyncio`` or ``trio``, for ``run_sync``.
    :param anyio_kwargs: options of that backend, as ``{"use_uvloop": True}``.
    :param sentinel_nodes: (host, port) pairs of Sentinels, instead of a URL.
    :param sentinel_master: name of the master they watch.
    :param sentinel_kwargs: further arguments for the Sentinel clients.
    :param cluster_nodes: (host, port) pairs of Cluster nodes, instead of a URL.
    :param id: name of this worker for people, random by default; several processes may share it.
    :param hooks: told what happens to tasks; see ``streaq.Hook``.
    :param telemetry: True for logs, metrics and (with an OpenTelemetry SDK) traces, False for
        none, or a ``streaq.telemetry.Telemetry``.
    :param max_payload_bytes: the largest serialised arguments or result let through; None for no
        limit.

    :raises StreaqError: for settings that conflict or can't work.

    Example::

        worker = Worker(redis_url="redis://localhost:6379", concurrency=32)

        @worker.task
        async def add(a: int, b: int) -> int:
            return a + b
    """

    def __init__(
        self,
        redis_url: str = "redis://localhost:6379",
        redis_pool: ConnectionPool | None = None,
        redis_kwargs: dict[str, Any] | None = None,
        concurrency: int = 16,
        sync_concurrency: int | None = None,
        queue_name: str = "default",
        priorities: Sequence[str] | None = None,
        prefetch: int | None = None,
        lifespan: Callable[[], AbstractAsyncContextManager[C]] = _no_lifespan,
        serializer: Serializer = pickle.dumps,
        deserializer: Deserializer = pickle.loads,
        tz: tzinfo = UTC,
        handle_signals: bool = True,
        signing_secret: str | None = None,
        idle_timeout: timedelta | float = 60,
        grace_period: timedelta | float = 0,
        anyio_backend: Literal["asyncio", "trio"] = "asyncio",
        anyio_kwargs: dict[str, Any] | None = None,
        sentinel_nodes: Sequence[tuple[str, int]] | None = None,
        sentinel_master: str = "mymaster",
        sentinel_kwargs: dict[str, Any] | None = None,
        cluster_nodes: Sequence[tuple[str, int]] | None = None,
        id: str | None = None,
        *,
        hooks: Sequence[Hook] = (),
        telemetry: bool | Telemetry = True,
        max_payload_bytes: int | None = MAX_PAYLOAD_BYTES,
    ) -> None:
        super().__init__()
        self.connector = _connector(
            redis_url, redis_pool, redis_kwargs or {}, sentinel_nodes, sentinel_master,
            sentinel_kwargs, cluster_nodes,
        )  # fmt: skip
        #: name of this worker, as results, logs and listings show it
        self.id = _name("id", id or uuid4().hex[:8])
        self.queue_name = _name("queue_name", queue_name)
        self.concurrency = _at_least(1, "concurrency", concurrency)
        threads = concurrency if sync_concurrency is None else sync_concurrency
        self.sync_concurrency = _at_least(1, "sync_concurrency", threads)
        self.prefetch = _at_least(0, "prefetch", prefetch or 0)
        #: highest first; the caller's own list is left as it is
        self.priorities = _priorities(priorities)
        self.default_priority = self.priorities[-1] if priorities else DEFAULT_PRIORITY
        self.lifespan = lifespan
        self.codec = _codec(serializer, deserializer, signing_secret, max_payload_bytes)
        self.tz = _time_zone(tz)
        self.handle_signals = handle_signals
        self.idle_timeout_ms = _at_least(100, "idle_timeout (in ms)", to_ms(idle_timeout))
        self.grace_period_s = _at_least(0, "grace_period (in ms)", to_ms(grace_period)) / 1000
        self.anyio_backend, self.anyio_kwargs = anyio_backend, dict(anyio_kwargs or {})
        self.extra_hooks = list(hooks)
        #: what ``/livez`` and ``/readyz`` go by
        self.health = Health()
        #: tasks ended so far: completed, failed, retried, aborted, relinquished, fenced
        self.counters: dict[str, int] = {}
        #: whether to stop when the queue is empty (``streaq run --burst``)
        self.burst = False
        self._session = _session(self, telemetry)

    def __repr__(self) -> str:
        return f"<Worker {self.id} of queue {self.queue_name!r} at {self.connector.safe_url}>"

    def __str__(self) -> str:
        counters = {name: n for name, n in sorted(self.counters.items()) if n}
        if running := self.running():
            counters["running"] = running
        return f"worker {self.id} {repr(counters).replace(chr(39), '')}"

    def _check_not_running(self, what: str) -> None:
        self.owner()._session.check_not_running(what)  # noqa: SLF001 - another Worker

    # ---------------------------------------------------------------------- its life

    async def __aenter__(self) -> Self:
        await self._session.enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._session.leave()

    def run_sync(self) -> None:
        """Work, in an event loop of its own, until a signal or the end of a burst."""
        anyio.run(
            self.run_async, backend=self.anyio_backend, backend_options=dict(self.anyio_kwargs)
        )

    async def run_async(self, *, task_status: AnyioTaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Work in the current event loop, until a signal, the end of a burst, or cancellation.

        :param task_status: ``await group.start(worker.run_async)`` returns once it claims tasks.
        """
        await self._session.work(task_status, burst=self.burst)

    def running(self) -> int:
        """How many tasks this worker runs now."""
        return self._session.running()

    @property
    def telemetry(self) -> bool | Telemetry:
        """What it tells of its tasks, as given; another can be set while it is not in use.

        :raises StreaqError: setting it when the worker is entered or runs, or to what is none.
        """
        return self._session.telemetry

    @telemetry.setter
    def telemetry(self, given: bool | Telemetry) -> None:
        self._session.telemetry = given

    @property
    def context(self) -> C:
        """What ``lifespan`` yielded.

        :raises StreaqError: while the worker does not run.
        """
        return cast("C", self.owner()._session.context())  # noqa: SLF001 - another Worker

    @property
    def redis(self) -> Any:
        """A ``redis.asyncio`` client of the worker's server that decodes replies to str.

        :raises StreaqError: outside of ``async with worker``, and under Trio.
        """
        return self._session.decoded_client()

    # ------------------------------------------------------------------------ tasks

    def check_start(self, task: Task[Any, Any]) -> None:
        """Refuse options that can't work; ``Task.start`` calls it."""
        self._session.check_start(task)

    async def publish(self, tasks: Sequence[Task[Any, Any]]) -> None:
        """Enqueue tasks; ``await task`` and ``enqueue_many`` call it."""
        await self._session.producer().publish(tasks)

    async def enqueue_many(self, tasks: Sequence[Task[Any, Any]]) -> None:
        """Enqueue many tasks (or pipelines) with few round trips.

        :param tasks: as ``enqueue`` returned them, not awaited.

        :raises StreaqError: when one can't be serialised (then none is enqueued), or the server
            can't be reached (repeating the call is safe).

        Example::

            await worker.enqueue_many([sleeper.enqueue(i) for i in range(1000)])
        """
        await self.publish(list(tasks))

    async def queue_size(self, include_scheduled: bool = True) -> int:
        """How many tasks wait to run; running ones and those that wait for others do not count.

        :param include_scheduled: whether those due later count.
        """
        snapshot = await self.snapshot()
        return snapshot.size(include_scheduled=include_scheduled)

    async def status_by_id(self, task_id: str) -> TaskStatus:
        """Where a task is now."""
        return await self._queries.status(task_id)

    async def result_by_id(
        self, task_id: str, timeout: timedelta | float | None = None
    ) -> TaskResult[Any]:
        """Wait for a task to end.

        :param timeout: seconds (or a ``timedelta``) to wait at most; None waits for ever.

        :raises TimeoutError: when it has not ended by then.
        :raises StreaqError: when the result can't be read.
        """
        return await self._queries.result(task_id, to_seconds(timeout))

    async def info_by_id(self, task_id: str) -> TaskInfo | None:
        """What is known of a task; None once it has ended, or when it is not known."""
        return await self._queries.info(task_id)

    async def abort_by_id(self, task_id: str, timeout: timedelta | float | None = 5) -> bool:
        """Cancel a task, running or not.

        :param timeout: seconds to wait for a running task to stop; 0 does not wait, None waits
            for ever.

        :returns: whether it was cancelled, as far as is known by then.
        """
        return await self._queries.abort(task_id, to_seconds(timeout))

    async def unschedule_by_id(self, task_id: str) -> bool:
        """Stop a repeating task; whether it was one."""
        return await self._queries.unschedule(task_id)

    @overload
    async def get_tasks_by_status(
        self, status: Literal[TaskStatus.DONE], *, limit: int = ...
    ) -> list[TaskResult[Any]]: ...

    @overload
    async def get_tasks_by_status(
        self,
        status: Literal[TaskStatus.SCHEDULED, TaskStatus.QUEUED, TaskStatus.RUNNING],
        *,
        priority: str | None = ...,
        limit: int = ...,
    ) -> list[TaskInfo]: ...

    @overload
    async def get_tasks_by_status(
        self, status: TaskStatus, *, priority: str | None = ..., limit: int = ...
    ) -> list[TaskInfo] | list[TaskResult[Any]]: ...

    async def get_tasks_by_status(
        self, status: TaskStatus, *, priority: str | None = None, limit: int = 100
    ) -> Any:
        """Tasks in a state.

        :param priority: only of this one; not for ``DONE``.
        :param limit: as many at most, up to 100,000. Of ended tasks the newest 10,000 are known.

        :raises StreaqError: for ``NOT_FOUND``, or a limit that is none.
        """
        return await self._queries.by_status(status, priority, limit)

    async def history_by_id(self, task_id: str) -> TaskHistory | None:
        """The attempts of a task so far, while it or its result is kept; None when not known."""
        return await self._queries.history(task_id)

    async def explain_by_id(self, task_id: str) -> str:
        """Why a task is not running, in one line for a person."""
        return await self._queries.explain(task_id)

    async def snapshot(self) -> QueueSnapshot:
        """The whole queue at a glance, in one call whose cost does not grow with its tasks."""
        return await self._session.broker().snapshot()

    @property
    def _queries(self) -> Queries:
        return self._session.queries()


# Imported when a worker is made: redis-py loads half of OpenTelemetry where that is installed.
def _connector(*settings: Any) -> Connector:
    from streaq.broker.connection import ConnectionSettings, Connector

    return Connector(ConnectionSettings(*settings))


def _session(worker: Worker[Any], telemetry: bool | Telemetry) -> Session:
    from streaq.session import Session

    return Session(worker, telemetry)


def _codec(
    serializer: Serializer, deserializer: Deserializer, secret: str | None, limit: int | None
) -> Codec:
    if secret == "":
        raise StreaqError("signing_secret is empty; leave it out if nothing is to be signed.")
    if limit is not None:
        _at_least(1, "max_payload_bytes", limit)
    return Codec(serializer, deserializer, secret, limit)


def _priorities(given: Sequence[str] | None) -> list[str]:
    """Highest first, checked."""
    if isinstance(given, str):
        raise StreaqError(f"priorities must be a list of names, as [{given!r}]; it is {given!r}.")
    names = list(DEFAULT_PRIORITIES if given is None else given)
    if not names:
        raise StreaqError("priorities can't be empty; leave it out for low, normal and high.")
    if len(set(names)) != len(names):
        raise StreaqError(f"priorities must differ from each other; got {', '.join(names)}.")
    return [_name("a priority", name) for name in names[::-1]]


def _name(what: str, given: object) -> str:
    """What keys and records in Redis can hold: a line of text."""
    if not isinstance(given, str) or not given or "\n" in given:
        raise StreaqError(f"{what} must be text without line breaks; it is {given!r}.")
    return given


def _time_zone(given: object) -> tzinfo:
    if not isinstance(given, tzinfo):
        raise StreaqError(f"tz must be a tzinfo, as ZoneInfo('Europe/Berlin'); it is {given!r}.")
    return given


def _at_least(least: int, name: str, value: object) -> int:
    if not isinstance(value, int):
        raise StreaqError(f"{name} must be a whole number; it is {value!r}.")
    if value < least:
        raise StreaqError(f"{name} must be at least {least}; it is {value}.")
    return value
