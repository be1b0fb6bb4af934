"""What each event counts."""

from __future__ import annotations

import logging

import pytest

from streaq.hooks import (
    Attempt,
    Cron,
    Due,
    Ending,
    Fence,
    Reclaim,
    RedisCall,
    Starts,
    Successes,
    WorkerEvent,
)
from streaq.telemetry import names
from streaq.telemetry.cells import LocalStore
from streaq.telemetry.metrics import MetricsHook
from streaq.telemetry.names import Metric
from tests.support import instructions
from tests.telemetry.events import SAMPLED, UNSAMPLED, attempt, ending, enqueue, starts, successes


class Bench:
    """A hook, and what it counted."""

    def __init__(self, **options: int) -> None:
        self.store = LocalStore()
        self.hook = MetricsHook(self.store, "shop", **options)

    def start(self, *attempts: Attempt) -> None:
        """As the engine tells it."""
        self.hook.on_starts(starts(*attempts))

    def succeed(self, *endings: Ending) -> None:
        """The same; one by one as well, as long as anybody watches."""
        for e in endings:
            self.hook.on_finish(e)
        self.hook.on_successes(successes(*endings))

    def series(self, metric: Metric) -> dict[tuple[str, ...], tuple[float, ...]]:
        return {b.labels: b.values for b in self.store.blocks() if b.metric is metric}

    def value(self, metric: Metric, *labels: str) -> float:
        """Of a counter or gauge; of a histogram, the number of observations. 0 when not there."""
        values = self.series(metric).get(("shop", *labels), (0.0,))
        return sum(values[:-1]) if metric.buckets else values[0]

    def all_sums(self) -> dict[str, float]:
        """Every counter that is not 0, summed over its labels."""
        sums: dict[str, float] = {}
        for block in self.store.blocks():
            if block.metric.type == "counter" and any(block.values):
                sums[block.metric.name] = sums.get(block.metric.name, 0) + sum(block.values)
        return sums


@pytest.fixture
def bench() -> Bench:
    return Bench()


ROW = ("charge", "normal")


@pytest.mark.parametrize("kind", ["immediate", "delayed", "dependent"])
def test_enqueued_by_kind(bench: Bench, kind: str) -> None:
    bench.hook.on_enqueued(enqueue(kind=kind))
    assert bench.value(names.TASKS_ENQUEUED, *ROW, kind) == 1


def test_a_schedule_counts_when_it_fires_not_when_it_is_made(bench: Bench) -> None:
    bench.hook.on_enqueued(enqueue(kind="cron"))
    assert bench.all_sums() == {}
    registered = Cron("shop", "charge", "", 0, 2_000, 0, 0.0, "normal")
    bench.hook.on_cron(registered)
    assert bench.all_sums() == {}
    bench.hook.on_cron(registered._replace(fired_ms=1_000, lag_s=0.004))
    assert bench.value(names.TASKS_ENQUEUED, *ROW, "cron") == 1
    assert bench.value(names.SCHEDULE_LAG, *ROW) == 1


def test_a_task_that_succeeds(bench: Bench) -> None:
    a = attempt(started_ms=1_000_250)
    bench.start(a)
    assert bench.value(names.TASKS_STARTED, *ROW) == 1
    assert bench.value(names.TASKS_RUNNING, *ROW) == 1
    bench.succeed(ending(a, duration_s=0.03))
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0
    assert bench.all_sums() == {"streaq_tasks_started_total": 1, "streaq_tasks_finished_total": 1}
    assert bench.value(names.TASKS_FINISHED, *ROW, "success") == 1
    [wait] = bench.series(names.TASK_QUEUE_WAIT).values()
    assert wait[names.TASK_BUCKETS.index(0.25)] == 1
    assert wait[-1] == 0.25
    [duration] = bench.series(names.TASK_DURATION).values()
    assert duration[names.TASK_BUCKETS.index(0.05)] == 1
    assert duration[-1] == 0.03
    [to_end] = bench.series(names.TASK_END_TO_END).values()
    assert to_end[-1] == pytest.approx(0.28)


