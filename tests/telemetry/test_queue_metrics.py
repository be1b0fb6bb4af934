"""A queue's metrics: right, cheap, and honest when Redis is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import anyio
import pytest
import redis

from streaq.broker.inspect import CronSnapshot, PrioritySnapshot, QueueSnapshot
from streaq.engine.health import Health
from streaq.telemetry.queue_metrics import QueueReader
from streaq.telemetry.serve import reader_of
from streaq.telemetry.server import HealthChecks
from tests.support import MakeWorker

SNAPSHOT = QueueSnapshot(
    "shop",
    5_000_000,
    [
        PrioritySnapshot("high", 3, 2, 1, 4, 4_999_000, 90, {"success": 70, "failed": 10}),
        PrioritySnapshot("low", 0, 0, 0, 0, None),
    ],
    [{"id": "w1"}, {"id": "w2"}],
    [
        CronSnapshot("tidy", 4_000_000, 6_000_000, 7, "* * * * *"),
        CronSnapshot("new", None, None, 0, ""),
    ],
)  # fmt: skip


class Source:
    def __init__(self) -> None:
        self.calls = 0
        self.fail: Exception | None = None

    def __call__(self) -> QueueSnapshot:
        self.calls += 1
        if self.fail is not None:
            raise self.fail
        return SNAPSHOT


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.source = Source()
        self.reader = QueueReader(self.source, clock=lambda: self.now)

    def values(self) -> dict[tuple[str, ...], float]:
        return {(b.metric.name, *b.labels): b.values[0] for b in self.reader.blocks()}


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        ([{"crons": ["tidy", "new"]}, {"crons": []}], {"tidy", "new"}),
        ([{"crons": ["new"]}, {"crons": ["new"]}], {"new"}),
        ([{"crons": ["new"], "functions": ["new", "tidy"]}], {"new"}),
        ([{"crons": ["new"]}, {"functions": ["other"]}], {"tidy", "new"}),
        ([], {"tidy", "new"}),
    ],
    ids=[
        "one worker has it",
        "deleted from the code",
        "a plain task now",
        "an older version cannot tell",
        "nobody is there to tell",
    ],
)
def test_a_job_that_was_deleted_from_the_code_is_told_of_no_more(
    workers: list[dict[str, list[str]]], told: set[str]
) -> None:
    reader = QueueReader(lambda: replace(SNAPSHOT, workers=workers))
    jobs = {b.labels[1] for b in reader.blocks() if b.metric.name == "streaq_cron_missed_total"}
    assert jobs == told


def test_every_number_is_told_and_what_is_unknown_is_left_out(bench: Bench) -> None:
    assert bench.values() == {
        ("streaq_queue_workers", "shop"): 2,
        ("streaq_queue_depth", "shop", "high"): 3,
        ("streaq_queue_scheduled", "shop", "high"): 2,
        ("streaq_queue_blocked", "shop", "high"): 1,
        ("streaq_queue_running", "shop", "high"): 4,
        ("streaq_queue_oldest_due_timestamp_seconds", "shop", "high"): 4999,
        ("streaq_queue_enqueued_total", "shop", "high"): 90,
        ("streaq_queue_finished_total", "shop", "high", "success"): 70,
        ("streaq_queue_finished_total", "shop", "high", "failed"): 10,
        ("streaq_queue_enqueued_total", "shop", "low"): 0,
        ("streaq_queue_depth", "shop", "low"): 0,
        ("streaq_queue_scheduled", "shop", "low"): 0,
        ("streaq_queue_blocked", "shop", "low"): 0,
        ("streaq_queue_running", "shop", "low"): 0,
        ("streaq_cron_missed_total", "shop", "tidy"): 7,
        ("streaq_cron_last_success_timestamp_seconds", "shop", "tidy"): 4000,
        ("streaq_cron_next_run_timestamp_seconds", "shop", "tidy"): 6000,
        ("streaq_cron_missed_total", "shop", "new"): 0,
    }


def test_redis_is_asked_once_a_second_at_most(bench: Bench) -> None:
    for _ in range(5):
        bench.values()
        bench.reader.due_age_s()
        bench.reader.failing_s()
    assert bench.source.calls == 1
    bench.now += 1
    bench.values()
    assert bench.source.calls == 2


def test_concurrent_scrapes_share_one_call() -> None:
    entered, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def slow() -> QueueSnapshot:
        calls.append(1)
        entered.set()
        go.wait(5)
        return SNAPSHOT

    reader = QueueReader(slow)
    threads = [threading.Thread(target=reader.read) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.wait(5)
    go.set()
    for thread in threads:
        thread.join()
    assert calls == [1]


@pytest.fixture
def hanging() -> Iterator[Callable[[], QueueSnapshot]]:
    """A Redis that takes what it is sent and does not answer."""
    over = threading.Event()

    def never() -> QueueSnapshot:
        over.wait(60)
        return SNAPSHOT

    yield never
    over.set()


def test_a_question_that_is_overdue_is_waited_for_no_more(
    hanging: Callable[[], QueueSnapshot],
) -> None:
    moments = iter([100.0])
    reader = QueueReader(hanging, patience_s=5, clock=lambda: next(moments, 105.0))
    began = time.monotonic()
    for _ in range(3):
        assert reader.read() is None
    assert reader.failing_s() == 5
    assert time.monotonic() - began < 2.5


def test_a_late_reader_waits_for_what_is_left_of_the_patience(bench: Bench) -> None:
    asked, go = threading.Event(), threading.Event()

    def slow() -> QueueSnapshot:
        asked.set()
        go.wait(60)
        return SNAPSHOT

    reader = QueueReader(slow, patience_s=60, clock=lambda: bench.now)
    first = threading.Thread(target=reader.read)
    first.start()
    assert asked.wait(10)
    bench.now += 59.9
    assert reader.read() is None
    bench.now -= 59.9
    go.set()
    assert reader.read() is SNAPSHOT, "the answer is used when it comes"
    first.join()


def test_a_probe_waits_once_however_often_it_reads(hanging: Callable[[], QueueSnapshot]) -> None:
    health = Health()
    health.ready(1)
    checks = HealthChecks(lambda: [health], QueueReader(hanging, patience_s=0.5))
    began = time.monotonic()
    assert checks.readyz() == checks.livez() == []
    assert 0.4 < time.monotonic() - began < 0.8


def test_age_of_the_oldest_due_task(bench: Bench) -> None:
    assert bench.reader.due_age_s() == 1
    assert bench.reader.due_age_s(["high", "low"]) == 1
    assert bench.reader.due_age_s(["low"]) is None


def test_without_redis_there_are_no_numbers_and_it_is_known_since_when(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.reader.failing_s() == 0
    bench.source.fail = redis.ConnectionError("redis://:hunter2@db refused")
    bench.now += 1
    assert bench.values() == {}
    assert bench.reader.due_age_s() is None
    bench.now += 10
    assert bench.reader.failing_s() == 10
    assert [r.getMessage() for r in caplog.records] == [
        "the queue's metrics cannot be read: ConnectionError"
    ]
    bench.source.fail = None
    bench.now += 1
    assert bench.reader.failing_s() == 0
    assert bench.values()["streaq_queue_workers", "shop"] == 2


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.leaves("task:", "due:")
@pytest.mark.anyio
async def test_a_scrape_is_one_call_whatever_the_number_of_tasks(
    make_worker: MakeWorker, redis_client: redis.Redis
) -> None:
    worker = make_worker(priorities=["low", "high"])

    @worker.task
    async def noop() -> None: ...

    def commands_of_a_scrape() -> int:
        reader = reader_of(worker)
        reader.read()  # connects, and loads the script
        redis_client.config_resetstat()
        fresh = QueueReader(reader._source)
        assert fresh.read() is not None
        stats = redis_client.info("commandstats")
        return sum(
            s["calls"] for name, s in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval")
        )

    async with worker:
        for count in (1, 500):
            await worker.enqueue_many([noop.enqueue() for _ in range(count)])
            await worker.enqueue_many([noop.enqueue().start(delay=60) for _ in range(count)])
            assert await anyio.to_thread.run_sync(commands_of_a_scrape) == 1
        inner = await anyio.to_thread.run_sync(inner_commands(worker, redis_client))
    assert "cmdstat_scan" not in inner
    assert not {name for name in inner if name.endswith(("keys", "smismember"))} - {"cmdstat_hkeys"}
    assert sum(s["calls"] for s in inner.values()) < 60, "the script reads nothing task by task"


def inner_commands(worker: object, client: redis.Redis) -> Callable[[], dict[str, dict[str, int]]]:
    def run() -> dict[str, dict[str, int]]:
        reader = reader_of(worker)  # type: ignore[arg-type]
        reader.read()
        client.config_resetstat()
        QueueReader(reader._source).read()
        return client.info("commandstats")

    return run
