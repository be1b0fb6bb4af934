"""Small helpers that users' own tasks call too."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar, TypeVarTuple, cast, overload

import anyio

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
Ts = TypeVarTuple("Ts")

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
TENTHS_BELOW_MS = 10
"""From here on a digit behind the point says nothing."""


@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], /) -> tuple[T1, T2]: ...


@overload
async def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> tuple[T1, T2, T3]: ...


@overload
async def gather(*awaitables: Awaitable[T]) -> tuple[T, ...]: ...


async def gather(*awaitables: Awaitable[Any]) -> tuple[Any, ...]:
    """Await several things at once, on any backend, and return their values in order.

    If one raises, the others are cancelled and its exception comes through as it is.

    Example::

        a, b = await gather(first.result(3), second.result(3))
    """
    results: list[Any] = [None] * len(awaitables)
    failed: list[BaseException] = []

    async def fill(i: int, awaitable: Awaitable[Any]) -> None:
        try:
            results[i] = await awaitable
        except Exception as e:  # noqa: BLE001 - it is raised below
            failed.append(e)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for i, awaitable in enumerate(awaitables):
            group.start_soon(fill, i, awaitable)
    if failed:
        raise failed[0]
    return tuple(results)


@overload
def to_tuple(value: tuple[*Ts]) -> tuple[*Ts]: ...


@overload
def to_tuple(value: T) -> tuple[T]: ...


def to_tuple(value: Any) -> tuple[Any, ...]:
    """The value itself if it is a tuple, else a tuple of just it.

    Example::

        await task.enqueue(*to_tuple(item))
    """
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)


def to_ms(duration: timedelta | float) -> int:
    """Seconds, or a ``timedelta``, as whole milliseconds."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    return round(seconds * 1000)


def to_seconds(duration: timedelta | float | None) -> float | None:
    """Seconds, or a ``timedelta``, as seconds; None stays None."""
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    return duration


def say_ms(ms: float) -> str:
    """Milliseconds as people say them: ``3 ms``, ``1.25 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if ms < SECOND_MS:
        return f"{ms:.1f} ms" if ms < TENTHS_BELOW_MS and ms % 1 else f"{ms:.0f} ms"
    if ms < MINUTE_MS:
        return f"{ms / SECOND_MS:.2f} s".replace(".00 s", " s")
    for unit_ms, unit, part_ms, part in (
        (DAY_MS, "d", HOUR_MS, "h"),
        (HOUR_MS, "h", MINUTE_MS, "min"),
        (MINUTE_MS, "min", SECOND_MS, "s"),
    ):
        if ms >= unit_ms:
            rest = int(ms % unit_ms // part_ms)
            return f"{int(ms // unit_ms)} {unit}" + (f" {rest} {part}" if rest else "")
    raise AssertionError("unreachable")


def import_string(path: str) -> Any:
    """The object that ``package.module:name`` names.

    :raises ImportError: saying which half of the path is wrong.

    Example::

        worker = import_string("example:worker")
    """
    module_name, colon, name = path.strip().partition(":")
    if not colon or not module_name or not name:
        raise ImportError(f"{path!r} is not of the form module.submodule:object")
    module = import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no attribute {name!r}") from None
