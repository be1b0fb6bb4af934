"""``/livez`` and ``/readyz`` of a real worker that is really unwell."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry

from streaq import Worker
from streaq.engine.health import Limits
from streaq.telemetry import Telemetry
from streaq.telemetry.fleet import Fleet
from streaq.telemetry.serve import serve_queue_only, serve_worker
from tests.servers import Server, binaries
from tests.telemetry.plant import Plant, wait_for

pytestmark = pytest.mark.timeout(90)

LIMITS = Limits(loop_s=2, redis_s=0.8, stall_s=0.8)


class Patient:
    """A worker in a thread of its own, its server, and its endpoint."""

    def __init__(self, stack: ExitStack) -> None:
        self.server = stack.enter_context(Server("valkey" if "valkey" in binaries() else "redis-7"))
        self.release = threading.Event()
        self.slowest_s = 0.0
        stack.callback(self.release.set)
        self.worker = self.make()
        self.http = serve_worker(self.worker, limits=LIMITS)
        stack.callback(self.http.close)
        self.stop: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        stack.callback(self.thread.join)
        wait_for(lambda: self.stop)
        stack.callback(lambda: self.stop and self.stop())

    def make(self) -> Worker[Any]:
        telemetry = Telemetry(registry=CollectorRegistry())
        worker: Worker[Any] = Worker(
            self.server.url,
            queue_name="probes",
            concurrency=2,
            handle_signals=False,
            telemetry=telemetry,
        )

        @worker.task(name="hogs")
        async def hogs() -> None:
            self.release.wait(20)  # blocks the loop

        @worker.task(name="long")
        async def long() -> None:
            while not self.release.is_set():  # noqa: ASYNC110 - of another thread or process
                await anyio.sleep(0.02)

        return worker

    def run(self) -> None:
        async def main() -> None:
            scope = anyio.CancelScope()
            token = anyio.lowlevel.current_token()
            with scope:
                self.stop = lambda: anyio.from_thread.run_sync(scope.cancel, token=token)
                await self.worker.run_async()

        anyio.run(main)

    def enqueue(self, *names: str) -> None:
        """From a producer of another process, as it were."""
        producer: Worker[Any] = Worker(self.server.url, queue_name="probes", telemetry=False)

        async def main() -> None:
            async with producer:
                await producer.enqueue_many([producer.enqueue_unsafe(name) for name in names])

        anyio.run(main)

    def get(self, path: str) -> tuple[int, str]:
        began = time.monotonic()
        answer = get(self.http.port, path)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        return answer

    def becomes(self, path: str, status: int, reason: str) -> None:
        wait_for(lambda: self.get(path)[0] == status and reason in self.get(path)[1], 10)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


@pytest.fixture
def patient() -> Iterator[Patient]:
    with ExitStack() as stack:
        made = Patient(stack)
        made.becomes("/readyz", 200, "ok")
        yield made


def stays_well(patient: Patient, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert patient.get("/livez") == (200, "ok\n")
        time.sleep(0.1)


def test_an_idle_worker_stays_well(patient: Patient) -> None:
    stays_well(patient, LIMITS.stall_s * 2.5)


def test_a_busy_worker_with_work_waiting_stays_well(patient: Patient) -> None:
    patient.enqueue(*["long"] * 4)
    wait_for(lambda: patient.worker.running() == 2)
    stays_well(patient, LIMITS.stall_s * 2.5)
    patient.release.set()
    wait_for(lambda: patient.worker.counters.get("completed") == 4)


def test_a_blocked_loop(patient: Patient) -> None:
    patient.enqueue("hogs")
    patient.becomes("/livez", 503, "the event loop has not run for")
    assert patient.get("/readyz")[0] == 503
    patient.release.set()
    patient.becomes("/livez", 200, "ok")


def test_redis_gone_and_back(patient: Patient) -> None:
    patient.server.stop()
    patient.becomes("/readyz", 503, "Redis")
    patient.becomes("/livez", 503, "Redis")
    patient.server.start()
    patient.becomes("/livez", 200, "ok")
    patient.becomes("/readyz", 200, "ok")


def test_a_stuck_pump(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pump hangs in a call that never returns, while the loop runs and work waits."""
    life = patient.worker._session._life
    assert life is not None
    stuck = threading.Event()

    async def never(*args: object) -> Any:
        stuck.set()
        while not patient.release.is_set():  # noqa: ASYNC110 - of another thread or process
            await anyio.sleep(0.02)
        raise ConnectionError

    monkeypatch.setattr(life.pump, "_exchange", never)
    patient.enqueue("long")
    assert stuck.wait(10)
    patient.enqueue("long")
    patient.becomes("/livez", 503, "this worker takes none")
    monkeypatch.undo()
    patient.release.set()
    patient.becomes("/livez", 200, "ok")


