"""The process' metrics once more, for an OpenTelemetry meter provider: for those who push OTLP.

Only used with ``Telemetry(meter_provider=...)``. The instruments are called as in ``names``
without ``_total`` and ``_seconds``, which exporters to Prometheus add again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from streaq.hooks import (
    Cron,
    Due,
    Ending,
    Enqueue,
    Fence,
    Hook,
    Reclaim,
    RedisCall,
    Starts,
    Successes,
    WorkerEvent,
)
from streaq.telemetry import names
from streaq.telemetry.metrics import Capped, to_end_s

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from streaq.telemetry.names import Metric

_HISTOGRAMS = (
    names.TASK_QUEUE_WAIT,
    names.TASK_DURATION,
    names.TASK_END_TO_END,
    names.SCHEDULE_LAG,
    names.REDIS_CALL_DURATION,
)
_COUNTERS = (
    names.TASKS_ENQUEUED,
    names.TASKS_STARTED,
    names.TASKS_FINISHED,
    names.TASKS_RETRIED,
    names.TASKS_FAILED,
    names.TASKS_REFUSED,
    names.TASKS_RECLAIMED,
    names.TASKS_FENCED,
    names.REDIS_ERRORS,
)


def instrument_name(metric: Metric) -> str:
    """What the metric is called as an OpenTelemetry instrument."""
    return metric.name.removesuffix("_total").removesuffix("_seconds")


class OtelMetricsHook(Hook):
    """Records the events of one worker with OpenTelemetry instruments."""

    def __init__(
        self,
        provider: MeterProvider,
        queue: str,
        *,
        max_task_names: int = 200,
        max_exception_names: int = 100,
    ) -> None:
        from streaq import __version__

        meter = provider.get_meter("streaq", __version__)
        self._queue = queue
        self._task_name = Capped(max_task_names, "task")
        self._exception_name = Capped(max_exception_names, "exception")
        self._running: Counter[tuple[str, str]] = Counter()
        self._counters = {
            metric.name: meter.create_counter(instrument_name(metric), description=metric.help)
            for metric in _COUNTERS
        }
        self._histograms = {
            metric.name: meter.create_histogram(
                instrument_name(metric),
                unit="s",
                description=metric.help,
                explicit_bucket_boundaries_advisory=metric.buckets,
            )
            for metric in _HISTOGRAMS
        }
        self._gauge = meter.create_up_down_counter(
            instrument_name(names.TASKS_RUNNING), description=names.TASKS_RUNNING.help
        )

    def _labels(self, task: str, priority: str, **more: str) -> dict[str, str]:
        labels = {"queue": self._queue, "task": self._task_name(task), "priority": priority}
        return {**labels, **more}

    def _count(self, metric: Metric, labels: dict[str, str], many: int = 1) -> None:
        self._counters[metric.name].add(many, labels)

    def _observe(self, metric: Metric, seconds: float, labels: dict[str, str]) -> None:
        self._histograms[metric.name].record(max(0.0, seconds), labels)

    def on_enqueued(self, e: Enqueue) -> None:
        """Count a new task; a schedule counts when it fires."""
        if e.kind != "cron":
            self._count(names.TASKS_ENQUEUED, self._labels(e.task, e.priority, kind=e.kind))

    def on_cron(self, e: Cron) -> None:
        """Count a firing, and observe how late it was."""
        if e.fired_ms:
            self._count(names.TASKS_ENQUEUED, self._labels(e.task, e.priority, kind="cron"))
            self._observe(names.SCHEDULE_LAG, e.lag_s, self._labels(e.task, e.priority))

    def on_due(self, e: Due) -> None:
        """Observe how late a scheduled task was moved to its queue."""
        self._observe(names.SCHEDULE_LAG, e.lag_s, self._labels(e.task, e.priority))

    def is_quiet(self) -> bool:
        """Attempts that succeed are counted together."""
        return True

    def on_starts(self, e: Starts) -> None:
        """Count attempts, and observe how long they waited."""
        labels = self._labels(e.lane.task, e.lane.priority)
        self._run(len(e.waits_s), e.lane.task, e.lane.priority)
        self._count(names.TASKS_STARTED, labels, len(e.waits_s))
        for waited_s in e.waits_s:
            self._observe(names.TASK_QUEUE_WAIT, waited_s, labels)

    def on_successes(self, e: Successes) -> None:
        """Count tasks that succeeded by being run."""
        labels = self._labels(e.lane.task, e.lane.priority)
        done = {**labels, "status": "success"}
        self._run(-len(e.durations_s), e.lane.task, e.lane.priority)
        self._count(names.TASKS_FINISHED, done, len(e.durations_s))
        for duration_s, total_s in zip(e.durations_s, e.totals_s, strict=True):
            self._observe(names.TASK_DURATION, duration_s, done)
            self._observe(names.TASK_END_TO_END, total_s, labels)

    def _ended(self, e: Ending, status: str) -> dict[str, str]:
        a = e.attempt
        labels = self._labels(a.task, a.priority)
        if a.started_ms:
            self._run(-1, a.task, a.priority)
            # Refused: its arguments could not be decoded. Lost: another worker has it.
            if status not in {"refused", "lost"}:
                self._observe(names.TASK_DURATION, e.duration_s, {**labels, "status": status})
        return labels

    def _run(self, more: int, task: str, priority: str) -> None:
        """So many more attempts run now."""
        self._running[task, priority] += more
        self._gauge.add(more, self._labels(task, priority))

    def _done(self, e: Ending, status: str) -> dict[str, str]:
        labels = self._ended(e, status)
        self._count(names.TASKS_FINISHED, {**labels, "status": status})
        if e.attempt.started_ms:
            self._observe(names.TASK_END_TO_END, to_end_s(e), labels)
        return labels

    def on_finish(self, e: Ending) -> None:
        """Count a task that was skipped, and has had no attempt."""
        if not e.attempt.started_ms:
            self._done(e, "success")

    def on_fail(self, e: Ending) -> None:
        """Count a task that failed for good, and its exception."""
        labels = self._done(e, "failed")
        self._count(names.TASKS_FAILED, {**labels, "exception": self._exception_of(e)})

    def on_retry(self, e: Ending) -> None:
        """Count an attempt that another follows."""
        self._count(names.TASKS_RETRIED, {**self._ended(e, "retried"), "reason": e.reason})

    def on_abort(self, e: Ending) -> None:
        """Count an aborted task."""
        self._done(e, "aborted")

    def on_return(self, e: Ending) -> None:
        """An attempt handed back runs no more."""
        self._ended(e, "returned")

    def on_refuse(self, e: Ending) -> None:
        """Count a task that ended without its body being run."""
        labels = self._ended(e, e.status)
        expired = e.reason == "expired"
        self._count(names.TASKS_REFUSED, {**labels, "reason": e.reason})
        self._count(names.TASKS_FINISHED, {**labels, "status": "expired" if expired else "failed"})
        if not expired:
            self._count(names.TASKS_FAILED, {**labels, "exception": self._exception_of(e)})

    def _exception_of(self, e: Ending) -> str:
        return self._exception_name(type(e.error).__name__ if e.error is not None else e.reason)

    def on_fenced(self, e: Fence) -> None:
        """Count an attempt whose end did not count."""
        self._count(names.TASKS_FENCED, self._ended(e.ending, e.ending.status))

    def on_reclaim(self, e: Reclaim) -> None:
        """Count an attempt taken over from a lost worker."""
        labels = self._labels(e.attempt.task, e.attempt.priority)
        self._count(names.TASKS_RECLAIMED, labels)

    def on_worker_stop(self, e: WorkerEvent) -> None:
        """What a worker gave up runs no more either, and is not told."""
        for (task, priority), running in list(self._running.items()):
            self._run(-running, task, priority)

    def on_redis_call(self, e: RedisCall) -> None:
        """Observe one call to Redis."""
        labels = {"operation": e.operation}
        self._observe(names.REDIS_CALL_DURATION, e.duration_s, labels)
        if e.error:
            self._count(names.REDIS_ERRORS, labels)
