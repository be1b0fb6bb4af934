"""docket (pydocket): `Worker(docket, concurrency=32)`, uvloop and hiredis, no metrics endpoint.

Batches use `Docket.add_many`. `minimum_check_interval` is the command line's default (100 ms) and
the log level is raised to warnings. The client's pool is widened in the URL (`max_connections`):
with its default of 100 the worker leaves messages behind at concurrency 100, and waiting for
results fails. Results wait by `Execution.get_result` (pub/sub), aborts by `Docket.cancel`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

import _client as client
import _common as common
from docket import Docket, Worker


async def noop() -> None:
    common.tick()


async def stamp() -> int:
    return common.stamp_body()


async def echo(payload: str) -> str:
    return common.echo_body(payload)


async def nap() -> None:
    started = time.time_ns()
    await asyncio.sleep(0.01)
    common.tick(started)


async def spin() -> None:
    await asyncio.to_thread(common.spin_body)


async def late(due_ms: int) -> None:
    common.late_body(due_ms)


async def hold() -> None:
    common.hold_began()
    try:
        await asyncio.sleep(30)
    finally:
        common.hold_ended()


CONNECTIONS = 25_000 if common.OPTIONS.get("waits") else 1_000
TASKS = {f.__name__: f for f in [noop, stamp, echo, nap, spin, late, hold]}


class DocketPeer(client.AsyncPeer):
    missing = {"lanes": "no priorities", "chain": "no pipelines"}

    def make(self) -> Docket:
        docket = Docket(name="bench", url=f"{common.URL}?max_connections={CONNECTIONS}")
        for task in TASKS.values():
            docket.register(task)
        return docket

    async def open(self) -> None:
        self.docket = await self.make().__aenter__()

    async def close(self) -> None:
        await self.docket.__aexit__(None, None, None)

    def due(self, at_ms: int | None) -> datetime | None:
        return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        return await self.docket.add(TASKS[task], when=self.due(at_ms))(*args)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        await self.docket.add_many(
            self.docket.call(TASKS[c[0]], when=self.due(c[2]))(*c[1]) for c in calls
        )

    async def result(self, execution):
        return await execution.get_result(timeout=timedelta(seconds=120))

    async def abort(self, execution) -> None:
        await self.docket.cancel(execution.key)

    def work(self) -> None:
        logging.disable(logging.WARNING)
        check = timedelta(seconds=common.OPTIONS.get("check_s", 0.1))

        async def serve() -> None:
            async with self.make() as docket:
                options = {"concurrency": common.CONCURRENCY, "minimum_check_interval": check}
                async with Worker(docket, **options) as worker:
                    await worker.run_forever()

        common.gate()
        self.run(serve)


if __name__ == "__main__":
    client.main(DocketPeer(), __doc__, ["pydocket", "redis", "hiredis", "uvloop"])
