"""The cap on names, over all processes of a page and all their lives."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry

from streaq import Worker
from streaq.telemetry import Telemetry, names
from streaq.telemetry.cells import Block, LocalStore
from streaq.telemetry.collector import collector_for
from streaq.telemetry.config import hooks_for
from streaq.telemetry.fleet import Fleet
from streaq.telemetry.names import OTHER
from tests.telemetry.events import attempt, ending, enqueue

Series = dict[tuple[str, ...], float]


class Page:
    """What is scraped, and the processes behind it."""

    def __init__(self, most: int, exceptions: int = 100) -> None:
        self.registry = CollectorRegistry()
        self.collector = collector_for(self.registry)
        self.collector.fold.allow(max_task_names=most, max_exception_names=exceptions)

    def process(self, *tasks: str, queue: str = "shop") -> tuple[LocalStore, Callable[[], object]]:
        store = LocalStore()
        for task in tasks:
            store.cells[store.allocate(names.TASKS_STARTED, (queue, task, "normal"))] += 1
        return store, self.collector.add(store.blocks)

    def series(self, name: str = "streaq_tasks_started_total") -> Series:
        return {
            tuple(sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        }

    def by_task(self) -> dict[str, float]:
        return {labels[1]: value for labels, value in self.series().items()}


def test_restarts_bring_no_more_names_than_the_cap() -> None:
    page = Page(2)
    for life in range(5):
        _, remove = page.process(f"task-{life}-a", f"task-{life}-b")
        assert len(page.by_task()) <= 3
        remove()
    assert page.by_task() == {"task-0-a": 1, "task-0-b": 1, OTHER: 8}


def test_a_name_that_no_scrape_has_seen_counts_as_well() -> None:
    page = Page(1)
    for task in ("a", "b", "c"):
        _, remove = page.process(task)
        remove()
        page.collector.bury()
    assert page.by_task() == {"a": 1, OTHER: 2}


def test_processes_beside_one_another_share_the_cap() -> None:
    page = Page(2)
    page.process("a", "b")
    page.process("c", "b", OTHER)
    assert page.by_task() == {"a": 1, "b": 2, OTHER: 2}


def test_each_queue_has_a_cap_of_its_own() -> None:
    page = Page(1)
    page.process("a", "b")
    page.process("c", "d", queue="mail")
    assert page.series() == {
        ("shop", "a", "normal"): 1, ("shop", OTHER, "normal"): 1,
        ("mail", "c", "normal"): 1, ("mail", OTHER, "normal"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_no_series_goes_backwards_whoever_comes_and_goes(seed: int) -> None:
    dice, page = random.Random(seed), Page(4)
    living: list[tuple[LocalStore, Callable[[], object]]] = []
    before: Series = {}
    total = 0
    for _ in range(200):
        if living and dice.random() < 0.3:
            living.pop(dice.randrange(len(living)))[1]()
        elif living and dice.random() < 0.5:
            dice.choice(living)[0].cells[16] += 1  # its first counter
            total += 1
        else:
            tasks = dice.sample([f"task-{i}" for i in range(12)], 3)
            living.append(page.process(*tasks))
            total += 3
        if dice.random() < 0.7:
            now = page.series()
            assert all(now[labels] >= value for labels, value in before.items())
            assert sum(now.values()) == total
            assert len(now) <= 5
            before = now


def test_gauges_are_folded_too_and_what_redis_tells_is_not() -> None:
    page = Page(1)
    store = LocalStore()
    for task in ("a", "b", "c"):
        store.cells[store.allocate(names.TASKS_RUNNING, ("shop", task, "normal"))] = 2
    page.collector.add(store.blocks)
    crons = [Block(names.CRON_NEXT_RUN, ("shop", task), (7.0,), {}) for task in "abc"]
    page.collector.add(lambda: crons)
    assert page.series("streaq_tasks_running") == {
        ("shop", "a", "normal"): 2, ("shop", OTHER, "normal"): 4,
    }  # fmt: skip
    assert len(page.series("streaq_cron_next_run_timestamp_seconds")) == 3


def test_a_higher_cap_counts_until_a_name_was_left_out() -> None:
    page = Page(1)
    page.process("a")
    page.collector.fold.allow(max_task_names=2, max_exception_names=1)
    page.process("b")
    assert set(page.by_task()) == {"a", "b"}
    page.process("c")
    assert page.by_task()[OTHER] == 1
    page.collector.fold.allow(max_task_names=9, max_exception_names=1)
    assert page.by_task()[OTHER] == 1, "it stays: c would leave it, and it would go backwards"


def count(registry: CollectorRegistry, tasks: Sequence[str], errors: Sequence[Exception]) -> None:
    """One worker, from its first task to its end."""
    telemetry = Telemetry(
        registry=registry, traces=False, logs=False, max_task_names=2, max_exception_names=1
    )
    [hook] = hooks_for(telemetry, queue="shop", client_id="w")
    for task in tasks:
        hook.on_enqueued(enqueue(task))
    for error in errors:
        hook.on_fail(ending(attempt(tasks[0]), "failed", "error", error))
    del hook
    gc.collect()


def test_workers_made_one_after_another_keep_to_their_caps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    page = Page(1, 1)
    count(page.registry, ["a", "b"], [KeyError()])
    count(page.registry, ["b", "c"], [OSError()])
    enqueued = page.series("streaq_tasks_enqueued_total")
    assert {labels[1]: value for labels, value in enqueued.items()} == {"a": 1, "b": 2, OTHER: 1}
    failed = page.series("streaq_tasks_failed_total")
    assert {labels[1::2]: value for labels, value in failed.items()} == {
        ("a", "KeyError"): 1, ("b", OTHER): 1,
    }  # fmt: skip
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [w.partition(":")[0] for w in warnings] == [
        "more than 2 task names", "more than 1 exception names",
    ]  # fmt: skip


def test_a_fleet_has_the_caps_of_its_worker() -> None:
    fleet = Fleet(Worker(telemetry=Telemetry(max_task_names=1)))
    shown: set[str] = set()
    for task in ("a", "b", "c"):
        member = fleet.join()
        member.store.allocate(names.TASKS_STARTED, ("default", task, "normal"))
        families = list(collector_for(fleet.registry).collect())
        shown |= {s.labels["task"] for f in families for s in f.samples if "task" in s.labels}
        fleet.leave(member)
    assert shown == {"a", OTHER}
