"""The one source of every span, attribute, metric, label and log event that streaq emits.

Code, dashboards, alerts and docs take names from here and nowhere else. This module imports
nothing but the standard library, so that anything may import it. The spans and the log events
are written down in the two modules beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from streaq.telemetry.names_logs import CONTEXT_FIELDS, FIELDS, LOG_EVENTS, LogEvent
from streaq.telemetry.names_spans import ATTRIBUTES, SPANS, Attribute, SpanName

MetricType: TypeAlias = Literal["counter", "gauge", "histogram"]
Scope: TypeAlias = Literal["process", "queue"]
Merge: TypeAlias = Literal["sum", "max", "min"]

OTHER = "__other__"
"""Label value that stands for every task or exception name beyond the cap."""

__all__ = [
    "ATTRIBUTES",
    "CONTEXT_FIELDS",
    "FIELDS",
    "LOG_EVENTS",
    "METRICS",
    "OTHER",
    "SPANS",
    "Attribute",
    "LogEvent",
    "Metric",
    "SpanName",
]

# ---------------------------------------------------------------------------------- labels

QUEUE = "queue"
TASK = "task"
PRIORITY = "priority"
KIND = "kind"
STATUS = "status"
REASON = "reason"
EXCEPTION = "exception"
OPERATION = "operation"
VERSION = "version"
PYTHON = "python"

PER_TASK = (QUEUE, TASK, PRIORITY)
PER_PRIORITY = (QUEUE, PRIORITY)

KINDS = ("immediate", "delayed", "cron", "dependent")
"""Values of ``kind`` on ``streaq_tasks_enqueued_total``."""
OUTCOMES = ("success", "failed", "aborted", "expired")
"""Values of ``status`` that end a task: each enqueued task ends in exactly one of them."""
ATTEMPT_STATUSES = ("success", "failed", "aborted", "retried", "returned")
"""Values of ``status`` on ``streaq_task_duration_seconds``: how one attempt ended."""
RETRY_REASONS = ("asked", "timeout")
REFUSALS = (
    "expired",
    "unknown",
    "undecodable",
    "exhausted",
    "unique",
    "drift",
    "dependency",
)

LABEL_VALUES: dict[str, tuple[str, ...]] = {
    KIND: KINDS,
    REASON: RETRY_REASONS + REFUSALS,
    STATUS: tuple(dict.fromkeys(OUTCOMES + ATTEMPT_STATUSES)),
}
"""The labels whose values are known in advance."""

# --------------------------------------------------------------------------------- metrics

TASK_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
)  # fmt: skip
"""Upper bounds, in seconds, of the task histograms: 1 ms to 30 min."""

REDIS_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds, in seconds, of the Redis call histogram."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family as a scrape shows it.

    ``scope`` says who knows the value: ``process`` metrics are counted by each process and are
    added up in PromQL; ``queue`` metrics are read from Redis, are the same from every process
    that serves them, and are taken with ``max by (...)``. ``merge`` says how one endpoint joins
    the processes of ``--workers N``.
    """

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...]
    unit: str = ""
    buckets: tuple[float, ...] = ()
    scope: Scope = "process"
    merge: Merge = "sum"

    @property
    def series(self) -> tuple[str, ...]:
        """Names of the series that a query can select."""
        if self.type != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))


