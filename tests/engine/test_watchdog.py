"""A loop that stands still is reported by name and line, from outside."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest

from streaq.engine.health import Health
from streaq.engine.watchdog import Watchdog, code_of, describe, stack_of
from streaq.hooks import LoopBlocked

HERE = __file__


def hog(until: threading.Event) -> None:
    until.wait(10)


def other() -> None: ...


def logged(f: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(f)
    def inner(*args: Any) -> Any:
        return f(*args)

    return inner


class Loop:
    """A thread that plays the event loop: it beats until it is made to hang."""

    def __init__(self, **options: Any) -> None:
        self.reports: queue.Queue[LoopBlocked] = queue.Queue()
        self.work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.health = Health()
        self.dog = Watchdog(
            self.health,
            queue="shop",
            worker_id="w1",
            idle_timeout_s=0.4,
            emit=self.reports.put,
            **{"running": lambda: ["hog", "other"], **options},
        )
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.dog.start()
        self.health.ready(1)
        while True:
            self.dog.beat()
            try:
                task = self.work.get(timeout=self.dog.interval_s)
            except queue.Empty:
                continue
            if task is None:
                return
            task()

    def close(self) -> None:
        self.dog.stop()
        self.work.put(None)
        self.thread.join()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(function_of={"hog": hog, "other": other}.__getitem__)
    yield made
    made.close()


def test_a_blocked_loop_is_reported_with_line_and_task(loop: Loop) -> None:
    free = threading.Event()
    loop.work.put(lambda: hog(free))
    report = loop.reports.get(timeout=5)
    free.set()
    assert (report.queue, report.worker_id, report.tasks) == ("shop", "w1", ("hog",))
    assert report.where.startswith(f"{HERE}:{code_of(hog).co_firstlineno + 1} in hog")  # type: ignore[union-attr]
    assert "threading.py" in report.where
    assert 0.1 <= report.blocked_s < 0.4, "before the lease runs out"


def test_one_block_is_told_once_until_it_has_doubled(loop: Loop) -> None:
    free = threading.Event()
    loop.work.put(lambda: hog(free))
    first = loop.reports.get(timeout=5)
    second = loop.reports.get(timeout=5)
    free.set()
    assert second.blocked_s >= first.blocked_s * 2


def test_each_block_is_told(loop: Loop) -> None:
    for _ in range(2):
        free = threading.Event()
        loop.work.put(lambda free=free: hog(free))
        loop.reports.get(timeout=5)
        free.set()
        while loop.health.silent_s >= loop.dog.limit_s:
            time.sleep(0.01)
        while not loop.reports.empty():
            loop.reports.get()


def test_a_loop_that_beats_is_not_reported(loop: Loop) -> None:
    with pytest.raises(queue.Empty):
        loop.reports.get(timeout=1)


def test_without_functions_all_running_tasks_are_named() -> None:
    loop = Loop()
    free = threading.Event()
    loop.work.put(lambda: hog(free))
    report = loop.reports.get(timeout=5)
    free.set()
    assert report.tasks == ("hog", "other")
    loop.close()


def test_the_thread_ends_when_told() -> None:
    loop = Loop()
    thread = loop.dog._thread
    assert thread is not None
    loop.close()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(("timeout_s", "interval_s"), [(60, 0.5), (2, 0.125)])
def test_it_speaks_up_well_before_the_lease_ends(timeout_s: float, interval_s: float) -> None:
    dog = Watchdog(
        Health(), queue="q", worker_id="w", idle_timeout_s=timeout_s, emit=print, running=list
    )
    assert dog.limit_s == timeout_s / 4
    assert dog.interval_s == interval_s


def test_the_code_behind_decorators() -> None:
    assert code_of(logged(logged(other))) is other.__code__
    assert code_of(object()) is None


def test_a_thread_that_is_gone_has_no_stack() -> None:
    assert stack_of(-1) == []
    assert describe([]) == "unknown"
