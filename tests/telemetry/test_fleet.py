"""Several processes behind one endpoint."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streaq.engine.health import Health, Limits
from streaq.telemetry.fleet import Fleet, Member, _ProcessSums

CHILD = """
import sys
from prometheus_client import CollectorRegistry
from streaq.engine.health import Health
from streaq.hooks import WorkerEvent
from streaq.telemetry import Telemetry
from streaq.telemetry.shared import inherited_store
from tests.telemetry.events import SAMPLED, attempt, ending, starts, successes

health = Health()
telemetry = Telemetry(registry=CollectorRegistry(), traces=False, logs=False)
[hook] = telemetry.hooks(queue="shop", client_id="w", health=health)
health.keep_in(inherited_store().cells)
health.ready(4)
hook.on_worker_start(WorkerEvent("shop", "w", 4, (), (), "", "asyncio"))
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        a = attempt(trace=SAMPLED)
        hook.on_starts(starts(a))
        hook.on_finish(ending(a))
        hook.on_successes(successes(ending(a)))
    hook.on_starts(starts(attempt()))
    health.polled()
    print("done", flush=True)
"""


class Child:
    """A process that counts attempts when told."""

    def __init__(self, fleet: Fleet) -> None:
        self.member: Member = fleet.join()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.member.env},
            pass_fds=self.member.pass_fds,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        self.member.pid = self.process.pid
        self.say("")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        assert self.process.stdout.readline().strip() in ("ready", "done")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def samples(fleet: Fleet) -> dict[str, float]:
    """Every value, summed over labels."""
    found: dict[str, float] = {}
    for family in fleet.registry.collect():
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@contextmanager
def children(fleet: Fleet, count: int) -> Iterator[list[Child]]:
    made = [Child(fleet) for _ in range(count)]
    try:
        yield made
    finally:
        for child in made:
            if child.process.poll() is None:
                child.kill()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(limits=Limits(loop_s=10_000))


def test_the_sums_are_those_of_all_processes(fleet: Fleet) -> None:
    with children(fleet, 2) as (first, second):
        first.say("10")
        second.say("5")
        found = samples(fleet)
    assert found["streaq_tasks_started_total"] == 17
    assert found["streaq_tasks_finished_total"] == 15
    assert found["streaq_task_duration_seconds_count"] == 15
    assert found["streaq_tasks_running"] == 2
    assert found["streaq_worker_concurrency"] == 8


def test_a_killed_child_takes_gauges_but_no_counts_with_it(fleet: Fleet) -> None:
    with children(fleet, 2) as (first, second):
        first.say("10")
        second.say("5")
        first.say("3")  # after the last scrape
        first.kill()
        fleet.leave(first.member)
        found = samples(fleet)
        assert found["streaq_tasks_finished_total"] == 18
        assert found["streaq_tasks_running"] == 1
        assert found["streaq_worker_concurrency"] == 4
        with children(fleet, 1) as (third,):
            third.say("2")
            assert samples(fleet)["streaq_tasks_finished_total"] == 20


def test_exemplars_come_from_children_too(fleet: Fleet) -> None:
    with children(fleet, 1) as (child,):
        child.say("1")
        traces = {
            sample.exemplar.labels["trace_id"]
            for family in fleet.registry.collect()
            for sample in family.samples
            if sample.exemplar
        }
    assert traces == {"a" * 32}


def test_cpu_never_goes_backwards_when_a_child_dies(fleet: Fleet) -> None:
    with children(fleet, 1) as (child,):
        child.say("20000")
        before = samples(fleet)
        assert before["process_resident_memory_bytes"] > 20e6
        child.kill()
        fleet.leave(child.member)
        after = samples(fleet)
    assert after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"] > 0.1
    assert after["process_resident_memory_bytes"] < before["process_resident_memory_bytes"]


def test_cpu_does_not_go_backwards_when_a_child_is_reaped_during_a_scrape() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        ends = False

        def pids() -> list[int]:
            """Asked for once what was reaped is known, and before the living are looked at."""
            if ends:
                child.kill()
                child.wait()
            return [child.pid]

        sums = _ProcessSums(pids)
        before = cpu_of(sums)
        ends = True
        during, after = cpu_of(sums), cpu_of(sums)
    assert 0.5 <= before <= during <= after


def cpu_of(sums: _ProcessSums) -> float:
    [value] = [
        sample.value
        for family in sums.collect()
        for sample in family.samples
        if sample.name == "process_cpu_seconds_total"
    ]
    return value


def test_nothing_is_left_open(fleet: Fleet) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before = open_files()
    members = [fleet.join() for _ in range(20)]
    assert open_files() > before
    for member in members:
        fleet.leave(member)
    del members, member
    gc.collect()
    assert open_files() == before


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


def test_one_endpoint_for_all() -> None:
    fleet = Fleet(limits=Limits(loop_s=1000))
    server = fleet.serve()
    url = f"http://127.0.0.1:{server.port}"
    assert get(f"{url}/readyz") == (503, "no worker has started\n")
    with children(fleet, 2) as (first, second):
        first.say("1")
        second.say("1")
        assert "streaq_worker_concurrency" in get(f"{url}/metrics")[1]
        assert get(f"{url}/readyz") == (200, "ok\n")
        # One child's loop has stood still for an hour; only its parent can tell.
        Health(first.member.store.cells).beat(1.0)
        first.member.store.cells[0] -= 3600
        status, body = get(f"{url}/livez")
        assert status == 503
        who = f"process {first.process.pid}"
        assert body.startswith(f"{who}: the event loop has not run for 36")
        fleet.leave(first.member)
        assert get(f"{url}/livez") == (200, "ok\n")
    server.close()
