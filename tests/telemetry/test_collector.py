"""Adding up stores, and what a registry then shows."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from streaq.engine.health import Health
from streaq.hooks import WorkerEvent
from streaq.telemetry import names
from streaq.telemetry.cells import Block, Exemplar, LocalStore
from streaq.telemetry.collector import Sums, blocks_of, collector_for
from streaq.telemetry.metrics import MetricsHook
from streaq.telemetry.names import Metric

ROW = ("shop", "charge", "normal")


def block(metric: Metric, value: float, labels: tuple[str, ...] = ROW) -> Block:
    return Block(metric, labels, (value,), {})


def value(registry: CollectorRegistry, name: str) -> float | None:
    found = [s.value for f in registry.collect() for s in f.samples if s.name == name]
    assert len(found) < 2
    return found[0] if found else None


class Owner:
    pass


def test_counters_add_up_and_other_gauges_merge_as_they_should() -> None:
    sums = Sums()
    queue = ("shop",)
    for n in (3.0, 5.0):
        sums.add(
            [
                block(names.TASKS_STARTED, n),
                block(names.WORKER_CONCURRENCY, n, queue),
                block(names.EVENT_LOOP_LAG, n, queue),
                block(names.WORKER_OLDEST_RUNNING, n, queue),
            ]
        )
    found = {b.metric.name: b.values[0] for b in sums.blocks()}
    assert found == {
        "streaq_tasks_started_total": 8,
        "streaq_worker_concurrency": 8,
        "streaq_event_loop_lag_seconds": 5,
        "streaq_worker_oldest_running_start_timestamp_seconds": 3,
    }


def test_nothing_running_has_no_oldest() -> None:
    sums = Sums()
    sums.add([block(names.WORKER_OLDEST_RUNNING, 0, ("shop",))])
    sums.add([block(names.WORKER_OLDEST_RUNNING, 7, ("shop",))])
    assert [b.values for b in sums.blocks()] == [(7.0,)]


def test_the_newest_exemplar_wins() -> None:
    sums = Sums()
    width = len(names.TASK_BUCKETS) + 2
    for trace, at in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        exemplars = {4: Exemplar(trace * 32, 0.03, at)}
        sums.add([Block(names.TASK_QUEUE_WAIT, ROW, (0.0,) * width, exemplars)])
    [found] = sums.blocks()
    assert found.exemplars[4].trace_id == "b" * 32


def test_histograms_are_cumulative_with_count_and_sum() -> None:
    registry = CollectorRegistry()
    store = LocalStore()
    place = store.allocate(names.TASK_QUEUE_WAIT, ROW)
    store.cells[place] = 2  # 1 ms
    store.cells[place + 3] = 1  # 10 ms
    store.cells[place + len(names.TASK_BUCKETS)] = 1  # more than all
    store.cells[place + len(names.TASK_BUCKETS) + 1] = 2000.5
    collector_for(registry).add(store.blocks)
    [family] = [f for f in registry.collect() if f.name == "streaq_task_queue_wait_seconds"]
    found = {
        (s.name.removeprefix(family.name), s.labels.get("le")): s.value for s in family.samples
    }
    assert found["_bucket", "0.001"] == 2
    assert found["_bucket", "0.005"] == 2
    assert found["_bucket", "0.01"] == 3
    assert found["_bucket", "1800.0"] == 3
    assert found["_bucket", "+Inf"] == found["_count", None] == 4
    assert found["_sum", None] == 2000.5


def test_counters_of_a_gone_worker_stay_and_its_gauges_go() -> None:
    registry = CollectorRegistry()
    collector = collector_for(registry)
    store, owner = LocalStore(), Owner()
    store.cells[store.allocate(names.TASKS_STARTED, ROW)] = 5
    store.cells[store.allocate(names.TASKS_RUNNING, ROW)] = 2
    collector.add(store.blocks, owner=owner)
    assert value(registry, "streaq_tasks_started_total") == 5
    assert value(registry, "streaq_tasks_running") == 2
    del owner
    gc.collect()
    assert value(registry, "streaq_tasks_started_total") == 5
    assert value(registry, "streaq_tasks_running") is None
    assert len(collector._sources) == 0


def test_no_sum_goes_backwards_in_whichever_order_processes_end() -> None:
    """Floats add up to something else in another order; one digit less is a reset to Prometheus."""
    dice = random.Random(1)
    width = len(names.TASK_BUCKETS) + 2
    for _ in range(300):
        registry = CollectorRegistry()
        ends: list[Callable[[], object]] = []
        for _ in range(3):
            spent = Block(
                names.TASK_DURATION,
                (*ROW, "success"),
                (*[1.0] * (width - 1), dice.uniform(0, 20)),
                {},
            )
            ends.append(collector_for(registry).add(lambda spent=spent: [spent]))
        before = value(registry, "streaq_task_duration_seconds_sum")
        assert before is not None
        for end in reversed(ends):
            end()
            now = value(registry, "streaq_task_duration_seconds_sum")
            assert now == before


def test_a_source_can_be_taken_out_twice_without_harm() -> None:
    registry = CollectorRegistry()
    remove = collector_for(registry).add(lambda: [block(names.QUEUE_DEPTH, 3, ("shop", "low"))])
    assert value(registry, "streaq_queue_depth") == 3
    remove()
    remove()
    assert value(registry, "streaq_queue_depth") is None


def test_one_collector_per_registry() -> None:
    registry = CollectorRegistry()
    assert collector_for(registry) is collector_for(registry)
    assert collector_for(registry) is not collector_for(CollectorRegistry())


def test_the_registry_refuses_a_metric_of_the_same_name() -> None:
    registry = CollectorRegistry()
    collector_for(registry)
    with pytest.raises(ValueError, match="streaq_tasks_started"):
        Counter("streaq_tasks_started", "mine", registry=registry)


def test_every_metric_has_help_and_type_on_the_page_even_without_series() -> None:
    registry = CollectorRegistry()
    collector_for(registry)
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    shown = {f.name: (f.type, f.documentation) for f in families}
    for metric in names.METRICS:
        name = metric.name.removesuffix("_total")
        assert shown[name] == (metric.type, metric.help)


def test_openmetrics_has_units_and_exemplars() -> None:
    registry = CollectorRegistry()
    store = LocalStore()
    place = store.allocate(names.TASK_DURATION, (*ROW, "success"))
    store.cells[place + 4] = 1
    store.note(names.TASK_DURATION, place, 4, "c" * 32, 0.02)
    collector_for(registry).add(store.blocks)
    text = generate_openmetrics(registry).decode()
    assert "# UNIT streaq_task_duration_seconds seconds" in text
    [line] = [line for line in text.splitlines() if 'trace_id="' in line]
    assert 'le="0.025"' in line
    assert f'# {{trace_id="{"c" * 32}"}} 0.02' in line


def test_build_info_tells_versions() -> None:
    registry = CollectorRegistry()
    collector_for(registry)
    [info] = [s for f in registry.collect() for s in f.samples if s.name == "streaq_build_info"]
    assert (info.value, set(info.labels)) == (1, {"version", "python"})


def test_loop_lag_is_read_when_scraped_and_only_of_a_running_worker() -> None:
    now = 100.0
    health = Health(clock=lambda: now)
    store = LocalStore()
    store.allocate(names.EVENT_LOOP_LAG, ("shop",))
    assert list(blocks_of(store, health)) == []
    health.ready(4)
    health.beat(0.5)
    now = 102.0
    [found] = blocks_of(store, health)
    assert found.values == (1.5,)


def test_a_worker_that_only_enqueues_has_nothing_that_runs() -> None:
    """In `streaq run` all workers of a process count in one store, with one health record."""
    health = Health()
    store = LocalStore()
    runs, _enqueues = MetricsHook(store, "shop"), MetricsHook(store, "mail")
    runs.on_worker_start(WorkerEvent("shop", "w", 4, (), (), "", "asyncio"))
    health.ready(4)
    health.holds(1, 1_700_000_000_500)
    assert {(b.metric.name, b.labels) for b in blocks_of(store, health)} == {
        ("streaq_worker_concurrency", ("shop",)),
        ("streaq_event_loop_lag_seconds", ("shop",)),
        ("streaq_worker_oldest_running_start_timestamp_seconds", ("shop",)),
    }


def test_the_oldest_that_runs_is_read_when_scraped() -> None:
    health = Health()
    store = LocalStore()
    store.allocate(names.WORKER_OLDEST_RUNNING, ("shop",))
    health.holds(2, 1_700_000_000_500)
    [found] = blocks_of(store, health)
    assert found.values == (1_700_000_000.5,)
    health.stopped()
    [found] = blocks_of(store, health)
    assert found.values == (0.0,)
