"""streaq 7.2.0 from the package index, the reference that our API is compatible with.

Its documentation recommends uvloop (`anyio_kwargs={"use_uvloop": True}`), `enqueue_many` for
batches and a concurrency that suits the tasks; tasks are `silent` so that no log line is written
for each. The worker runs by `Worker.run_sync()`, which is what its command line calls for every
process. Waiting for many results needs a wider connection pool than its default of 64, which is
given there. With the option `backend: trio` worker and client run on Trio instead; with `loud` a
task is as it comes, and its log lines go to standard error (a file here), as by the command line.
"""

from __future__ import annotations

import logging.config
import time
from datetime import UTC, datetime

import _client as client
import _common as common
import anyio

from streaq import Worker

BACKEND = common.OPTIONS.get("backend", "asyncio")
UVLOOP = {"use_uvloop": True} if BACKEND == "asyncio" and common.OPTIONS.get("uvloop", True) else {}


def build(*, silent: bool = True, **more):
    """A worker with every benchmark task registered; `more` is for our own adapter's options."""
    worker = Worker(
        redis_url=common.URL,
        concurrency=common.CONCURRENCY,
        queue_name="bench",
        priorities=list(common.LANES) if common.OPTIONS.get("lanes") else None,
        anyio_backend=BACKEND,
        anyio_kwargs=dict(UVLOOP),
        **more,
    )
    return worker, register(worker, silent=silent)


def register(worker, *, silent: bool):
    """Register the tasks and give them back by name."""
    task = worker.task(silent=silent)

    async def noop() -> None:
        common.tick()

    async def stamp() -> int:
        return common.stamp_body()

    async def echo(payload: str) -> str:
        return common.echo_body(payload)

    async def nap() -> None:
        started = time.time_ns()
        await anyio.sleep(0.01)
        common.tick(started)

    def spin() -> None:
        common.spin_body()

    async def late(due_ms: int) -> None:
        common.late_body(due_ms)

    async def step(value: int) -> int:
        return common.step_body(value)

    async def hold() -> None:
        common.hold_began()
        try:
            await anyio.sleep(30)
        finally:
            common.hold_ended()

    bodies = [noop, stamp, echo, nap, spin, late, step, hold]
    return {body.__name__: task(body) for body in bodies}


def build_upstream():
    """Upstream holds one connection for each waiter; its client's pool stops at 64 unless told."""
    wide = {"redis_kwargs": {"max_connections": 25_000}} if common.OPTIONS.get("waits") else {}
    loud = bool(common.OPTIONS.get("loud"))
    if loud:
        from streaq.utils import default_log_config

        logging.config.dictConfig(default_log_config(UTC, verbose=False))
    return build(silent=not loud, **wide)


class StreaqPeer(client.AsyncPeer):
    def __init__(self, factory=build_upstream) -> None:
        self.factory = factory

    def run(self, main):
        return anyio.run(main, backend=BACKEND, backend_options=dict(UVLOOP))

    async def open(self) -> None:
        self.worker, self.tasks = self.factory()
        await self.worker.__aenter__()

    async def close(self) -> None:
        await self.worker.__aexit__(None, None, None)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def gather(self, coroutines) -> list:
        results: list = [None] * len(coroutines)

        async def one(index: int, coroutine) -> None:
            results[index] = await coroutine

        async with anyio.create_task_group() as group:
            for index, coroutine in enumerate(coroutines):
                group.start_soon(one, index, coroutine)
        return results

    def prepare(self, task: str, args: tuple, at_ms: int | None, lane: str | None):
        call = self.tasks[task].enqueue(*args)
        if at_ms is not None:
            due = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
            return call.start(schedule=due, priority=lane)
        return call.start(priority=lane) if lane else call

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        return await self.prepare(task, args, at_ms, lane)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        await self.worker.enqueue_many([self.prepare(*call) for call in calls])

    async def result(self, handle):
        return (await handle.result(120)).result

    async def abort(self, handle) -> None:
        await handle.abort(10)

    async def chain(self):
        step = self.tasks["step"]
        return await step.enqueue(0).then(step).then(step)

    def work(self) -> None:
        worker, _ = self.factory()
        common.gate()
        worker.run_sync()


if __name__ == "__main__":
    client.main(StreaqPeer(), __doc__, ["streaq", "coredis", "hiredis", "uvloop", "trio"])
