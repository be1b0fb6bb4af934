"""The same numbers through OpenTelemetry instruments."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from streaq.hooks import Cron, Dispatcher, Due, Fence, Reclaim, RedisCall, WorkerEvent
from streaq.telemetry import Telemetry, names
from streaq.telemetry.otel_metrics import instrument_name
from tests.telemetry.events import attempt, ending, enqueue, starts, successes

WORKER = WorkerEvent("shop", "w", 4, (), (), "", "asyncio")


def points(reader: InMemoryMetricReader) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[str, Any] = {}
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = {
                    tuple(sorted((point.attributes or {}).items())): point
                    for point in metric.data.data_points
                }
    return found


def tell_of_everything(hooks: Dispatcher) -> None:
    def tell(slot: str, event: object) -> None:
        hooks.emit(getattr(hooks, slot), event)

    for kind in ("immediate", "delayed", "cron"):
        tell("on_enqueued", enqueue(kind=kind))
    tell("on_cron", Cron("shop", "tidy", "id", 5, 10, 0, 0.2, "normal"))
    tell("on_due", Due("shop", "charge", "id", "normal", 5, 0.1))
    for slot, status, reason in (
        ("on_finish", "success", "ok"),
        ("on_fail", "failed", "error"),
        ("on_retry", "retried", "asked"),
        ("on_abort", "aborted", "user"),
        ("on_return", "returned", "shutdown"),
    ):
        a = attempt()
        end = ending(a, status, reason, KeyError())  # type: ignore[arg-type]
        tell("on_starts", starts(a))
        tell(slot, end)
        if status == "success":
            tell("on_successes", successes(end))
    for slot, kind in (("on_refuse", lambda e: e), ("on_fenced", Fence)):
        a = attempt()
        tell("on_starts", starts(a))
        tell(slot, kind(ending(a, "refused", "undecodable", KeyError())))
    tell("on_refuse", ending(attempt("third", started_ms=0), "refused", "expired"))
    for end in (ending(attempt()), ending(attempt(), "lost", "lost")):
        tell("on_starts", starts(end.attempt))
        tell("on_fenced", Fence(end))
    tell("on_reclaim", Reclaim(attempt(), "w0"))
    tell("on_redis_call", RedisCall("exchange", 0.003, "TimeoutError"))
    tell("on_starts", starts(attempt()))
    tell("on_worker_start", WORKER)


@pytest.mark.parametrize("stopped", [False, True])
def test_both_count_the_same(stopped: bool) -> None:
    reader = InMemoryMetricReader()
    registry = CollectorRegistry()
    telemetry = Telemetry(
        registry=registry,
        meter_provider=MeterProvider(metric_readers=[reader]),
        traces=False,
        logs=False,
        max_task_names=2,
    )
    hooks = Dispatcher(telemetry.hooks(queue="shop", client_id="w"))
    tell_of_everything(hooks)
    if stopped:
        hooks.emit(hooks.on_worker_stop, WORKER)

    found = points(reader)
    running = found[instrument_name(names.TASKS_RUNNING)]
    assert [point.value for point in running.values()] == [0 if stopped else 1]
    compared = 0
    for family in registry.collect():
        for sample in family.samples:
            name = sample.name.removesuffix("_count")
            metric = next((m for m in names.METRICS if m.name == name), None)
            if metric is None or instrument_name(metric) not in found:
                continue
            point = found[instrument_name(metric)].get(tuple(sorted(sample.labels.items())))
            if point is None:
                assert sample.value == 0, sample
                continue
            assert sample.value == (point.count if metric.buckets else point.value), sample
            compared += 1
    assert compared >= 20
    durations = found[instrument_name(names.TASK_DURATION)]
    statuses = {dict(labels)[names.STATUS] for labels in durations}
    assert statuses == set(names.ATTEMPT_STATUSES), "no refused and no lost ones"


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (names.TASKS_STARTED, "streaq_tasks_started"),
        (names.TASK_DURATION, "streaq_task_duration"),
        (names.TASKS_RUNNING, "streaq_tasks_running"),
    ],
)
def test_names_lose_what_exporters_add_again(metric: names.Metric, name: str) -> None:
    assert instrument_name(metric) == name
