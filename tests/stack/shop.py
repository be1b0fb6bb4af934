"""A workload that ends in every way a task can end, and the producer that keeps it going.

`streaq run tests.stack.shop:worker` works; `python -m tests.stack.shop PORT` enqueues and serves
its metrics on PORT, until it is told to stop.
"""

from __future__ import annotations

import os
import sys
import time

import anyio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from streaq import StreaqRetry, Worker
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


@worker.task
async def quick(number: int = 0) -> int:
    return number


@worker.task(max_tries=5)
async def slow(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


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


@worker.cron("* * * * * *")
async def tick() -> None:
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
    # More than there are slots, so that some wait and the last, which will not keep, expires.
    await worker.enqueue_many([slow.enqueue(0.3).start(priority="low") for _ in range(24)])
    await perishable.enqueue().start(priority="low")
    doomed = await slow.enqueue(60).start(priority="high")
    await anyio.sleep(0.2)
    await doomed.abort()


async def produce() -> None:
    async with worker:
        for number in range(10_000):
            async with anyio.create_task_group() as group:
                group.start_soon(serve_customers, number)
                group.start_soon(anyio.sleep, 2)


if __name__ == "__main__":
    metrics = serve_worker(worker, port=int(sys.argv[1]))
    try:
        anyio.run(produce)
    finally:
        metrics.close()
