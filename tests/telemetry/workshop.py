"""The worker module that the end-to-end tests of telemetry run in processes of their own."""

from __future__ import annotations

import logging
import os
import signal
import time

import anyio
import anyio.lowlevel
import structlog

from streaq import StreaqRetry, Worker
from streaq.telemetry import Telemetry

worker = Worker(
    os.environ["WORKSHOP_URL"],
    queue_name=os.environ["WORKSHOP_QUEUE"],
    concurrency=4,
    idle_timeout=float(os.environ.get("WORKSHOP_IDLE", "60")),
    telemetry={"off": False, "no metrics": Telemetry(metrics=False)}.get(
        os.environ.get("WORKSHOP_TELEMETRY", ""), True
    ),
)


@worker.task(name="ok")
async def ok(x: int = 0) -> int:
    return x


@worker.task(name="plus")
async def plus(x: int) -> int:
    return x + 1


@worker.task(name="fails")
async def fails() -> None:
    raise KeyError("sku")


@worker.task(name="retries")
async def retries() -> None:
    if retries.context.tries < 3:
        raise StreaqRetry("again", delay=0)


@worker.task(name="times_out", timeout=0.05)
async def times_out() -> None:
    await anyio.sleep(30)


@worker.task(name="endless")
async def endless() -> None:
    await anyio.sleep(3600)


@worker.task(name="expires", expire=0.001)
async def expires() -> None: ...


@worker.task(name="sole", unique=True)
async def sole(seconds: float) -> None:
    await anyio.sleep(seconds)


@worker.task(name="freeze")
async def freeze() -> int:
    """Stops its process until somebody lets it go on; at the second try it returns at once."""
    if freeze.context.tries == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
        await anyio.lowlevel.checkpoint()
    return os.getpid()


@worker.task(name="dies")
async def dies() -> int:
    """Kills its process the first time."""
    if dies.context.tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@worker.task(name="hogs")
async def hogs(seconds: float) -> None:
    """Blocks the event loop."""
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point


@worker.task(name="speaks")
async def speaks(password: str) -> str:
    logging.getLogger("mine").warning("standard line")
    structlog.get_logger("mine").warning("structlog line")
    return password[::-1]


@worker.task(name="leaks")
async def leaks(password: str) -> None:
    hidden = password * 2
    assert hidden
    raise ValueError("no details")


@worker.cron("* * * * * *", name="ticks")
async def ticks() -> None: ...
