"""Redis itself dies, with its AOF on, under running workers and a producer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from streaq import StreaqError
from streaq.task import Task
from tests.kill.harness import Fleet, results_of
from tests.kill.test_kill import settle_down, until_alive
from tests.servers import Server, kinds

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=kinds("valkey", "redis-7"))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param, aof=True) as started:
        yield started


@pytest.fixture
def fleet(server: Server, tmp_path: Path) -> Iterator[Fleet]:
    crew = Fleet(server.url, f"restart-{uuid4().hex[:8]}", tmp_path)
    yield crew
    crew.abandon()


async def insist(task: Task[Any, Any]) -> None:
    """Enqueue, however often it takes: awaiting the same task again is safe."""
    while True:
        try:
            await task
        except StreaqError:
            continue
        return


async def test_redis_is_killed_and_restarted(server: Server, fleet: Fleet) -> None:
    seed = int(os.environ.get("STREAQ_SEED", time.time_ns() % 1_000_000))
    print(f"STREAQ_SEED={seed}")
    rng = random.Random(seed)
    async with fleet.producer as worker:
        names = ["plain", "flaky", "double", "fails"]
        tasks = [worker.enqueue_unsafe(names[i % 4], i) for i in range(2000)]
        waiting: dict[str, Any] = {}

        async def produce() -> None:
            for i in range(0, len(tasks), 20):
                async with anyio.create_task_group() as group:
                    for task in tasks[i : i + 20]:
                        group.start_soon(insist, task)

        async def wait_early() -> None:
            """A waiter that sits through the restarts."""
            waiting.update(await results_of(worker, tasks[-50:], 90))

        for _ in range(2):
            fleet.start()
        await until_alive(fleet, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(wait_early)
            group.start_soon(produce)
            for _ in range(3):
                await anyio.sleep(rng.uniform(0.6, 1.2))
                await anyio.to_thread.run_sync(lambda: server.restart(kill=True))
        results = await results_of(worker, tasks, 60)
        assert waiting.keys() == {task.id for task in tasks[-50:]}
        runs = fleet.runs()
        for task in tasks:
            result = results[task.id]
            assert result.success == (task.parent.fn_name != "fails"), result
            assert 1 <= runs[task.id] <= 6
            assert result.tries <= 6
        await settle_down(fleet)
