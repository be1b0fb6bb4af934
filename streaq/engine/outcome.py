"""What an attempt can come to, and the pure function that decides which it was."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, TypeAlias

from streaq.types import StreaqCancelled, StreaqRetry
from streaq.utils import to_ms
from streaq.wire import GAVE_UP, one_line


class Cause(Enum):
    """Why the engine cancelled an attempt."""

    ABORT = auto()
    SHUTDOWN = auto()
    LOST = auto()
    """Its lease ran out and another worker has it."""
    TIMEOUT = auto()


class Succeeded(NamedTuple):
    """The body returned; ``raw`` is the value serialised. A tuple, because it is made for nearly
    every attempt, and a frozen dataclass takes three times as long.
    """

    value: Any
    raw: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt ends the task in failure."""

    error: BaseException
    reason: Literal["error", "timeout", "exhausted", "undecodable"] = "error"


@dataclass(frozen=True, slots=True)
class Retried:
    """The task is tried again, ``delay_ms`` from now or at ``at``."""

    error: BaseException
    when: str
    reason: Literal["asked", "timeout"] = "asked"


@dataclass(frozen=True, slots=True)
class Aborted:
    """The task ends because somebody wanted it to."""

    error: BaseException
    reason: Literal["user", "raised"] = "user"


@dataclass(frozen=True, slots=True)
class Returned:
    """The task is handed back as if it had not been started."""


@dataclass(frozen=True, slots=True)
class Forfeited:
    """The lease is lost: whatever came of it, it is not ours to tell."""


Outcome: TypeAlias = Succeeded | Failed | Retried | Aborted | Returned | Forfeited


@dataclass(frozen=True, slots=True)
class Policy:
    """How a function's failures are treated."""

    max_tries: int | None
    retry_timeouts: bool
    timeout_s: float | None
    tz: tzinfo = UTC
    """In which a naive datetime of ``StreaqRetry(schedule=...)`` is taken."""


def classify(  # noqa: PLR0911 - one return per outcome
    error: BaseException | None, cause: Cause | None, policy: Policy, try_number: int
) -> Outcome:
    """What became of an attempt that did not return a value.

    :param error: what it raised; None when it was cancelled and ended quietly.
    :param cause: why the engine cancelled it; None when it did not.
    """
    if cause is Cause.LOST:
        return Forfeited()
    if cause is Cause.SHUTDOWN:
        return Returned()
    if cause is Cause.ABORT:
        return Aborted(StreaqCancelled("The task was aborted while running."))
    if cause is Cause.TIMEOUT:
        late = TimeoutError(f"The task timed out after {policy.timeout_s:g} s.")
        return _timed_out(late, policy, try_number)
    if error is None:
        raise AssertionError("an attempt ended without value, error or cause")
    if isinstance(error, StreaqRetry):
        return _retry(error, policy, try_number)
    if isinstance(error, StreaqCancelled):
        return Aborted(error, "raised")
    return Failed(error)


def backoff_ms(try_number: int) -> int:
    """The default delay before the next try: the number of tries squared, in seconds."""
    return try_number * try_number * 1000


def _timed_out(late: TimeoutError, policy: Policy, try_number: int) -> Outcome:
    if not policy.retry_timeouts:
        return Failed(late, "timeout")
    if _exhausted(policy, try_number):
        return _give_up(late, try_number)
    return Retried(late, f"+{backoff_ms(try_number)}", "timeout")


def _retry(asked: StreaqRetry, policy: Policy, try_number: int) -> Outcome:
    if _exhausted(policy, try_number):
        return _give_up(real_error(asked), try_number)
    if asked.schedule is not None:
        return Retried(asked, str(_moment_ms(asked.schedule, policy.tz)))
    if asked.delay is not None:
        return Retried(asked, f"+{_not_negative(asked.delay)}")
    return Retried(asked, f"+{backoff_ms(try_number)}")


def _moment_ms(moment: datetime, tz: tzinfo) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=tz)
    return round(aware.timestamp() * 1000)


def _not_negative(delay: timedelta | float) -> int:
    return max(0, to_ms(delay))


def _exhausted(policy: Policy, try_number: int) -> bool:
    return policy.max_tries is not None and try_number >= policy.max_tries


def real_error(error: BaseException) -> BaseException:
    """What made a task ask for another try, where it says so; else the error itself."""
    if isinstance(error, StreaqRetry):
        for behind in (error.__cause__, error.__context__):
            if isinstance(behind, Exception):
                return behind
    return error


def said(error: BaseException) -> str:
    """One line on why a task is tried again: what asked for it, and what was behind that."""
    behind = real_error(error)
    text = one_line(error)
    return text if behind is error else f"{text} (from {one_line(behind)})"


def _give_up(error: BaseException, try_number: int) -> Failed:
    error.add_note(GAVE_UP.format(tries=try_number))
    return Failed(error, "exhausted")
