"""A real Prometheus scrapes real workers; every metric is there, and says what really happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import psutil
import pytest
import redis

from streaq import TaskStatus
from streaq.telemetry import names
from tests.servers import free_port
from tests.telemetry.plant import (
    Plant,
    Prometheus,
    documented_balance,
    need,
    process,
    prometheus,
    wait_for,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Prometheus asks for OpenMetrics, so it gets exemplars when spans are sampled; nobody takes them.
TRACED = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    with ExitStack() as stack:
        made = Plant(stack, tmp_path, **TRACED)
        wait_for(lambda: made.get("/readyz")[0] == 200, 30)
        yield made


class Scraped(NamedTuple):
    """A plant, and the Prometheus that scrapes it."""

    plant: Plant
    ask: Prometheus


@pytest.fixture
def scraped(plant: Plant, tmp_path: Path) -> Iterator[Scraped]:
    need("prometheus")
    with prometheus(tmp_path, plant.ports) as ask:
        yield Scraped(plant, ask)


async def workload(plant: Plant) -> None:
    """Every way a task can go, a known number of times; only cron goes on by itself."""
    worker = plant.worker
    call = worker.enqueue_unsafe
    async with worker:
        tasks = [call("ok", i) for i in range(100)]
        await worker.enqueue_many(tasks)
        tasks += [await call("ok").start(delay=0.1) for _ in range(3)]
        tasks += [await call("fails") for _ in range(4)]
        tasks += [await call("retries") for _ in range(5)]
        slow = [await call("times_out") for _ in range(2)]
        tasks += [await call("nobody").start(priority="low")]
        first = await call("ok").start(delay=0.2)
        tasks += [first, await call("ok").start(after=first.id)]
        # Neither body is run: what it waits for fails, and what it is given can't be read.
        tasks += [*slow, await call("plus", 1).start(after=slow[0].id)]
        tasks.append(await call("plus", Unreadable()))
        # An expiry travels with the task, so whoever enqueues must know of it.
        expires = worker.registry.get("expires") or worker.task(name="expires", expire=0.001)(_body)
        tasks.append(await expires.enqueue().start(after=first.id))
        await finished(tasks)
        endless = await call("endless")
        await status_is(endless, TaskStatus.RUNNING)
        assert await endless.abort(10)
        late = call("ok").start(delay=3600)
        await late
        assert await late.abort(5)
        sole = await call("sole", 0.5)
        await status_is(sole, TaskStatus.RUNNING)
        clash = await call("sole", 0.0)
        await finished([sole, clash])


class Unreadable:
    """Goes into the queue, and never comes out again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


async def _body() -> None: ...


async def finished(tasks: list[Any]) -> None:
    for task in tasks:
        await task.result(30)


async def status_is(task: Any, status: TaskStatus) -> None:
    with anyio.fail_after(10):
        while await task.status() is not status:  # noqa: ASYNC110 - of another thread or process
            await anyio.sleep(0.01)


async def test_every_metric_says_what_happened(scraped: Scraped) -> None:
    plant, ask = scraped
    await workload(plant)
    async with plant.worker:
        await crash(plant)
        await freeze(plant)
        await wait_until_settled(ask)
    assert_counters(ask)
    assert_histograms(ask)
    assert_queue(ask)
    assert_cron(ask)
    assert_redis_and_the_build(ask)
    async with plant.worker:
        standing = await stand(plant)
        await anyio.sleep(1.5)  # what is read from Redis is a second old at most; two scrapes more
        assert_what_stands(ask)
        assert_every_metric_is_there(ask)
        for task in standing:
            await task.abort(10)
        await anyio.sleep(1.5)
    assert_conservation(ask)
    await trouble(plant, ask)
    assert_exemplars(ask, {f"{s.context.trace_id:032x}" for s in plant.seen.spans if s.context})


