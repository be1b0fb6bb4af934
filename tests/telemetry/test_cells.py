"""Stores: what is counted is what is read, in private and in shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streaq.telemetry import names, shared
from streaq.telemetry.cells import HEALTH_CELLS, Block, LocalStore, Store, width_of
from streaq.telemetry.fleet import Fleet
from streaq.telemetry.shared import STORE_VARIABLE, SharedStore

LABELS = ("shop", "charge", "normal")
INVENTED = replace(names.TASKS_STARTED, name="streaq_tasks_invented_total")
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(params=["local", "shared"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore()
        return
    made = SharedStore.create()
    yield made
    made.close()


def test_a_series_starts_at_nought_and_is_read_as_counted(store: Store) -> None:
    place = store.allocate(names.TASKS_STARTED, LABELS)
    store.cells[place] += 1
    store.cells[place] += 1
    [block] = store.blocks()
    assert (block.metric, block.labels, block.values) == (names.TASKS_STARTED, LABELS, (2.0,))


def test_series_do_not_touch_each_other(store: Store) -> None:
    places = [store.allocate(names.TASK_QUEUE_WAIT, ("q", f"t{i}", "p")) for i in range(50)]
    width = width_of(names.TASK_QUEUE_WAIT)
    for i, place in enumerate(places):
        for cell in range(width):
            store.cells[place + cell] = i * 100 + cell
    for i, block in enumerate(store.blocks()):
        assert block.values == tuple(float(i * 100 + cell) for cell in range(width))


def test_the_cells_of_health_belong_to_no_series(store: Store) -> None:
    assert store.allocate(names.TASKS_STARTED, LABELS) >= HEALTH_CELLS
    assert list(store.cells[:HEALTH_CELLS]) == [0.0] * HEALTH_CELLS


def test_exemplars_are_kept_by_bucket_and_the_last_one_stays(store: Store) -> None:
    place = store.allocate(names.TASK_DURATION, (*LABELS, "success"))
    store.note(names.TASK_DURATION, place, 3, "f" * 32, 0.03)
    store.note(names.TASK_DURATION, place, 3, TRACE, 0.02)
    store.note(names.TASK_DURATION, place, 19, "e" * 32, 5000.0)
    [block] = store.blocks()
    assert {b: (e.trace_id, e.value) for b, e in block.exemplars.items()} == {
        3: (TRACE, 0.02),
        19: ("e" * 32, 5000.0),
    }


def test_exemplars_do_not_disturb_the_numbers_next_to_them(store: Store) -> None:
    first = store.allocate(names.TASK_DURATION, (*LABELS, "success"))
    second = store.allocate(names.TASKS_STARTED, LABELS)
    for bucket in range(len(names.TASK_BUCKETS) + 1):
        store.note(names.TASK_DURATION, first, bucket, TRACE, 1.0)
    store.cells[second] += 1
    assert [sum(block.values) for block in store.blocks()] == [0.0, 1.0]


def test_what_a_killed_child_counted_is_still_there() -> None:
    store = SharedStore.create()
    script = (
        "import os, signal\n"
        "from streaq.telemetry.shared import inherited_store\n"
        "from streaq.telemetry import names\n"
        "s = inherited_store()\n"
        "place = s.allocate(names.TASKS_STARTED, ('shop', 'charge', 'normal'))\n"
        "s.cells[place] += 41\n"
        "s.cells[place] += 1\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, STORE_VARIABLE: f"{store.fd}:{os.getpid()}"},
        pass_fds=(store.fd,),
        check=False,
    )
    assert ran.returncode == -9
    [block] = store.blocks()
    assert (block.labels, block.values) == (LABELS, (42.0,))
    store.close()


def test_a_shared_store_has_no_name_on_any_disk() -> None:
    store = SharedStore.create()
    target = Path(f"/proc/self/fd/{store.fd}").readlink()
    assert "memfd" in str(target) or "deleted" in str(target)
    store.close()


def test_a_store_is_not_taken_over_by_grandchildren(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedStore.create()
    monkeypatch.setenv(STORE_VARIABLE, f"{store.fd}:{os.getpid()}")  # we are not our own child
    shared.inherited_store.cache_clear()
    assert shared.inherited_store() is None
    shared.inherited_store.cache_clear()
    store.close()


def test_a_child_of_another_version_is_shown_as_far_as_it_is_understood(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After an upgrade a child is started again, and the parent is as it was."""
    store = SharedStore.create()
    more_buckets = (*names.TASK_BUCKETS, 3600.0)
    for metric, labels in (
        (INVENTED, LABELS),
        (replace(names.TASKS_RETRIED, labels=("queue",)), ("shop",)),
        (replace(names.TASK_QUEUE_WAIT, buckets=more_buckets), LABELS),
        (names.TASKS_STARTED, LABELS),
    ):
        place = store.allocate(metric, labels)
        store.cells[place] += 3
    for _ in range(2):
        assert list(store.blocks()) == [Block(names.TASKS_STARTED, LABELS, (3.0,), {})]
    fleet = Fleet()
    member = fleet.join()
    member.store.allocate(INVENTED, LABELS)
    fleet.leave(member)
    assert len(caplog.records) == 3
    store.close()


def test_a_series_is_read_once_it_is_known_where_it_ends() -> None:
    """The cells of the next one are taken before that one is listed."""
    store = SharedStore.create()
    place = store.allocate(names.TASKS_STARTED, LABELS)
    store.cells[place] += 1
    end = store._counts[1]
    store._counts[1] = end + 5
    assert list(store.blocks()) == []
    store._counts[1] = end
    assert [block.values for block in store.blocks()] == [(1.0,)]
    other = replace(names.TASK_QUEUE_WAIT, buckets=(*names.TASK_BUCKETS, 3600.0))
    store.allocate(other, LABELS)
    assert len(list(store.blocks())) == 1, "it may have a successor that is not listed yet"
    store.allocate(names.TASKS_RETRIED, (*LABELS, "asked"))
    assert [block.metric.name for block in store.blocks()] == [
        "streaq_tasks_started_total", "streaq_tasks_retried_total",
    ]  # fmt: skip
    store.close()


def test_a_full_store_loses_counts_but_never_a_task() -> None:
    store = SharedStore.create()
    started = store.allocate(names.TASKS_STARTED, LABELS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for i in range(60_000):
            store.allocate(names.TASKS_STARTED, ("shop", f"{'long' * 20}-{i}", "normal"))
    assert [str(w.message) for w in seen] == [
        "streaq has no room for more metric series; lower Telemetry(max_task_names=...)"
    ]
    wasted = store.allocate(names.TASK_QUEUE_WAIT, LABELS)
    store.cells[wasted + 5] += 1
    store.note(names.TASK_QUEUE_WAIT, wasted, 5, TRACE, 0.1)
    store.cells[started] += 1
    assert next(store.blocks()).values == (1.0,)
    store.close()
