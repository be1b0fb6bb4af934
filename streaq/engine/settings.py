"""What the engine needs to know of a worker's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo


@dataclass(frozen=True, slots=True)
class Settings:
    """Set once, when the worker starts.

    :param worker_id: the name that people know the worker by.
    :param consumer: the name that Redis knows this run of it by; no other run has it.
    :param priorities: highest first.
    :param prefetch: messages to hold beyond those that run; 0 for none.
    :param lease_ms: how long a worker may be silent before its tasks are taken over.
    :param grace_s: how long running tasks may go on after a signal.
    :param burst: whether to stop when nothing is due any more.
    :param hurry: whether a burst makes what is due later due now (for tests).
    """

    queue: str
    worker_id: str
    consumer: str
    priorities: tuple[str, ...]
    default_priority: str
    concurrency: int
    prefetch: int
    lease_ms: int
    grace_s: float
    tz: tzinfo
    burst: bool
    hurry: bool
    handle_signals: bool
