"""SAQ on Redis: `Queue.from_url`, hiredis and uvloop as its README suggests, `concurrency=32`.

The worker runs in this process by `Worker.start()`, as the `saq` command does for each process, and
without logging below warnings (its default). SAQ has no bulk enqueue: `Queue.map` awaits one
`enqueue` per job with `asyncio.gather`, so the batch row does that too. `max_concurrent_ops` of the
queue is raised from 20 to 100 so that 100 concurrent enqueues may be under way at once. Results are
awaited by `Job.refresh`, which listens to a shared subscription; it can miss a result that comes
while it begins to listen, so it is asked again after two seconds. Its `scheduled` time is in whole
seconds. Its abort timer is left at the default of one second.
"""

from __future__ import annotations

import asyncio
import math
import time

import _client as client
import _common as common
from saq import Queue, Worker


async def noop(ctx) -> None:
    common.tick()


async def stamp(ctx) -> int:
    return common.stamp_body()


async def echo(ctx, *, payload: str) -> str:
    return common.echo_body(payload)


async def nap(ctx) -> None:
    started = time.time_ns()
    await asyncio.sleep(0.01)
    common.tick(started)


def spin(ctx) -> None:
    common.spin_body()


async def late(ctx, *, due_ms: int) -> None:
    common.late_body(due_ms)


async def hold(ctx) -> None:
    common.hold_began()
    try:
        await asyncio.sleep(30)
    finally:
        common.hold_ended()


TASKS = [noop, stamp, echo, nap, spin, late, hold]
NAMES = {"echo": "payload", "late": "due_ms"}


def queue() -> Queue:
    return Queue.from_url(common.URL, max_concurrent_ops=max(100, common.CONCURRENCY))


class SaqPeer(client.AsyncPeer):
    missing = {
        "lanes": "job priorities exist only on its Postgres queue",
        "chain": "no pipelines",
    }

    async def open(self) -> None:
        self.queue = queue()
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        more = {"scheduled": math.ceil(at_ms / 1000)} if at_ms is not None else {}
        if args:
            more[NAMES[task]] = args[0]
        return await self.queue.enqueue(task, timeout=60, **more)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        await self.gather([self.enqueue(c[0], *c[1], at_ms=c[2]) for c in calls])

    async def result(self, job):
        for _ in range(60):
            try:
                await job.refresh(until_complete=2)
            except TimeoutError:
                continue
            return job.result
        raise TimeoutError

    async def abort(self, job) -> None:
        await job.abort("benchmark")

    def work(self) -> None:
        async def serve() -> None:
            source = queue()
            worker = Worker(source, functions=TASKS, concurrency=common.CONCURRENCY)
            await source.connect()
            await worker.start()

        common.gate()
        self.run(serve)


if __name__ == "__main__":
    client.main(SaqPeer(), __doc__, ["saq", "redis", "hiredis", "uvloop"])
