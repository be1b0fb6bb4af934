"""Errors, the task context, and the callable shapes that the public API is typed with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeAlias, overload

from typing_extensions import TypeIs, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from streaq.task import AsyncRegisteredTask, SyncRegisteredTask, Task

C = TypeVar("C", default=None)
P = ParamSpec("P")
POther = ParamSpec("POther")
R = TypeVar("R")
ROther = TypeVar("ROther")
Ts = TypeVarTuple("Ts")
I_contra = TypeVar("I_contra", contravariant=True)


class StreaqError(Exception):
    """Base class of every error that streaq raises itself."""

    brief: str = ""
    """The message without what it quotes of arguments and results, for logs; empty when it quotes
    nothing.
    """


class StreaqCancelled(StreaqError):
    """The task was aborted. Raising it inside a task aborts that task."""


class StreaqRetry(StreaqError):
    """Raise inside a task to have it tried again.

    :param args: as for any exception; the first is the message.
    :param delay: seconds (or a ``timedelta``) to wait before the next try. The default, when
        ``schedule`` is not given either, is the number of tries squared, in seconds.
    :param schedule: the moment of the next try; a naive datetime is taken in the worker's ``tz``.

    Example::

        @worker.task
        async def fetch(url: str) -> str:
            try:
                return await download(url)
            except ConnectionError as e:
                raise StreaqRetry("not reachable yet", delay=5) from e
    """

    def __init__(
        self,
        *args: object,
        delay: timedelta | float | None = None,
        schedule: datetime | None = None,
    ) -> None:
        super().__init__(*args)
        self.delay = delay
        self.schedule = schedule


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a running task can know about itself, by ``fn.context``.

    ``tries`` counts from 1. ``timeout`` and ``ttl`` are as they were given to the decorator.
    """

    fn_name: str
    task_id: str
    timeout: timedelta | float | None
    tries: int
    ttl: timedelta | float | None


TypedCoroutine: TypeAlias = Coroutine[Any, Any, R]
ReturnCoroutine: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]
Middleware: TypeAlias = Callable[[ReturnCoroutine], ReturnCoroutine]
AsyncCron: TypeAlias = Callable[[], TypedCoroutine[R]]
SyncCron: TypeAlias = Callable[[], R]
AsyncTask: TypeAlias = Callable[P, TypedCoroutine[R]]
SyncTask: TypeAlias = Callable[P, R]
Serializer: TypeAlias = Callable[[Any], "bytes | str | Awaitable[bytes | str]"]
Deserializer: TypeAlias = Callable[[bytes], Any]
Duration: TypeAlias = "timedelta | float"


def is_async_task(
    fn: Callable[P, Awaitable[R]] | Callable[P, R],
) -> TypeIs[Callable[P, Awaitable[R]]]:
    """Whether ``fn`` is a coroutine function, so that it runs on the event loop."""
    return iscoroutinefunction(fn)


class TaskDecorator(Protocol):
    """What ``worker.task(...)`` returns: keeps the signature of the function it wraps."""

    @overload
    def __call__(self, fn: AsyncTask[P, R], /) -> AsyncRegisteredTask[P, R]: ...  # pyright: ignore[reportOverlappingOverload]

    @overload
    def __call__(self, fn: SyncTask[P, R], /) -> SyncRegisteredTask[P, R]: ...


class CronDecorator(Protocol):
    """What ``worker.cron(...)`` returns: takes functions without arguments only."""

    @overload
    def __call__(self, fn: AsyncCron[R], /) -> AsyncRegisteredTask[[], R]: ...  # pyright: ignore[reportOverlappingOverload]

    @overload
    def __call__(self, fn: SyncCron[R], /) -> SyncRegisteredTask[[], R]: ...


class Step(Protocol[I_contra, P, R]):
    """A registered task as a pipeline sees it: takes one input, and more arguments by keyword.

    A protocol, so that a task fits which accepts more than it gets: an ``int`` where it gets a
    ``bool``, or a keyword with a default that it does not get.
    """

    @property
    def fn_name(self) -> str:
        """The name it is registered by."""
        ...

    def enqueue(self, input: I_contra, /, *args: P.args, **kwargs: P.kwargs) -> Task[..., R]:
        """A call of it."""
        ...


class TupleStep(Protocol[*Ts, R]):
    """A registered task that takes the items of a tuple one by one."""

    @property
    def fn_name(self) -> str:
        """The name it is registered by."""
        ...

    def enqueue(self, *args: *Ts) -> Task[..., R]:
        """A call of it."""
        ...