def test_many_at_once_are_counted_one_by_one(bench: Bench) -> None:
    """The same numbers, however the attempts are put together."""
    attempts = [attempt(started_ms=1_000_000 + wait) for wait in (0, 1, 1, 40, 1_500)]
    endings = [ending(a, duration_s=0.001 * 7**n) for n, a in enumerate(attempts)]
    bench.start(*attempts)
    bench.succeed(*endings)
    apart = Bench()
    for a in attempts:
        apart.start(a)
    for e in endings:
        apart.succeed(e)
    for together, single in zip(bench.store.blocks(), apart.store.blocks(), strict=True):
        assert together[:2] == single[:2]
        assert together.values == pytest.approx(single.values), together.metric.name
    assert bench.value(names.TASK_DURATION, *ROW, "success") == 5
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0


def test_arguments_that_cannot_be_decoded(bench: Bench) -> None:
    """The try was counted, so the attempt has begun; but there was no body that took any time."""
    a = attempt()
    bench.start(a)
    bench.hook.on_refuse(ending(a, "refused", "undecodable", ValueError()))
    assert bench.value(names.TASKS_STARTED, *ROW) == 1
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0
    assert bench.value(names.TASKS_FINISHED, *ROW, "failed") == 1
    assert bench.series(names.TASK_DURATION) == {}


def test_waiting_excludes_an_intended_delay(bench: Bench) -> None:
    a = attempt(kind="delayed", due_ms=1_060_000, started_ms=1_060_002)
    bench.start(a)
    bench.succeed(ending(a, duration_s=0.001))
    [wait] = bench.series(names.TASK_QUEUE_WAIT).values()
    [to_end] = bench.series(names.TASK_END_TO_END).values()
    assert (wait[-1], to_end[-1]) == (0.002, 0.003)


def test_end_to_end_of_a_retry_counts_from_the_first_due_time(bench: Bench) -> None:
    a = attempt(
        kind="retry", due_ms=1_070_000, started_ms=1_070_000, try_number=2, first_due_ms=1_060_000
    )
    bench.start(a)
    bench.succeed(ending(a, duration_s=0))
    [to_end] = bench.series(names.TASK_END_TO_END).values()
    assert to_end[-1] == 10


def test_an_observation_beyond_the_last_bucket(bench: Bench) -> None:
    a = attempt(started_ms=9_000_000)
    bench.start(a)
    [wait] = bench.series(names.TASK_QUEUE_WAIT).values()
    assert wait[len(names.TASK_BUCKETS)] == 1


def test_a_task_that_fails(bench: Bench) -> None:
    a = attempt()
    bench.start(a)
    bench.hook.on_fail(ending(a, "failed", "error", KeyError("x")))
    assert bench.value(names.TASKS_FINISHED, *ROW, "failed") == 1
    assert bench.value(names.TASKS_FAILED, *ROW, "KeyError") == 1
    assert bench.value(names.TASK_DURATION, *ROW, "failed") == 1


def test_a_retry_does_not_end_the_task(bench: Bench) -> None:
    a = attempt()
    bench.start(a)
    bench.hook.on_retry(ending(a, "retried", "asked", ValueError()))
    assert bench.value(names.TASKS_RETRIED, *ROW, "asked") == 1
    assert bench.value(names.TASK_DURATION, *ROW, "retried") == 1
    assert bench.series(names.TASKS_FINISHED) == {}
    assert bench.value(names.TASK_END_TO_END, *ROW) == 0


def test_an_attempt_handed_back_runs_no_more(bench: Bench) -> None:
    a = attempt()
    bench.start(a)
    bench.hook.on_return(ending(a, "returned", "shutdown"))
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0
    assert bench.value(names.TASK_DURATION, *ROW, "returned") == 1
    assert bench.series(names.TASKS_FINISHED) == {}