def test_a_pump_that_is_stuck_with_all_slots_taken(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks end, and the pump does not hear of it: nothing is taken, though nothing runs."""
    life = patient.worker._session._life
    assert life is not None
    patient.enqueue("long", "long")
    wait_for(lambda: patient.worker.running() == 2)
    ends = threading.Event()

    async def never(*args: object) -> Any:
        while not ends.is_set():  # noqa: ASYNC110 - of another thread
            await anyio.sleep(0.02)
        raise ConnectionError

    monkeypatch.setattr(life.pump, "_exchange", never)
    patient.enqueue("long")
    patient.release.set()
    patient.becomes("/livez", 503, "this worker takes none")
    assert patient.worker.running() == 0
    monkeypatch.undo()
    ends.set()
    patient.becomes("/livez", 200, "ok")


def test_a_redis_that_hangs_is_told_of_soon_and_probes_answer_at_once(patient: Patient) -> None:
    os.kill(patient.server.pid, signal.SIGSTOP)
    try:
        patient.get("/metrics")
        patient.becomes("/livez", 503, "Redis has not answered")
        patient.becomes("/readyz", 503, "Redis is out of reach")
    finally:
        os.kill(patient.server.pid, signal.SIGCONT)
    assert patient.slowest_s < 0.8, "kubelet waits for a second"
    patient.becomes("/livez", 200, "ok")
    patient.becomes("/readyz", 200, "ok")


@pytest.mark.parametrize("telemetry", ["off", "no metrics"])
def test_the_probes_of_a_child_do_not_need_its_metrics(telemetry: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        plant = Plant(stack, tmp_path, WORKSHOP_TELEMETRY=telemetry)
        wait_for(lambda: plant.get("/readyz")[0] == 200, 30)
        assert plant.get("/livez") == (200, "ok\n")
        (child, _) = plant.children()
        child.suspend()
        stack.callback(child.resume)
        wait_for(lambda: "the event loop has not run" in plant.get("/livez")[1], 30)


def test_a_fleet_with_a_child_missing_is_not_ready(tmp_path: Path) -> None:
    fleet = Fleet(expected=2)
    http = fleet.serve()
    health = fleet.join().health
    health.ready(1)
    assert get(http.port, "/readyz") == (503, "1 of 2 worker processes run\n")
    fleet.join().health.ready(1)
    assert get(http.port, "/readyz") == (200, "ok\n")
    http.close()


def test_a_worker_that_never_starts_though_work_is_due_is_unwell() -> None:
    with Server("valkey" if "valkey" in binaries() else "redis-7") as server:
        worker: Worker[Any] = Worker(server.url, telemetry=False)

        @worker.task
        async def waits() -> None: ...

        async def enqueue() -> None:
            async with worker:
                await waits.enqueue()

        fleet = Fleet(worker, Limits(start_s=0.5), expected=1)
        http = fleet.serve()
        fleet.join()
        time.sleep(0.6)  # what it is about: nothing happens
        assert get(http.port, "/livez") == (200, "ok\n"), "nothing is due"
        anyio.run(enqueue)
        wait_for(lambda: "no worker has started" in get(http.port, "/livez")[1])
        http.close()


def test_an_exporter_is_ready_when_it_can_read() -> None:
    with Server("valkey" if "valkey" in binaries() else "redis-7") as server:
        worker: Worker[Any] = Worker(server.url, telemetry=False)
        http = serve_queue_only(worker)
        assert get(http.port, "/livez") == (200, "ok\n")
        assert get(http.port, "/readyz") == (200, "ok\n")
        server.stop()
        wait_for(lambda: get(http.port, "/readyz") == (503, "the queue cannot be read\n"))
        assert get(http.port, "/livez") == (200, "ok\n"), "not to be restarted for it"
        http.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_blocked_child_is_seen_through_its_parent_and_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        plant = Plant(stack, tmp_path)
        await anyio.to_thread.run_sync(wait_for, lambda: plant.get("/readyz")[0] == 200, 30)
        async with plant.worker:
            task = await plant.worker.enqueue_unsafe("hogs", 1.5)
            await task.result(20)
        lag = plant.values("streaq_event_loop_lag_seconds")[""]
        assert 1 <= lag < 3
        assert plant.get("/livez")[0] == 200, "it was short"
    line = next(line for line in plant.log.read_text().splitlines() if "loop.blocked" in line)
    assert "workshop.py" in line
    assert '"tasks":["hogs"]' in line
