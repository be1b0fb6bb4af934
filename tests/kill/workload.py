"""A worker process to be killed: `python -m tests.kill.workload`.

Every run of a task appends a line (id and try) to a file, so that what really ran can be compared
with what Redis says. With STREAQ_CRASH=script:before|after:n the process kills itself with SIGKILL
just before or just after its n-th call of that script, which is to say at any line that talks to
Redis.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from streaq import StreaqRetry, Worker
from streaq.broker.scripts import Arg, Scripts
from streaq.hooks import Hook, WorkerEvent

LEASE_S = 0.6

worker = Worker(
    os.environ.get("STREAQ_KILL_URL", "redis://localhost:6379"),
    queue_name=os.environ.get("STREAQ_KILL_QUEUE", "kill"),
    concurrency=int(os.environ.get("STREAQ_KILL_CONCURRENCY", "16")),
    prefetch=int(os.environ.get("STREAQ_KILL_PREFETCH", "0")),
    idle_timeout=LEASE_S,
    telemetry=False,
)


def note(task_id: str, tries: int) -> None:
    """One line per run, whole even when several processes write at once."""
    line = f"{task_id} {tries}\n".encode()
    handle = os.open(os.environ["STREAQ_KILL_RAN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


@worker.task(max_tries=6, ttl=3600)
async def plain(n: int) -> int:
    note(plain.context.task_id, plain.context.tries)
    await anyio.sleep(random.random() * 0.02)
    return n


@worker.task(max_tries=6, ttl=3600)
async def flaky(n: int) -> int:
    note(flaky.context.task_id, flaky.context.tries)
    if flaky.context.tries < 2:
        raise StreaqRetry("once more", delay=0.05)
    return n


@worker.task(max_tries=6, ttl=3600)
async def double(n: int) -> int:
    note(double.context.task_id, double.context.tries)
    return n * 2


@worker.task(max_tries=6, ttl=3600)
async def fails(n: int) -> int:
    note(fails.context.task_id, fails.context.tries)
    raise ValueError(n)


@worker.task(max_tries=6, ttl=3600, unique=True)
async def lonely(n: int) -> int:
    note(lonely.context.task_id, lonely.context.tries)
    await anyio.sleep(0.2)
    return n


@worker.task(max_tries=6, ttl=3600)
async def spawner(n: int) -> str:
    note(spawner.context.task_id, spawner.context.tries)
    child = plain.enqueue(n)
    child.id = f"child-{n}"
    await child
    return child.id


@worker.task(max_tries=2, ttl=3600)
async def deadly() -> None:
    note(deadly.context.task_id, deadly.context.tries)
    os.kill(os.getpid(), signal.SIGKILL)


@worker.task(max_tries=3, ttl=3600)
async def endless(n: int) -> int:
    note(endless.context.task_id, endless.context.tries)
    await anyio.sleep(600)
    return n


def plant_crash(spec: str) -> None:
    """Have this process kill itself around the n-th call of a script."""
    name, where, count = spec.split(":")
    seen: Counter[str] = Counter()
    send = Scripts._send

    async def crashing(self: Scripts, called: str, args: Sequence[Arg]) -> Any:
        seen[called] += 1
        doomed = called == name and seen[called] == int(count)
        if doomed and where == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        reply = await send(self, called, args)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    Scripts._send = crashing  # type: ignore[method-assign]


class Ready(Hook):
    """Says that a signal ends this process in good order from now on."""

    def on_worker_start(self, e: WorkerEvent) -> None:
        Path(f"{os.environ['STREAQ_KILL_RAN']}.{os.getpid()}").touch()


if __name__ == "__main__":
    worker.extra_hooks.append(Ready())
    if crash := os.environ.get("STREAQ_CRASH"):
        plant_crash(crash)
    worker.run_sync()
