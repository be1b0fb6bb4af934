"""A workload that ends in every way a task can end, and the producer that keeps it going.

`streaq run tests.stack.shop:worker` works; `python -m tests.stack.shop PORT` enqueues and serves
its metrics on PORT, until it is told to stop.
"""

from __future__ import annotations

import json
import os
import sys
import time

import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from redis.exceptions import RedisError

from streaq import StreaqError, StreaqRetry, Worker
from streaq.telemetry.serve import serve_worker

# Every span is sampled, and sent nowhere: exemplars need no more than that.
trace.set_tracer_provider(TracerProvider())

worker = Worker(
    redis_url=os.environ["REDIS_URL"],
    queue_name="shop",
    concurrency=8,
    idle_timeout=3,
    grace_period=1,
)


stranger = Worker(
    redis_url=os.environ["REDIS_URL"],
    queue_name="shop",
    serializer=lambda _: b"not a pickle",
    telemetry=False,
)


@worker.task
async def quick(number: int = 0) -> int:
    return number


@worker.task(max_tries=5)
async def slow(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


@worker.task(max_tries=5)
async def patient() -> None:
    await anyio.sleep(6)


@worker.task(max_tries=1)
async def once(seconds: float) -> None:
    await anyio.sleep(seconds)


@worker.task
async def endless() -> None:
    await anyio.sleep(60)


@worker.task
async def blocking() -> None:
    time.sleep(0.2)  # noqa: ASYNC251 - it is to hold up the loop


@worker.task
async def broken(number: int = 0) -> int:
    raise ValueError(f"there is no order {number}")


@worker.task
async def flaky() -> int:
    if flaky.context.tries < 2:
        raise StreaqRetry("not yet", delay=1)
    return flaky.context.tries


@worker.task(timeout=0.2, retry_timeouts=True, max_tries=2)
async def hanging() -> None:
    await anyio.sleep(60)


@worker.task(unique=True)
async def lonely() -> None:
    await anyio.sleep(0.5)


@worker.task(expire=0.05)
async def perishable() -> None:
    pass


# Rare enough that none is missed on a slow machine while a worker is alive.
@worker.cron("*/5 * * * * *")
async def tick() -> None:
    pass


@worker.cron("*/5 * * * * *", max_schedule_drift=0)
async def punctual() -> None:
    pass


async def serve_customers(number: int) -> None:
    """One round: something for every status, kind, reason and exception."""
    await (quick.enqueue(number).start(priority="high") | quick)
    await quick.enqueue(number).start(delay=1.5)
    await slow.enqueue(1.2).then(quick)
    await broken.enqueue(number)
    await broken.enqueue(number).then(quick)
    await (broken.enqueue(number) ^ quick)
    await flaky.enqueue()
    await hanging.enqueue()
    await blocking.enqueue().start(priority="high")
    await lonely.enqueue()
    await lonely.enqueue()
    await worker.enqueue_unsafe("nobody")
    await stranger.enqueue_unsafe("quick")
    # Always some that a fault can hit in their middle, and that a shutdown cannot wait for.
    await patient.enqueue().start(priority="high")
    await once.enqueue(1.5).start(priority="high")
    # More than there are slots, so that some wait and the last, which will not keep, expires.
    await worker.enqueue_many([slow.enqueue(0.3).start(priority="low") for _ in range(24)])
    await perishable.enqueue().start(priority="low")
    doomed = await endless.enqueue().start(priority="high")
    await anyio.sleep(0.2)
    await doomed.abort()


async def open_shop(number: int) -> None:
    """Serve customers; those who come while Redis is away go home."""
    try:
        await serve_customers(number)
    except (StreaqError, RedisError, OSError) as e:
        print(json.dumps({"event": "customer.left", "error": type(e).__name__}), flush=True)


async def produce() -> None:
    async with worker, stranger:
        for number in range(10_000):
            async with anyio.create_task_group() as group:
                group.start_soon(open_shop, number)
                group.start_soon(anyio.sleep, 2)


if __name__ == "__main__":
    metrics = serve_worker(worker, port=int(sys.argv[1]))
    try:
        anyio.run(produce)
    finally:
        metrics.close()
