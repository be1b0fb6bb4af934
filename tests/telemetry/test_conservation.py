"""Workers are killed at random; what came in is what ended and what is left, by metrics alone."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from streaq import TaskStatus
from tests.telemetry.plant import Plant, values_in, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

KILLS = 6
COUNT = 3000
LIVE = ("depth", "scheduled", "blocked", "running")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    with ExitStack() as stack:
        made = Plant(stack, tmp_path, WORKSHOP_IDLE="1")
        wait_for(lambda: made.get("/readyz")[0] == 200, 30)
        yield made


class Balance:
    """One scrape: what came in, what ended, what is still there."""

    def __init__(self, plant: Plant) -> None:
        self.text = plant.get("/metrics")[1]
        self.enqueued = self.sum("streaq_queue_enqueued_total")
        self.finished = self.sum("streaq_queue_finished_total")
        self.live = sum(self.sum(f"streaq_queue_{name}") for name in LIVE)

    def sum(self, metric: str) -> float:
        return sum(values_in(self.text, metric).values())


class Producer:
    """Enqueues tasks for every way to end; ``dice`` say how many, and in which order."""

    def __init__(self, plant: Plant, dice: random.Random) -> None:
        self.worker = plant.worker
        self.dice = dice
        # An expiry travels with the task, so whoever enqueues must know of it.
        self._expires = self.worker.task(name="expires", expire=0.001)(_elsewhere)
        self.standing: list[Any] = []
        self.held: list[Any] = []

    async def round(self, count: int) -> None:
        """So many tasks and a few more, in batches and one by one."""
        call = self.worker.enqueue_unsafe
        names = self.dice.choices(("ok", "fails", "retries", "expires"), (5, 2, 2, 2), k=count)
        batch = [self._expires.enqueue() if name == "expires" else call(name) for name in names]
        batch += [call("ok").start(delay=self.dice.uniform(0.05, 0.5)) for _ in range(20)]
        batch += [call("sole", 0.2) for _ in range(3)]
        await self.worker.enqueue_many(batch)
        doomed = call("fails")
        await self.worker.enqueue_many(
            [doomed, *(call("ok").start(after=doomed.id) for _ in "abc")]
        )
        await (call("ok", 1) | call("plus").parent)
        tomorrow = [call("ok").start(delay=86_400) for _ in range(3)]
        waiting = [call("ok").start(after=task.id) for task in tomorrow]
        await self.worker.enqueue_many([*tomorrow, *waiting])
        assert await tomorrow[0].abort(10), "aborted while it waits"
        self.standing += [*tomorrow[1:], *waiting[1:]]
        self.held.append(await call("endless").start(priority="high"))

    async def let_go(self) -> None:
        """Abort those that run for ever."""
        for task in self.held:
            while await task.status() is not TaskStatus.RUNNING:  # noqa: ASYNC110 - of Redis
                await anyio.sleep(0.01)
            assert await task.abort(10), "aborted while it runs"
        self.held.clear()


async def _elsewhere() -> None: ...


async def test_conservation_under_random_kills(plant: Plant) -> None:
    seed = int(os.environ.get("STREAQ_SEED", random.randrange(2**32)))
    print(f"STREAQ_SEED={seed}")
    dice = random.Random(seed)
    producer = Producer(plant, dice)
    async with plant.worker:
        for _ in range(KILLS):
            await producer.round(COUNT // KILLS)
            await anyio.sleep(dice.uniform(0.05, 0.5))
            await anyio.to_thread.run_sync(kill_one, plant, dice)
            await producer.let_go()
        standing = len(producer.standing)
        await anyio.to_thread.run_sync(wait_for, lambda: drained(plant, standing), 90)
    assert_everything_is_accounted_for(plant, standing)


def kill_one(plant: Plant, dice: random.Random) -> None:
    """The parent starts another by and by."""
    children = wait_for(lambda: sorted(plant.children(), key=lambda c: c.pid))
    victim: psutil.Process = dice.choice(children)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)


def drained(plant: Plant, standing: int) -> bool:
    """Whether all that is left is due tomorrow, or waits for what is."""
    balance = Balance(plant)
    assert balance.enqueued == balance.finished + balance.live, "at any moment"
    return balance.enqueued >= COUNT and balance.live == standing


def assert_everything_is_accounted_for(plant: Plant, standing: int) -> None:
    balance = Balance(plant)
    assert balance.enqueued == balance.finished + balance.live
    by_status = values_in(balance.text, "streaq_queue_finished_total", "status")
    assert set(by_status) == {"success", "failed", "aborted", "expired"}
    assert min(by_status.values()) > 0
    assert balance.live >= standing > 0
    refused = values_in(balance.text, "streaq_tasks_refused_total", "reason")
    assert min(refused.get(reason, 0) for reason in ("expired", "unique", "dependency")) > 0
    assert by_status["aborted"] == 2 * KILLS, "one that waited and one that ran, each round"
    kinds = values_in(balance.text, "streaq_tasks_enqueued_total", "kind")
    assert kinds["cron"] > 0
    assert_processes_agree(plant, balance)


def assert_processes_agree(plant: Plant, balance: Balance) -> None:
    """Each process' own counts, but for what a killed one had committed and not yet counted: one
    exchange's worth at most, a kill. The producer ends what it aborts before it runs.
    """
    slack = KILLS * 4 * 2
    counted = balance.sum("streaq_tasks_finished_total")
    by_producer = plant.seen.metric("streaq_tasks_finished_total")
    assert by_producer >= KILLS
    assert balance.finished - slack <= counted + by_producer <= balance.finished
    started = balance.sum("streaq_tasks_started_total")
    others = sum(balance.sum(f"streaq_tasks_{name}_total") for name in ("retried", "reclaimed"))
    refused = balance.sum("streaq_tasks_refused_total")
    assert abs(started - (counted + others - refused)) <= slack
