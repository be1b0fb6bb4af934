"""Small helpers that tests import: a worker that runs for as long as a block of code does."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Protocol

import anyio
import redis

from streaq import Worker
from streaq.broker.keys import Keys


class MakeWorker(Protocol):
    """What the fixture ``make_worker`` gives."""

    def __call__(self, **options: Any) -> Worker[Any]: ...


@asynccontextmanager
async def running(*workers: Worker[Any]) -> AsyncIterator[None]:
    """Workers that claim tasks while the block runs, and are stopped at its end.

    Example::

        async with running(worker):
            result = await (await add.enqueue(1, 2)).result(3)
    """
    async with anyio.create_task_group() as group:
        for worker in workers:
            await group.start(worker.run_async)
        yield
        group.cancel_scope.cancel()


def cut_short(worker: Worker[Any]) -> tuple[Any, anyio.Event]:
    """A task ``t`` whose first attempt only a shutdown ends, and what says that it has begun."""
    begun = anyio.Event()

    @worker.task(name="t")
    async def t() -> None:
        if not begun.is_set():
            begun.set()
            await anyio.sleep(30)

    return t, begun


async def until(true: Callable[[], bool], timeout_s: float = 5) -> None:
    """Wait for what no event tells, such as the state of the server seen from outside."""
    with anyio.fail_after(timeout_s):
        while not true():  # noqa: ASYNC110 - there is no event
            await anyio.sleep(0.002)


def bring_forward(client: redis.Redis, queue: str) -> None:
    """Make everything that is scheduled due now, repeating schedules included, and tell workers."""
    keys = Keys(queue)
    for raw in client.scan_iter(f"{keys.base}*"):
        if raw.decode().removeprefix(keys.base).startswith(("due:", "schedules")):
            for member in client.zrange(raw, 0, -1):
                client.zadd(raw, {member: int(time.time() * 1000) - 1000})
    client.publish(keys.control, "due 0")


def instructions(call: Callable[[], object]) -> int:
    """Bytecode instructions of a call: what it costs, whatever else the machine does."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