async def crash(plant: Plant) -> None:
    """A worker process is killed by its task; another takes over, a third is started."""
    before = {child.pid for child in plant.children()}
    result = await (await plant.worker.enqueue_unsafe("dies")).result(30)
    assert (result.success, result.tries) == (True, 2)
    await anyio.to_thread.run_sync(
        wait_for,
        lambda: len(plant.children()) == 2 and {c.pid for c in plant.children()} != before,
        40,
    )
    await anyio.to_thread.run_sync(wait_for, lambda: plant.get("/readyz")[0] == 200, 30)


async def freeze(plant: Plant) -> None:
    """A worker process stands still for longer than its lease, then goes on: it is fenced."""
    task = await plant.worker.enqueue_unsafe("freeze")
    result = await task.result(30)
    assert (result.success, result.tries) == (True, 2)
    for child in plant.children():
        if child.status() == psutil.STATUS_STOPPED:
            child.send_signal(signal.SIGCONT)


async def trouble(plant: Plant, ask: Prometheus) -> None:
    """Redis lets nobody in for a while; then all workers stand still while a schedule fires."""
    failed = lambda: ask.sum("streaq_redis_errors_total", by="operation")  # noqa: E731
    with redis.Redis.from_url(plant.server.url, single_connection_client=True) as client:
        client.config_set("requirepass", "changed")
        client.client_kill_filter(_type="normal", skipme=True)
        try:
            assert await anyio.to_thread.run_sync(wait_for, failed, 20)
        finally:
            client.config_set("requirepass", "")
    await anyio.to_thread.run_sync(wait_for, lambda: plant.get("/readyz")[0] == 200, 30)
    children = plant.children()
    for child in children:
        child.send_signal(signal.SIGSTOP)
    try:
        await anyio.sleep(3.5)
    finally:
        for child in children:
            child.send_signal(signal.SIGCONT)
    missed = lambda: ask.rows("max(streaq_cron_missed_total)")[0][1]  # noqa: E731
    assert 2 <= await anyio.to_thread.run_sync(wait_for, missed, 20) <= 10


async def wait_until_settled(ask: Prometheus) -> None:
    def settled() -> bool:
        return bool(ask.sum("streaq_tasks_fenced_total"))

    await anyio.to_thread.run_sync(wait_for, settled, 30)
    await anyio.sleep(1)  # two scrapes more


async def stand(plant: Plant) -> list[Any]:
    """Every slot taken, three tasks that wait for one, two for tomorrow, one for one of those."""
    call = plant.worker.enqueue_unsafe
    running = [await call("endless") for _ in range(8)]
    for task in running:
        await status_is(task, TaskStatus.RUNNING)
    waiting = [await call("ok").start(priority="low") for _ in range(3)]
    later = [await call("ok").start(delay=86_400, priority="low") for _ in range(2)]
    blocked = await call("ok").start(after=later[0].id, priority="low")
    return [blocked, *later, *waiting, *running]


def assert_what_stands(ask: Prometheus) -> None:
    def queue(metric: str, priority: str) -> float:
        return ask.rows(f'max(streaq_queue_{metric}{{priority="{priority}"}})')[0][1]

    now = time.time()
    assert queue("running", "normal") == ask.sum("streaq_tasks_running", task="endless") == 8
    assert (queue("depth", "low"), queue("running", "low")) == (3, 0)
    assert (queue("scheduled", "low"), queue("blocked", "low")) == (2, 1)
    assert 0 < now - queue("oldest_due_timestamp_seconds", "low") < 10
    oldest = "streaq_worker_oldest_running_start_timestamp_seconds"
    assert 0 < now - ask.rows(f"max({oldest})")[0][1] < 10
    # Beside those, low had the one task that nobody knows: it came, and it failed.
    assert queue("enqueued_total", "low") == 1 + 3 + 2 + 1
    finished = ask.rows('max by (status) (streaq_queue_finished_total{priority="low"})')
    assert {row["status"]: value for row, value in finished if value} == {"failed": 1}


def assert_redis_and_the_build(ask: Prometheus) -> None:
    assert ask.sum("streaq_redis_errors_total") == 0
    calls = ask.sum("streaq_redis_call_duration_seconds_count", by="operation")
    assert {"exchange", "publish"} <= set(calls)
    buckets = ask.rows('sum(streaq_redis_call_duration_seconds_bucket{le="+Inf"})')
    assert sum(calls.values()) == pytest.approx(buckets[0][1], rel=0.05)  # workers go on calling
    assert {value for _, value in ask.rows("streaq_build_info")} == {1}
    assert 0 <= ask.rows("max(streaq_event_loop_lag_seconds)")[0][1] < 60


