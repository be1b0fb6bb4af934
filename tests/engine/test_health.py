"""The verdict on a worker: unwell when it must be, well when it is merely idle or busy."""

from __future__ import annotations

import pytest

from streaq.engine.health import LAG_WINDOW_S, SIZE, Health, Limits

LIMITS = Limits(loop_s=10, redis_s=20, stall_s=30)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A started worker's health, and its clock."""

    def __init__(self, concurrency: int = 4) -> None:
        self.clock = Clock()
        self.health = Health(clock=self.clock)
        self.health.ready(concurrency)

    def live(self, seconds: float) -> None:
        """Time passes, and the loop beats."""
        for _ in range(int(seconds * 2)):
            self.clock.now += 0.5
            self.health.beat(0.5)

    def problems(self, due_age_s: float | None = None) -> list[str]:
        return self.health.problems(LIMITS, due_age_s)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_idle_worker_is_well_for_ever(bench: Bench) -> None:
    bench.live(3600)
    assert bench.problems() == []


def test_a_blocked_loop(bench: Bench) -> None:
    bench.live(5)
    bench.clock.now += 9
    assert bench.problems() == []
    bench.clock.now += 2
    assert bench.problems() == ["the event loop has not run for 11.0 s"]
    bench.health.beat(0.5)
    assert bench.problems() == []


def test_redis_gone_for_too_long(bench: Bench) -> None:
    bench.health.redis_lost()
    bench.live(15)
    bench.health.redis_lost()  # again: the first moment counts
    assert bench.problems() == []
    bench.live(6)
    assert bench.problems() == ["Redis has been out of reach for 21.0 s"]
    bench.health.redis_restored()
    assert bench.problems() == []


def test_a_stuck_pump_with_due_work(bench: Bench) -> None:
    bench.live(31)
    assert bench.problems(due_age_s=31) == [
        "work has been due for 31.0 s and this worker takes none"
    ]


def test_work_that_has_just_become_due_is_no_stall(bench: Bench) -> None:
    bench.live(600)
    assert bench.problems(due_age_s=2) == []


def test_a_pump_that_polls_or_starts_is_not_stuck(bench: Bench) -> None:
    bench.live(31)
    bench.health.polled()
    assert bench.problems(due_age_s=100) == []
    bench.live(29)
    bench.health.started()
    bench.live(29)
    assert bench.problems(due_age_s=100) == []


def test_a_worker_full_of_long_tasks_is_well(bench: Bench) -> None:
    bench.health.started()
    bench.health.holds(4, 1_000)
    bench.live(3600)
    assert bench.problems(due_age_s=3600) == []
    bench.health.holds(3, 1_000)
    bench.live(31)
    assert bench.problems(due_age_s=3600) != []


@pytest.mark.parametrize("stop", ["stopping", "stopped"])
def test_a_stopping_worker_is_not_stuck(bench: Bench, stop: str) -> None:
    getattr(bench.health, stop)()
    bench.live(100)
    assert bench.problems(due_age_s=100) == []


def test_before_the_start_nothing_is_wrong_but_it_is_not_ready() -> None:
    health = Health()
    assert health.problems(LIMITS, 100) == []
    assert health.unready() == ["the worker has not started"]
    assert (health.is_started, health.is_ready) == (False, False)


def test_ready_until_it_stops(bench: Bench) -> None:
    assert bench.health.unready() == []
    bench.health.redis_lost()
    assert bench.health.unready() == ["Redis is out of reach"]
    bench.health.stopping()
    assert bench.health.unready() == ["the worker is shutting down"]
    assert bench.health.is_started
    bench.health.stopped()
    assert bench.health.unready() == ["the worker has not started"]


def test_lag_is_the_worst_of_the_last_minute(bench: Bench) -> None:
    bench.live(2)
    assert bench.health.lag_s == 0
    bench.clock.now += 3.5
    assert bench.health.lag_s == 3, "it shows before the next beat"
    bench.health.beat(0.5)
    assert bench.health.lag_s == 3
    bench.live(LAG_WINDOW_S - 5)
    assert bench.health.lag_s == 3
    bench.live(LAG_WINDOW_S * 2 + 2)
    assert bench.health.lag_s == 0


def test_it_can_move_to_other_cells(bench: Bench) -> None:
    cells = [0.0] * (SIZE + 5)
    bench.health.redis_lost()
    bench.health.keep_in(cells)
    judge = Health(cells, clock=bench.clock)
    bench.live(21)
    assert judge.problems(LIMITS, None) == bench.problems() != []
    bench.health.redis_restored()
    assert judge.problems(LIMITS, None) == []
    assert cells[SIZE:] == [0.0] * 5
