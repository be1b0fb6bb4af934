"""The events that hooks are called with: what happened, when, and to which task. All frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Kind: TypeAlias = Literal["immediate", "delayed", "cron", "dependent", "retry"]
"""Why a task became due: at once, later, by a schedule, after another task, or again."""

Status: TypeAlias = Literal[
    "success", "failed", "aborted", "retried", "returned", "lost", "refused"
]
"""How an attempt (or the refusal to start one) ended; ``lost``: another worker took it over."""


class Enqueue(NamedTuple):
    """One task on its way into the queue. ``headers`` may be written: they travel with it."""

    queue: str
    task: str
    task_id: str
    priority: str
    kind: Kind
    delay_ms: int
    """Intended delay from now until due; 0 when it is due at once."""
    after: tuple[str, ...]
    """Ids of the tasks it waits for."""
    headers: dict[str, str]
    silent: bool
    fired_ms: int = 0
    """The firing that this task stands for, when a cron job of the code makes it and no caller
    does; else 0."""


class Publish(NamedTuple):
    """One call that enqueues: a single task, a pipeline, or a batch."""

    queue: str
    client_id: str
    tasks: Sequence[Enqueue]


class Mark:
    """What a hook leaves on an attempt, and what the engine tells it at the end.

    ``trace`` (a W3C traceparent) is kept in the ledger and handed to the next attempt and to the
    tasks that wait for this one. ``end`` is set by the engine before ``around_attempt`` exits.
    """

    # Class attributes: one is made for each attempt, and a constructor would cost more than both.
    trace: str = ""
    end: Ending | None = None


class Attempt(NamedTuple):
    """One run of a task, or the refusal to start one (then ``started_ms`` is 0)."""

    queue: str
    task: str
    task_id: str
    priority: str
    kind: Kind
    try_number: int
    max_tries: int | None
    worker_id: str
    created_ms: int
    due_ms: int
    enqueued_ms: int
    started_ms: int
    headers: Mapping[str, str]
    previous: str
    """Trace of the attempt before this one, or empty."""
    links: tuple[str, ...]
    """Traces of the attempts that this task waited for."""
    silent: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    mark: Mark
    first_due_ms: int = 0
    """When the task's first attempt was due, so that a retry can tell the time since then without
    the intended delay; 0 when it is not known (then ``created_ms`` is used)."""
    retry_delay_ms: int = 0
    """Of a retry: intended delay since the attempt before it ended."""
    refused_ms: int = 0
    """When it was refused or aborted, if that was before it started; else 0."""

    @property
    def wait_ms(self) -> int:
        """Milliseconds between being due and queued, and being started or refused; never negative.
        0 of a task that was never in the queue.
        """
        until_ms = self.started_ms or (self.enqueued_ms and self.refused_ms)
        return max(0, until_ms - max(self.due_ms, self.created_ms)) if until_ms else 0


class Ending(NamedTuple):
    """How an attempt ended. ``reason`` is one word; ``error`` is the exception, if there is one."""

    attempt: Attempt
    status: Status
    reason: str
    """success: ``ok`` or ``skipped`` (a fail-over not needed); failed: ``error``, ``timeout`` or
    ``exhausted``; retried: ``asked`` or ``timeout``; aborted: ``user`` or ``raised``; returned:
    ``shutdown``; lost: ``lost``; refused: ``expired``, ``unknown``, ``undecodable``,
    ``exhausted``, ``unique``, ``drift`` or ``dependency``."""
    error: BaseException | None
    finished_ms: int
    duration_s: float
    """Of the body, on a monotonic clock, in seconds."""
    retry_due_ms: int
    """When the next try is due, for ``retried``; else 0."""
    result: Any


class Lane(NamedTuple):
    """One task at one priority, as one worker runs it."""

    queue: str
    task: str
    priority: str
    worker_id: str


class Entry(Protocol):
    """An attempt that enters its context. Only what is known at no cost."""

    @property
    def task_id(self) -> str:
        """The task's id."""
        ...

    @property
    def try_number(self) -> int:
        """1 for a first attempt."""
        ...


class Starts(NamedTuple):
    """Attempts of one lane that were claimed together and begin now."""

    lane: Lane
    waits_s: Sequence[float]
    """Of each: seconds between being due and queued, and being claimed; never negative."""


class Successes(NamedTuple):
    """Attempts of one lane that succeeded, and whose ends were committed together."""

    lane: Lane
    durations_s: Sequence[float]
    """Of each: seconds that the body took, on a monotonic clock."""
    totals_s: Sequence[float]
    """Of each: seconds since its task could first have run."""


class Reclaim(NamedTuple):
    """An attempt taken over from a worker whose lease ran out."""

    attempt: Attempt
    lost_worker: str


class Fence(NamedTuple):
    """A settle that came too late and changed nothing."""

    ending: Ending


class Release(NamedTuple):
    """A task whose dependencies are all met, or a fail-over whose turn it is."""

    queue: str
    task: str
    task_id: str
    priority: str
    by: str
    """Id of the task whose end released it."""


class Due(NamedTuple):
    """A scheduled task moved to its queue: ``lag_s`` seconds after it was due."""

    queue: str
    task: str
    task_id: str
    priority: str
    due_ms: int
    lag_s: float


class Cron(NamedTuple):
    """A schedule seen by this worker: registered (``fired_ms`` 0), or fired for that moment."""

    queue: str
    task: str
    task_id: str
    fired_ms: int
    next_ms: int
    """The next firing, or 0 when there is none."""
    missed: int
    """Firings that passed with no worker alive, and were not run."""
    lag_s: float
    priority: str = ""
    """Of the task that a firing makes. A firing reports itself here once, by the worker that made
    the task, and not by ``on_enqueued``; a repeating schedule of a user's is enqueued (kind
    ``cron``) when it is made, and fires here."""
    silent: bool = False


class WorkerEvent(NamedTuple):
    """A worker that starts or stops."""

    queue: str
    worker_id: str
    concurrency: int
    priorities: tuple[str, ...]
    tasks: tuple[str, ...]
    reason: str
    backend: str


class RedisCall(NamedTuple):
    """One call to Redis. ``error`` is the exception class name, or empty."""

    operation: str
    duration_s: float
    error: str


class RedisLink(NamedTuple):
    """Redis lost (``outage_s`` is 0) or restored."""

    queue: str
    worker_id: str
    error: str
    outage_s: float


class LoopBlocked(NamedTuple):
    """The event loop has not run for ``blocked_s`` seconds; ``where`` is the line it stands on."""

    queue: str
    worker_id: str
    blocked_s: float
    where: str
    tasks: tuple[str, ...]
