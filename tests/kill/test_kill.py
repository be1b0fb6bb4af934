"""kill -9 at any instant: every task has exactly one result, none runs more often than its tries
allow, and nothing is left over."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from streaq import TaskStatus
from tests.kill.harness import Fleet, books, enqueue, leftovers, results_of, stray_keys
from tests.kill.workload import LEASE_S
from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("valkey") as started:
        yield started


@pytest.fixture
def fleet(server: Server, tmp_path: Path) -> Iterator[Fleet]:
    crew = Fleet(server.url, f"kill-{uuid4().hex[:8]}", tmp_path)
    yield crew
    crew.abandon()


async def until_alive(fleet: Fleet, count: int) -> None:
    """Wait until so many workers are known, no more and no fewer."""
    workers = f"streaq:{{{fleet.queue}}}:workers"
    with anyio.fail_after(30):
        while fleet.client().zcard(workers) != count:
            await anyio.sleep(LEASE_S / 4)


async def settle_down(fleet: Fleet) -> None:
    """Stop the last workers once all of them are up and the dead ones are forgotten, and look at
    what is left."""
    await until_alive(fleet, len(fleet.processes))
    fleet.close()
    assert leftovers(fleet) == []
    assert stray_keys(fleet) == []
    read = await anyio.to_thread.run_sync(books, fleet)
    assert (read.balance, read.live) == (0, 0)


async def test_random_kills(fleet: Fleet) -> None:
    seed = int(os.environ.get("STREAQ_SEED", time.time_ns() % 1_000_000))
    print(f"STREAQ_SEED={seed}")
    rng = random.Random(seed)
    async with fleet.producer as worker:
        tasks = await enqueue(worker, ["plain", "flaky", "double", "fails"], 4000)
        chains = [
            worker.enqueue_unsafe("plain", i).then(worker.enqueue_unsafe("double").parent)
            for i in range(300)
        ]
        everything = [link for chain in chains for link in chain.chain()] + tasks
        await worker.enqueue_many(chains)
        crew = [fleet.start() for _ in range(2)]
        for _ in range(8):
            await anyio.sleep(rng.uniform(0.7, 1.6))
            victim = rng.choice(crew)
            fleet.kill(victim)
            assert (await anyio.to_thread.run_sync(books, fleet)).balance == 0
            crew.remove(victim)
            crew.append(fleet.start())
        results = await results_of(worker, everything, 90)
        assert len(results) == len(everything)
        runs = fleet.runs()
        worn_out = [t for t, result in results.items() if result.tries > 6 or runs[t] > 6]
        assert worn_out == []
        for task in everything:
            result = results[task.id]
            if result.success:
                assert runs[task.id] >= 1
                n = task.args[0] if task.args else task.previous.args[0]  # type: ignore[union-attr]
                assert result.result == (n * 2 if task.parent.fn_name == "double" else n)
            else:
                assert "fails" in task.parent.fn_name or "died" in str(result.exception)
        read = await anyio.to_thread.run_sync(books, fleet)
        assert read.enqueued == len(everything)
        succeeded = sum(result.success for result in results.values())
        ended = {"success": succeeded, "failed": len(everything) - succeeded}
        assert {status: n for status, n in read.finished.items() if n} == ended
        for tries in fleet.tries().values():
            assert sorted(set(tries)) == sorted(tries), "a try ran twice"
        for status in (TaskStatus.QUEUED, TaskStatus.RUNNING, TaskStatus.SCHEDULED):
            assert await worker.get_tasks_by_status(status) == []
        await settle_down(fleet)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    ("script", "count"),
    [("exchange", 1), ("exchange", 2), ("exchange", 5), ("exchange", 11), ("tick", 1),
     ("tick", 3), ("publish", 1), ("publish", 3), ("register", 1)],
)  # fmt: skip
async def test_killed_around_a_script(fleet: Fleet, script: str, count: int, where: str) -> None:
    """The process dies right before or right after a call to Redis; another one finishes."""
    async with fleet.producer as worker:
        names = ["plain", "flaky", "double", "fails", "spawner"]
        tasks = await enqueue(worker, names, 100)
        delayed = [worker.enqueue_unsafe("plain", i).start(delay=0.3) for i in range(20)]
        await worker.enqueue_many(delayed)
        doomed = fleet.start(crash=f"{script}:{where}:{count}")
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(doomed.wait)
        assert doomed.returncode == -9, "the planted crash did not happen"
        fleet.processes.remove(doomed)
        fleet.start()
        results = await results_of(worker, [*tasks, *delayed], 30)
        for task in tasks:
            assert results[task.id].success == (task.parent.fn_name != "fails")
            assert results[task.id].tries <= 4
        children = [f"child-{t.args[0]}" for t in tasks if t.parent.fn_name == "spawner"]
        for child in children:
            assert (await worker.result_by_id(child, 10)).success
        assert max(fleet.runs().values()) <= 4
        await settle_down(fleet)


async def test_a_task_that_kills_its_worker_does_not_loop(fleet: Fleet) -> None:
    async with fleet.producer as worker:
        task = await worker.enqueue_unsafe("deadly")
        for _ in range(2):
            process = fleet.start()
            await anyio.to_thread.run_sync(process.wait)
            fleet.processes.remove(process)
        fleet.start()
        result = await task.result(20)
        assert not result.success
        assert "died" in str(result.exception)
        assert fleet.runs()[task.id] == 2
        await settle_down(fleet)


async def test_killed_while_holding_prefetched_tasks(fleet: Fleet) -> None:
    """Reserved messages come back without having cost a try."""
    async with fleet.producer as worker:
        blockers = [worker.enqueue_unsafe("endless", i) for i in range(2)]
        await worker.enqueue_many(blockers)
        holder = fleet.start(kill_concurrency="2", kill_prefetch="50")
        await _until_running(fleet, 2)
        tasks = await enqueue(worker, ["plain"], 50)
        with anyio.fail_after(10):
            while fleet.client().xpending(_stream(fleet), "workers")["pending"] < 52:
                await anyio.sleep(0.02)
        fleet.kill(holder)
        fleet.start()
        results = await results_of(worker, tasks, 20)
        assert {result.tries for result in results.values()} == {1}
        for blocker in blockers:
            assert await blocker.abort(10)
        await settle_down(fleet)


async def test_killed_while_holding_a_unique_lock(fleet: Fleet) -> None:
    """The lock does not outlive its holder: the task itself may run again, and then others."""
    async with fleet.producer as worker:
        first = await worker.enqueue_unsafe("lonely", 1)
        holder = fleet.start()
        await _until_running(fleet, 1)
        fleet.kill(holder)
        fleet.start()
        result = await first.result(20)
        assert result.success
        assert result.tries == 2
        second = await worker.enqueue_unsafe("lonely", 2)
        assert (await second.result(20)).success
        await settle_down(fleet)


async def test_a_deploy_burns_no_try(fleet: Fleet) -> None:
    """SIGTERM hands running tasks back at once, with the try refunded."""
    async with fleet.producer as worker:
        tasks = await enqueue(worker, ["endless"], 16)
        for _ in range(3):
            process = fleet.start()
            await _until_running(fleet, 16)
            process.terminate()
            assert await anyio.to_thread.run_sync(process.wait) == 0
            fleet.processes.remove(process)
        for task in tasks:
            info = await task.info()
            assert info is not None
            assert info.tries == 0
        fleet.start()
        began = time.monotonic()
        await _until_running(fleet, 16)
        assert time.monotonic() - began < 10
        for task in tasks:
            assert await task.abort(10)
        await settle_down(fleet)


def _stream(fleet: Fleet) -> str:
    return f"streaq:{{{fleet.queue}}}:stream:normal"


async def _until_running(fleet: Fleet, count: int) -> None:
    with anyio.fail_after(20):
        async with fleet.producer as worker:
            while len(await worker.get_tasks_by_status(TaskStatus.RUNNING)) < count:
                await anyio.sleep(0.02)