NO_CRON = 'task!="ticks"'


def totals(ask: Prometheus, metric: str, by: str) -> dict[str, float]:
    rows = ask.rows(f"sum by ({by}) ({metric}{{{NO_CRON}}})")
    return {row[by]: value for row, value in rows if value}


def assert_counters(ask: Prometheus) -> None:
    ok = 100 + 3 + 1 + 1
    enqueued = totals(ask, "streaq_tasks_enqueued_total", "task")
    assert enqueued == {
        "ok": ok + 1, "fails": 4, "retries": 5, "times_out": 2, "nobody": 1, "endless": 1,
        "sole": 2, "dies": 1, "freeze": 1, "plus": 2, "expires": 1,
    }  # fmt: skip
    by_kind = totals(ask, "streaq_tasks_enqueued_total", "kind")
    assert (by_kind["delayed"], by_kind["dependent"]) == (5, 3)
    assert sum(by_kind.values()) == sum(enqueued.values())
    # The killed process began an attempt that nobody saw end; it was counted all the same.
    assert totals(ask, "streaq_tasks_started_total", "task") == {
        "ok": ok, "fails": 4, "retries": 15, "times_out": 2, "endless": 1, "sole": 1, "dies": 2,
        "freeze": 2, "plus": 1,
    }  # fmt: skip
    assert totals(ask, "streaq_tasks_finished_total", "status") == {
        "success": ok + 5 + 1 + 2, "failed": 4 + 2 + 1 + 1 + 2, "aborted": 2, "expired": 1,
    }  # fmt: skip
    assert totals(ask, "streaq_tasks_retried_total", "reason") == {"asked": 10}
    failed = totals(ask, "streaq_tasks_failed_total", "exception")
    assert failed == {"KeyError": 4, "TimeoutError": 2, "StreaqError": 4}
    assert totals(ask, "streaq_tasks_refused_total", "reason") == {
        "unknown": 1, "unique": 1, "dependency": 1, "undecodable": 1, "expired": 1,
    }  # fmt: skip
    assert totals(ask, "streaq_tasks_reclaimed_total", "task") == {"dies": 1, "freeze": 1}
    assert totals(ask, "streaq_tasks_fenced_total", "task") == {"freeze": 1}
    assert totals(ask, "streaq_tasks_finished_total", "priority")["low"] == 1


def assert_histograms(ask: Prometheus) -> None:
    started = totals(ask, "streaq_tasks_started_total", "task")
    assert totals(ask, "streaq_task_queue_wait_seconds_count", "task") == started
    durations = totals(ask, "streaq_task_duration_seconds_count", "status")
    # Of 133 attempts one died with its process. The fenced one ended in success, unless it heard
    # first that its lease was lost: it is stopped then, and that is no end of its own.
    fenced = durations["success"] - (105 + 5 + 1 + 1 + 1)
    assert fenced in (0, 1)
    others = {status: n for status, n in durations.items() if status not in ("success", "lost")}
    assert others == {"failed": 6, "retried": 10, "aborted": 1}
    # Every task that ran to its end, however often it was tried.
    assert totals(ask, "streaq_task_end_to_end_seconds_count", "task") == {
        "ok": 105, "fails": 4, "retries": 5, "times_out": 2, "endless": 1, "sole": 1, "dies": 1,
        "freeze": 1,
    }  # fmt: skip
    buckets = 'streaq_task_duration_seconds_bucket{le="+Inf"}'
    assert ask.sum("streaq_task_duration_seconds_count") == (ask.rows(f"sum({buckets})")[0][1])
    [(_, slow)] = ask.rows('sum(streaq_task_duration_seconds_sum{task="sole"})')
    assert 0.5 <= slow < 2
    lag = totals(ask, "streaq_schedule_lag_seconds_count", "task")
    assert lag["ok"] == 4, "those that were delayed and ran"