def test_aborted_while_running_and_before(bench: Bench) -> None:
    a = attempt()
    bench.start(a)
    bench.hook.on_abort(ending(a, "aborted", "user"))
    bench.hook.on_abort(ending(attempt(started_ms=0), "aborted", "user"))
    assert bench.value(names.TASKS_FINISHED, *ROW, "aborted") == 2
    assert bench.value(names.TASK_DURATION, *ROW, "aborted") == 1
    assert bench.value(names.TASK_END_TO_END, *ROW) == 1
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0


@pytest.mark.parametrize("reason", names.REFUSALS)
def test_refusals_end_the_task(bench: Bench, reason: str) -> None:
    bench.hook.on_refuse(ending(attempt(started_ms=0), "refused", reason, ValueError()))
    status = "expired" if reason == "expired" else "failed"
    assert bench.value(names.TASKS_REFUSED, *ROW, reason) == 1
    assert bench.value(names.TASKS_FINISHED, *ROW, status) == 1
    assert bench.value(names.TASKS_FAILED, *ROW, "ValueError") == (status == "failed")
    assert bench.series(names.TASK_DURATION) == {}


def test_a_skipped_fail_over_succeeds_without_an_attempt(bench: Bench) -> None:
    bench.hook.on_finish(ending(attempt(started_ms=0), "success", "skipped"))
    assert bench.value(names.TASKS_FINISHED, *ROW, "success") == 1
    assert bench.series(names.TASK_DURATION) == {}
    assert bench.value(names.TASK_END_TO_END, *ROW) == 0


def test_a_fenced_attempt_ends_nothing_but_runs_no_more(bench: Bench) -> None:
    a = attempt()
    bench.start(a)
    bench.hook.on_fenced(Fence(ending(a)))
    assert bench.value(names.TASKS_FENCED, *ROW) == 1
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0
    assert bench.series(names.TASKS_FINISHED) == {}


def test_a_worker_that_stopped_runs_nothing(bench: Bench) -> None:
    """It gave up on Redis: the ends of what it ran are told to nobody."""
    bench.start(attempt(), attempt())
    bench.hook.on_worker_stop(WorkerEvent("shop", "w1", 4, (), (), "", "asyncio"))
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0


def test_a_fenced_attempt_that_could_not_be_decoded(bench: Bench) -> None:
    a = attempt()
    bench.start(a)
    bench.hook.on_fenced(Fence(ending(a, "refused", "undecodable", ValueError())))
    assert bench.value(names.TASKS_FENCED, *ROW) == 1
    assert bench.value(names.TASKS_RUNNING, *ROW) == 0
    assert bench.series(names.TASK_DURATION) == {}


def test_a_reclaim(bench: Bench) -> None:
    bench.hook.on_reclaim(Reclaim(attempt(), "w0"))
    assert bench.value(names.TASKS_RECLAIMED, *ROW) == 1


def test_due_tasks_are_observed_by_their_lateness(bench: Bench) -> None:
    bench.hook.on_due(Due("shop", "charge", "id", "normal", 1_000, 0.7))
    [lag] = bench.series(names.SCHEDULE_LAG).values()
    assert lag[-1] == 0.7


def test_concurrency_goes_when_the_worker_stops(bench: Bench) -> None:
    event = WorkerEvent("shop", "w1", 32, ("normal",), (), "", "asyncio")
    bench.hook.on_worker_start(event)
    assert bench.value(names.WORKER_CONCURRENCY) == 32
    bench.hook.on_worker_stop(event)
    assert bench.value(names.WORKER_CONCURRENCY) == 0
    bench.hook.on_worker_start(event)
    assert bench.series(names.WORKER_CONCURRENCY) == {("shop",): (32.0,)}


def test_redis_calls_and_errors(bench: Bench) -> None:
    bench.hook.on_redis_call(RedisCall("exchange", 0.0007, ""))
    bench.hook.on_redis_call(RedisCall("exchange", 2.0, "ConnectionError"))
    [call] = bench.series(names.REDIS_CALL_DURATION).values()
    assert call[names.REDIS_BUCKETS.index(0.001)] == 1
    assert call[names.REDIS_BUCKETS.index(2.5)] == 1
    assert call[-1] == pytest.approx(2.0007)
    assert bench.series(names.REDIS_ERRORS) == {("exchange",): (1.0,)}


