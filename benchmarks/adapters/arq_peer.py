"""arq: `max_jobs=32`, pickle (its default), uvloop, hiredis.

Its worker polls: with the documented default `poll_delay=0.5` it starts one batch of jobs each half
a second whatever the load, which is about 300 tasks a second at this concurrency. To show what arq
can do, `poll_delay` is set to 10 ms here, for the worker and for waiting on results; that costs an
idle worker 100 Redis calls a second. `log_results=False`. No bulk enqueue: the batch row awaits
`enqueue_job` calls with `asyncio.gather`. Sync functions run in a thread by `run_in_executor`, as
its documentation shows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import _client as client
import _common as common
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

POLL_S = 0.01
threads = ThreadPoolExecutor(common.CONCURRENCY)


async def noop(ctx) -> None:
    common.tick()


async def stamp(ctx) -> int:
    return common.stamp_body()


async def echo(ctx, payload: str) -> str:
    return common.echo_body(payload)


async def nap(ctx) -> None:
    started = time.time_ns()
    await asyncio.sleep(0.01)
    common.tick(started)


async def spin(ctx) -> None:
    await asyncio.get_running_loop().run_in_executor(threads, common.spin_body)


async def late(ctx, due_ms: int) -> None:
    common.late_body(due_ms)


async def hold(ctx) -> None:
    common.hold_began()
    try:
        await asyncio.sleep(30)
    finally:
        common.hold_ended()


class ArqPeer(client.AsyncPeer):
    missing = {"lanes": "no priorities", "chain": "no pipelines"}

    def settings(self) -> RedisSettings:
        return RedisSettings.from_dsn(common.URL)

    async def open(self) -> None:
        self.pool = await create_pool(self.settings())

    async def close(self) -> None:
        await self.pool.aclose()

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        due = None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)
        return await self.pool.enqueue_job(task, *args, _defer_until=due)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        for start in range(0, len(calls), 100):  # one connection each: bounded by the file limit
            part = calls[start : start + 100]
            await self.gather([self.enqueue(c[0], *c[1], at_ms=c[2]) for c in part])

    async def result(self, job):
        return await job.result(timeout=120, poll_delay=POLL_S)

    async def abort(self, job) -> None:
        await job.abort(timeout=10, poll_delay=POLL_S)

    def work(self) -> None:
        logging.disable(logging.WARNING)

        async def serve() -> None:
            worker = Worker(
                [noop, stamp, echo, nap, spin, late, hold],
                redis_settings=self.settings(),
                max_jobs=common.CONCURRENCY,
                poll_delay=POLL_S,
                allow_abort_jobs=True,
                log_results=False,
            )
            await worker.async_run()

        common.gate()
        self.run(serve)


if __name__ == "__main__":
    client.main(ArqPeer(), __doc__, ["arq", "redis", "hiredis", "uvloop"])
