"""The worker that the command line tests run; its queue and server come from the environment."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import anyio

from streaq import StreaqCancelled, StreaqRetry, Worker

worker = Worker(
    os.environ["TEST_URL"],
    queue_name=os.environ["TEST_QUEUE"],
    concurrency=4,
    idle_timeout=1,
    grace_period=float(os.environ.get("TEST_GRACE", "20")),
    anyio_backend="trio" if os.environ.get("TEST_BACKEND") == "trio" else "asyncio",
)
not_a_worker = {"worker": worker}


def note(text: str) -> None:
    """A line in the file that the test reads."""
    with Path(os.environ["TEST_NOTES"]).open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


@worker.task
async def add(a: int, b: int) -> int:
    return a + b


@worker.task
async def murmur() -> None:
    logging.getLogger("shop").debug("quiet words")


@worker.task
async def fail(message: str) -> None:
    raise ValueError(message)


@worker.task
async def stop_itself(*why: str) -> None:
    raise StreaqCancelled(*why)


@worker.task
async def fail_in_a_group(message: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(fail.fn, message)


@worker.task(max_tries=None)
async def flaky(tries: int = 3) -> int:
    if flaky.context.tries < tries:
        raise StreaqRetry("not yet", delay=0)
    return flaky.context.tries


@worker.task
async def whoami() -> int:
    note(f"whoami {os.getpid()}")
    return os.getpid()


@worker.task
async def die_once() -> int:
    """Kills its worker at its first try."""
    note(f"die {os.getpid()}")
    if die_once.context.tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@worker.task
async def wait_for(path: str) -> str:
    """Runs until a file is there."""
    note(f"started {os.getpid()}")
    while not await anyio.Path(path).exists():  # noqa: ASYNC110 - the test is another process
        await anyio.sleep(0.02)
    return "seen"


@worker.task(max_tries=None)
def stuck() -> None:
    """Blocks its thread for ever; nothing but SIGKILL ends it."""
    note(f"started {os.getpid()}")
    threading.Event().wait()


@worker.task(unique=True)
async def alone() -> None:
    await anyio.sleep_forever()