def test_names_beyond_the_cap_share_one_series(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(max_task_names=2, max_exception_names=1)
    for name in ("a", "b", "c", "d", "a"):
        bench.hook.on_enqueued(enqueue(name))
    tasks = {labels[1]: values[0] for labels, values in bench.series(names.TASKS_ENQUEUED).items()}
    assert tasks == {"a": 2, "b": 1, names.OTHER: 2}
    for error in (KeyError(), ValueError(), OSError()):
        bench.hook.on_fail(ending(attempt("a"), "failed", "error", error))
    failed = {labels[3]: values[0] for labels, values in bench.series(names.TASKS_FAILED).items()}
    assert failed == {"KeyError": 1, names.OTHER: 2}
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "max_task_names" in warnings[0]


def test_rows_of_capped_names_do_not_pile_up() -> None:
    bench = Bench(max_task_names=1)
    for i in range(1000):
        bench.hook.on_enqueued(enqueue(f"task-{i}"))
    assert len(bench.hook._rows) == 2
    assert len(list(bench.store.blocks())) < 20


@pytest.mark.parametrize(("trace", "kept"), [(SAMPLED, True), (UNSAMPLED, False), ("", False)])
def test_exemplars_name_the_trace_when_it_is_sampled(bench: Bench, trace: str, kept: bool) -> None:
    a = attempt(trace=trace)
    bench.start(a)
    bench.succeed(ending(a))
    found = {b.metric.name: b.exemplars for b in bench.store.blocks() if b.exemplars}
    if not kept:
        assert found == {}
        return
    assert set(found) == {m.name for m in (
        names.TASK_QUEUE_WAIT, names.TASK_DURATION, names.TASK_END_TO_END,
    )}  # fmt: skip
    [exemplar] = found[names.TASK_DURATION.name].values()
    assert (exemplar.trace_id, exemplar.value) == ("a" * 32, 0.03)


def test_an_exemplar_stays_for_a_second(bench: Bench) -> None:
    """And an attempt that is not sampled takes nobody's place."""

    def run(trace: str, after_ms: int) -> str:
        a = attempt(trace=trace)
        bench.start(a)
        end = ending(a)
        bench.succeed(end._replace(finished_ms=end.finished_ms + after_ms))
        [block] = [b for b in bench.store.blocks() if b.metric is names.TASK_DURATION]
        return next((e.trace_id for e in block.exemplars.values()), "")

    other = SAMPLED.replace("a" * 32, "f" * 32)
    assert run(UNSAMPLED, 0) == ""
    assert run(SAMPLED, 0) == "a" * 32
    assert run(other, 999) == "a" * 32
    assert run(UNSAMPLED, 1000) == "a" * 32
    assert run(other, 1000) == "f" * 32


def test_places_are_looked_up_once_per_name_not_per_task(bench: Bench) -> None:
    calls: list[str] = []
    allocate = bench.store.allocate
    bench.store.allocate = lambda metric, labels: (
        calls.append(metric.name)
        or allocate(  # type: ignore[method-assign]
            metric, labels
        )
    )
    for _ in range(100):
        a = attempt()
        bench.hook.on_enqueued(enqueue())
        bench.start(a)
        bench.succeed(ending(a))
    assert len(calls) == len(set(calls)) == 7


def test_a_task_costs_little_and_many_alike_no_more_than_one(bench: Bench) -> None:
    a = attempt()
    one, many = (starts(a), successes(ending(a))), (starts(*[a] * 20), successes(*[ending(a)] * 20))

    def count(told: tuple[Starts, Successes]) -> int:
        bench.hook.on_starts(told[0])
        return instructions(
            lambda: (bench.hook.on_starts(told[0]), bench.hook.on_successes(told[1]))
        )

    count(one)  # finds the places
    assert count(one) <= 450, "300 with Python 3.11"
    assert count(many) <= count(one) + 20
