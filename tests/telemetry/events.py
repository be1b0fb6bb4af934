"""Hand-made events, with what a test does not care about filled in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from streaq.hooks import Attempt, Ending, Enqueue, Kind, Lane, Mark, Starts, Status, Successes
from streaq.telemetry.metrics import to_end_s

SAMPLED = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
UNSAMPLED = SAMPLED[:-1] + "0"


def enqueue(task: str = "charge", **changes: Any) -> Enqueue:
    event = Enqueue("shop", task, "id-1", "normal", "immediate", 0, (), {}, False)
    return event._replace(**changes)


def attempt(
    task: str = "charge",
    *,
    kind: Kind = "immediate",
    try_number: int = 1,
    created_ms: int = 1_000_000,
    due_ms: int = 1_000_000,
    started_ms: int = 1_000_250,
    headers: Mapping[str, str] | None = None,
    trace: str = "",
    **changes: Any,
) -> Attempt:
    mark = Mark()
    mark.trace = trace
    event = Attempt(
        "shop", task, "id-1", "normal", kind, try_number, 3, "w1", created_ms, due_ms, created_ms,
        started_ms, headers or {}, "", (), False, (), {}, mark,
    )  # fmt: skip
    return event._replace(**changes)


def ending(
    a: Attempt,
    status: Status = "success",
    reason: str = "ok",
    error: BaseException | None = None,
    *,
    duration_s: float = 0.03,
    retry_due_ms: int = 0,
    result: object = None,
) -> Ending:
    finished_ms = (a.started_ms or a.created_ms) + round(duration_s * 1000)
    return Ending(a, status, reason, error, finished_ms, duration_s, retry_due_ms, result)


def starts(*attempts: Attempt) -> Starts:
    """They begin together; all are in the lane of the first."""
    return Starts(lane_of(attempts[0]), [a.wait_ms / 1000 for a in attempts])


def successes(*endings: Ending) -> Successes:
    """They were committed together; all are in the lane of the first."""
    lane = lane_of(endings[0].attempt)
    return Successes(lane, [e.duration_s for e in endings], [to_end_s(e) for e in endings])


def lane_of(a: Attempt) -> Lane:
    return Lane(a.queue, a.task, a.priority, a.worker_id)


def raised(error: Exception) -> Exception:
    """The error, with a traceback, out of a function with a secret in a local variable."""
    with contextlib.suppress(type(error)):
        _raise(error, password="local-" + "secret")
    return error


def _raise(error: Exception, password: str) -> None:
    copied = password * 2
    assert copied
    raise error