TASKS_ENQUEUED = Metric(
    "streaq_tasks_enqueued_total",
    "counter",
    "Tasks put into the queue by this process, by kind: immediate, delayed, cron or dependent.",
    (*PER_TASK, KIND),
)
TASKS_STARTED = Metric(
    "streaq_tasks_started_total",
    "counter",
    "Attempts started, retries included, and those whose arguments could not be decoded.",
    PER_TASK,
)
TASKS_FINISHED = Metric(
    "streaq_tasks_finished_total",
    "counter",
    "Tasks that came to their end, by status: success, failed, aborted or expired.",
    (*PER_TASK, STATUS),
)
TASKS_RETRIED = Metric(
    "streaq_tasks_retried_total",
    "counter",
    "Attempts that ended with another try to come, by reason: asked (StreaqRetry) or timeout.",
    (*PER_TASK, REASON),
)
TASKS_FAILED = Metric(
    "streaq_tasks_failed_total",
    "counter",
    "Tasks that failed for good, by exception class; beyond the cap the class is __other__.",
    (*PER_TASK, EXCEPTION),
)
TASKS_REFUSED = Metric(
    "streaq_tasks_refused_total",
    "counter",
    "Tasks ended without running their body, by reason: expired, unknown (function), "
    "undecodable, exhausted (tries), unique (clash), drift (cron too late) or dependency.",
    (*PER_TASK, REASON),
)
TASKS_RECLAIMED = Metric(
    "streaq_tasks_reclaimed_total",
    "counter",
    "Attempts taken over from a worker that stopped renewing its lease.",
    PER_TASK,
)
TASKS_FENCED = Metric(
    "streaq_tasks_fenced_total",
    "counter",
    "Settles refused because the lease had gone to another worker: work done twice.",
    PER_TASK,
)
TASK_QUEUE_WAIT = Metric(
    "streaq_task_queue_wait_seconds",
    "histogram",
    "Time from being due and queued to the start of the attempt; intended delay is excluded.",
    PER_TASK,
    unit="seconds",
    buckets=TASK_BUCKETS,
)
TASK_DURATION = Metric(
    "streaq_task_duration_seconds",
    "histogram",
    "Time one attempt ran, by status: success, failed, aborted, retried or returned (shutdown).",
    (*PER_TASK, STATUS),
    unit="seconds",
    buckets=TASK_BUCKETS,
)
TASK_END_TO_END = Metric(
    "streaq_task_end_to_end_seconds",
    "histogram",
    "Time from being due or enqueued, whichever is later, to the end of the task, retries "
    "included.",
    PER_TASK,
    unit="seconds",
    buckets=TASK_BUCKETS,
)
SCHEDULE_LAG = Metric(
    "streaq_schedule_lag_seconds",
    "histogram",
    "How late a scheduled task or cron firing was moved to its queue.",
    PER_TASK,
    unit="seconds",
    buckets=TASK_BUCKETS,
)
TASKS_RUNNING = Metric(
    "streaq_tasks_running", "gauge", "Attempts running in this process now.", PER_TASK
)
WORKER_CONCURRENCY = Metric(
    "streaq_worker_concurrency",
    "gauge",
    "Attempts this process can run at once.",
    (QUEUE,),
)
WORKER_OLDEST_RUNNING = Metric(
    "streaq_worker_oldest_running_start_timestamp_seconds",
    "gauge",
    "Unix time at which the longest-running attempt of this process started; absent when idle.",
    (QUEUE,),
    unit="seconds",
    merge="min",
)
EVENT_LOOP_LAG = Metric(
    "streaq_event_loop_lag_seconds",
    "gauge",
    "Longest time by which the event loop was late for its beat, over the last minute.",
    (QUEUE,),
    unit="seconds",
    merge="max",
)
QUEUE_DEPTH = Metric(
    "streaq_queue_depth",
    "gauge",
    "Tasks that are due and wait for a worker, also those that one has prefetched or died with.",
    PER_PRIORITY,
    scope="queue",
    merge="max",
)
QUEUE_SCHEDULED = Metric(
    "streaq_queue_scheduled",
    "gauge",
    "Tasks with a due time still to come, retries included.",
    PER_PRIORITY,
    scope="queue",
    merge="max",
)
QUEUE_BLOCKED = Metric(
    "streaq_queue_blocked",
    "gauge",
    "Tasks that wait for other tasks to end.",
    PER_PRIORITY,
    scope="queue",
    merge="max",
)
QUEUE_RUNNING = Metric(
    "streaq_queue_running",
    "gauge",
    "Tasks that a live worker runs.",
    PER_PRIORITY,
    scope="queue",
    merge="max",
)
QUEUE_OLDEST_DUE = Metric(
    "streaq_queue_oldest_due_timestamp_seconds",
    "gauge",
    "Unix time since which the oldest waiting task has been due and there; absent when none waits.",
    PER_PRIORITY,
    unit="seconds",
    scope="queue",
    merge="min",
)
QUEUE_WORKERS = Metric(
    "streaq_queue_workers",
    "gauge",
    "Workers alive on the queue.",
    (QUEUE,),
    scope="queue",
    merge="max",
)
QUEUE_ENQUEUED = Metric(
    "streaq_queue_enqueued_total",
    "counter",
    "Tasks ever put into the queue, counted in Redis: exact even when a process is killed.",
    PER_PRIORITY,
    scope="queue",
    merge="max",
)
QUEUE_FINISHED = Metric(
    "streaq_queue_finished_total",
    "counter",
    "Tasks that ever came to their end, by status, counted in Redis: exact even when a process "
    "is killed.",
    (*PER_PRIORITY, STATUS),
    scope="queue",
    merge="max",
)
CRON_LAST_SUCCESS = Metric(
    "streaq_cron_last_success_timestamp_seconds",
    "gauge",
    "Unix time at which a cron job of the code last succeeded; absent until it has.",
    (QUEUE, TASK),
    unit="seconds",
    scope="queue",
    merge="max",
)
CRON_NEXT_RUN = Metric(
    "streaq_cron_next_run_timestamp_seconds",
    "gauge",
    "Unix time of the next firing of a cron job of the code; absent when there is none.",
    (QUEUE, TASK),
    unit="seconds",
    scope="queue",
    merge="max",
)
CRON_MISSED = Metric(
    "streaq_cron_missed_total",
    "counter",
    "Firings of a cron job of the code that passed with no worker alive and were not run.",
    (QUEUE, TASK),
    scope="queue",
    merge="max",
)
REDIS_CALL_DURATION = Metric(
    "streaq_redis_call_duration_seconds",
    "histogram",
    "Time one call to Redis took, waiting for work excluded.",
    (OPERATION,),
    unit="seconds",
    buckets=REDIS_BUCKETS,
)
REDIS_ERRORS = Metric(
    "streaq_redis_errors_total", "counter", "Calls to Redis that failed.", (OPERATION,)
)
BUILD_INFO = Metric(
    "streaq_build_info",
    "gauge",
    "Always 1; its labels say which streaq and which Python run.",
    (VERSION, PYTHON),
    merge="max",
)

METRICS: tuple[Metric, ...] = (
    TASKS_ENQUEUED,
    TASKS_STARTED,
    TASKS_FINISHED,
    TASKS_RETRIED,
    TASKS_FAILED,
    TASKS_REFUSED,
    TASKS_RECLAIMED,
    TASKS_FENCED,
    TASK_QUEUE_WAIT,
    TASK_DURATION,
    TASK_END_TO_END,
    SCHEDULE_LAG,
    TASKS_RUNNING,
    WORKER_CONCURRENCY,
    WORKER_OLDEST_RUNNING,
    EVENT_LOOP_LAG,
    QUEUE_DEPTH,
    QUEUE_SCHEDULED,
    QUEUE_BLOCKED,
    QUEUE_RUNNING,
    QUEUE_OLDEST_DUE,
    QUEUE_WORKERS,
    QUEUE_ENQUEUED,
    QUEUE_FINISHED,
    CRON_LAST_SUCCESS,
    CRON_NEXT_RUN,
    CRON_MISSED,
    REDIS_CALL_DURATION,
    REDIS_ERRORS,
    BUILD_INFO,
)
