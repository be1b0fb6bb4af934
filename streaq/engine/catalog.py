"""What this worker can run: its functions wrapped and measured once, and their options as the
claim script reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from hashlib import sha256
from typing import Any

import anyio
import anyio.to_thread

from streaq.engine.outcome import Policy
from streaq.producer import keep_of
from streaq.task import AsyncRegisteredTask, RegisteredTask
from streaq.types import Middleware, ReturnCoroutine
from streaq.utils import to_ms, to_seconds


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function, ready to be attempted."""

    name: str
    call: ReturnCoroutine
    """With every middleware around it."""
    policy: Policy
    keep: str
    silent: bool
    flags: str
    """``u`` when it holds a unique lock while it runs, ``c`` for a cron job."""
    task: RegisteredTask


class Catalog:
    """The functions of one worker while it runs.

    :param registry: by name.
    :param middlewares: the first registered is the outermost.
    :param sync_concurrency: how many plain functions may run at once, each in a thread.
    """

    def __init__(
        self,
        registry: Mapping[str, RegisteredTask],
        middlewares: Sequence[Middleware],
        sync_concurrency: int,
    ) -> None:
        limiter = anyio.CapacityLimiter(sync_concurrency)
        self.functions = {
            name: _function(task, middlewares, limiter) for name, task in registry.items()
        }
        self.options = {name: _options(f.task) for name, f in self.functions.items()}
        text = "\n".join(f"{name}\t{value}" for name, value in sorted(self.options.items()))
        self.digest = sha256(text.encode()).hexdigest()[:16]

    @property
    def crons(self) -> list[RegisteredTask]:
        """The functions that run by a timetable."""
        return [f.task for f in self.functions.values() if f.task.crontab is not None]


def _function(
    task: RegisteredTask, middlewares: Sequence[Middleware], limiter: anyio.CapacityLimiter
) -> Function:
    call = _body(task, limiter)
    for middleware in reversed(middlewares):
        call = middleware(call)
    return Function(
        task.fn_name,
        call,
        Policy(task.max_tries, task.retry_timeouts, to_seconds(task.timeout), task.worker.tz),
        str(keep_of(task.ttl)),
        task.silent,
        ("u" if task.unique else "") + ("c" if task.crontab is not None else ""),
        task,
    )


def _body(task: RegisteredTask, limiter: anyio.CapacityLimiter) -> ReturnCoroutine:
    fn: Callable[..., Any] = getattr(task, "fn")  # noqa: B009 - each kind types it its own way
    return fn if isinstance(task, AsyncRegisteredTask) else in_thread(fn, limiter)


def in_thread(fn: Callable[..., Any], limiter: anyio.CapacityLimiter) -> ReturnCoroutine:
    """A coroutine function that runs ``fn`` in a thread, with the caller's contextvars.

    When the waiting task is cancelled the thread still runs its course; what it returns is
    ignored.
    """

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        call = partial(_call, fn, args, kwargs)
        value, error = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)
        if error is not None:
            raise error
        return value

    return run


def _call(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    """What ``fn`` returns, or one of those errors that a future can't carry out of its thread:
    whoever waits for it would wait for ever.
    """
    try:
        return fn(*args, **kwargs), None
    except (StopIteration, GeneratorExit) as e:
        return None, e


def _options(task: RegisteredTask) -> str:
    """``max tries|drift ms|unique|keep ms``, as ``_claim.lua`` takes them apart."""
    drift = "" if task.max_schedule_drift is None else str(to_ms(task.max_schedule_drift))
    tries = "" if task.max_tries is None else str(task.max_tries)
    return f"{tries}|{drift}|{int(task.unique)}|{keep_of(task.ttl)}"
