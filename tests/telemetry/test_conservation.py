"""Workers are killed at random; what came in is what ended and what is left, by metrics alone."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import psutil
import pytest

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


async def test_conservation_under_random_kills(plant: Plant) -> None:
    seed = int(os.environ.get("STREAQ_SEED", random.randrange(2**32)))
    print(f"STREAQ_SEED={seed}")
    dice = random.Random(seed)
    call = plant.worker.enqueue_unsafe
    async with plant.worker:
        for _ in range(KILLS):
            batch = [
                call(dice.choice(("ok", "ok", "fails", "retries", "expires")))
                for _ in range(COUNT // KILLS)
            ]
            await plant.worker.enqueue_many(batch)
            await anyio.sleep(dice.uniform(0.05, 0.5))
            await anyio.to_thread.run_sync(kill_one, plant, dice)
        await anyio.to_thread.run_sync(wait_for, lambda: drained(plant), 90)
    assert_everything_is_accounted_for(Balance(plant))


def kill_one(plant: Plant, dice: random.Random) -> None:
    """The parent starts another by and by."""
    children = wait_for(lambda: sorted(plant.children(), key=lambda c: c.pid))
    victim: psutil.Process = dice.choice(children)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)


def drained(plant: Plant) -> bool:
    balance = Balance(plant)
    assert balance.enqueued == balance.finished + balance.live, "at any moment"
    return balance.enqueued >= COUNT and not balance.live


def assert_everything_is_accounted_for(balance: Balance) -> None:
    assert balance.enqueued == balance.finished + balance.live
    by_status = values_in(balance.text, "streaq_queue_finished_total", "status")
    assert min(by_status["success"], by_status["failed"]) > 0
    # Each process' own counts agree, but for what a killed one had committed and not yet counted:
    # one exchange's worth at most, a kill.
    counted = balance.sum("streaq_tasks_finished_total")
    assert balance.finished - KILLS * 4 * 2 <= counted <= balance.finished
    started = balance.sum("streaq_tasks_started_total")
    others = sum(
        balance.sum(f"streaq_tasks_{name}_total") for name in ("retried", "reclaimed", "refused")
    )
    refused = balance.sum("streaq_tasks_refused_total")
    assert abs(started - (counted + others - 2 * refused)) <= KILLS * 4 * 2
