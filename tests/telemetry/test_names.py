"""The names are whole, well-formed and free to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streaq.engine.health import SIZE
from streaq.telemetry import names
from streaq.telemetry.cells import HEALTH_CELLS
from streaq.telemetry.names import Metric

BASE_LABELS = {"queue", "task", "priority"}
FORBIDDEN_LABELS = {"worker", "worker_id", "host", "instance", "task_id", "id", "pid"}


def test_importing_names_loads_nothing_heavy() -> None:
    script = (
        "import sys, streaq.telemetry.names;"
        "print([m for m in ('prometheus_client', 'structlog') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_metric_is_listed_once() -> None:
    defined = [value for value in vars(names).values() if isinstance(value, Metric)]
    assert sorted(m.name for m in defined) == sorted(m.name for m in names.METRICS)
    assert len({m.name for m in names.METRICS}) == len(names.METRICS)


@pytest.mark.parametrize("metric", names.METRICS, ids=lambda m: m.name)
def test_metrics_follow_the_conventions(metric: Metric) -> None:
    assert metric.name.startswith("streaq_")
    assert (metric.type == "counter") == metric.name.endswith("_total")
    assert (metric.type == "histogram") == bool(metric.buckets)
    assert list(metric.buckets) == sorted(metric.buckets)
    assert (metric.unit == "seconds") == metric.name.endswith("_seconds")
    assert metric.help.endswith(".")
    assert len(metric.help) > 20
    assert not FORBIDDEN_LABELS & set(metric.labels)
    if metric.type == "histogram":
        assert len(metric.series) == 3


def test_task_buckets_go_from_a_millisecond_to_half_an_hour() -> None:
    assert names.TASK_BUCKETS[0] == 0.001
    assert names.TASK_BUCKETS[-1] == 30 * 60


def test_task_metrics_have_queue_task_and_priority() -> None:
    for metric in names.METRICS:
        if metric.name.startswith(("streaq_task_", "streaq_tasks_", "streaq_schedule_")):
            assert set(metric.labels) >= BASE_LABELS


def test_log_events_use_known_fields_and_all_of_them() -> None:
    used = {f for event in names.LOG_EVENTS for f in (*event.fields, *event.optional)}
    assert used == set(names.FIELDS)
    assert set(names.CONTEXT_FIELDS) <= used


def test_spans_use_known_attributes_and_all_but_the_link_one() -> None:
    known = {attribute.name for attribute in names.ATTRIBUTES}
    used = {name for span in names.SPANS for name in span.attributes}
    assert known - used == {"streaq.link"}
    assert used <= known


def test_there_is_room_for_health_in_every_store() -> None:
    assert SIZE <= HEALTH_CELLS