def assert_queue(ask: Prometheus) -> None:
    for metric in ("depth", "scheduled", "blocked", "running"):
        assert ask.rows(f'max by (priority) (streaq_queue_{metric}{{priority="normal"}})')
    assert ask.rows("max(streaq_queue_workers)")[0][1] == 2
    assert ask.sum("streaq_worker_concurrency") == 8
    assert ask.sum("streaq_tasks_running", task="ok") == 0


def assert_cron(ask: Prometheus) -> None:
    fired = ask.sum("streaq_tasks_enqueued_total", task="ticks", kind="cron")
    assert fired >= 5
    assert ask.sum("streaq_schedule_lag_seconds_count", task="ticks") == fired
    [(_, last)] = ask.rows("max(streaq_cron_last_success_timestamp_seconds)")
    [(_, following)] = ask.rows("max(streaq_cron_next_run_timestamp_seconds)")
    assert abs(time.time() - last) < 10
    assert abs(following - time.time()) < 10
    assert ask.rows("max(streaq_cron_missed_total)")[0][1] == 0


def assert_every_metric_is_there(ask: Prometheus) -> None:
    known = set(ask.get("/api/v1/label/__name__/values"))
    missing = {m.name for m in names.METRICS if not set(m.series) & known}
    assert not missing
    for metric in names.METRICS:
        for series in metric.series:
            for row, _ in ask.rows(series):
                own = {"__name__", "instance", "job", "le"}
                assert set(row) - own <= set(metric.labels), series
    described = ask.get("/api/v1/metadata")
    for metric in names.METRICS:
        found = described.get(metric.name) or described[metric.name.removesuffix("_total")]
        assert found[0]["help"] == metric.help


def assert_conservation(ask: Prometheus) -> None:
    """What came in has ended or is still there, by the queue's own counts, at any scrape."""
    assert [value for _, value in ask.rows(documented_balance())] == [0]
    enqueued = ask.sum("streaq_queue_enqueued_total")
    assert enqueued >= sum(totals(ask, "streaq_tasks_enqueued_total", "task").values())


def assert_exemplars(ask: Prometheus, sent: set[str]) -> None:
    now = time.time()
    found = ask.get(
        "/api/v1/query_exemplars",
        query="streaq_task_duration_seconds_bucket",
        start=str(now - 300),
        end=str(now + 1),
    )
    traces = {e["labels"]["trace_id"] for series in found for e in series["exemplars"]}
    assert traces & sent, "exemplars name traces that began in the producer"


async def test_what_is_served(plant: Plant, tmp_path: Path) -> None:
    async with plant.worker:
        for name in ("ok", "fails", "retries"):
            await (await plant.worker.enqueue_unsafe(name)).result(20)
    assert_promtool_is_pleased(plant.get("/metrics")[1])
    assert_nothing_is_on_disk(plant)
    assert_the_exporter_serves_the_queue_alone(plant, tmp_path)


def assert_promtool_is_pleased(text: str) -> None:
    command = [need("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert text.count("# HELP streaq_") == len(names.METRICS)


def assert_nothing_is_on_disk(plant: Plant) -> None:
    pids = [plant.run.pid, *(child.pid for child in plant.children())]
    files = {Path(file.path).name for pid in pids for file in psutil.Process(pid).open_files()}
    assert files <= {"workers.log", "memfd:streaq-telemetry (deleted)"}


def assert_the_exporter_serves_the_queue_alone(plant: Plant, folder: Path) -> None:
    plant.port = free_port()
    command = (sys.executable, "-m", "streaq", "exporter", "tests.telemetry.workshop:worker")
    options = ("--metrics-port", str(plant.port))
    with process(*command, *options, log=folder / "exporter.log", **plant.environment):
        wait_for(lambda: plant.get("/metrics")[0] == 200)
        assert plant.values("streaq_queue_workers") == {"": 2}
        assert plant.values("streaq_tasks_started_total") == {}
        assert plant.get("/readyz") == (200, "ok\n")
