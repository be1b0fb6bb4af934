"""The background work of a small shop, and customers that keep it busy.

Run it against a Redis of yours, each line in a terminal of its own::

    streaq run orders:worker
    python orders.py

or have ``streaq demo`` do all of that, with a server of its own, and show what happens.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import anyio

from streaq import StreaqRetry, Worker


@dataclass(frozen=True)
class Order:
    number: int
    cents: int


class Service:
    """Stands in for somebody else's HTTP API: takes its time, and fails now and then."""

    def __init__(self, name: str, failures: float = 0.0) -> None:
        self.name = name
        self.failures = failures

    async def call(self, path: str) -> str:
        await anyio.sleep(random.uniform(0.002, 0.02))
        if random.random() < self.failures:
            raise ConnectionError(f"{self.name}{path}: 503 Service Unavailable")
        return f"{self.name}{path}"


@dataclass
class Services:
    """What tasks share for as long as the worker runs: HTTP clients, database pools."""

    bank: Service
    rates: Service
    express: Service


@asynccontextmanager
async def lifespan() -> AsyncIterator[Services]:
    yield Services(Service("bank", 0.03), Service("rates", 0.4), Service("express", 0.3))


worker = Worker(
    redis_url=os.environ.get("REDIS_URL", "redis://localhost:6379"),
    queue_name="orders",
    concurrency=32,
    lifespan=lifespan,
)


# A pipeline: the result of one task is the input of the next.


@worker.task(timeout=5)
async def charge(order: Order) -> tuple[Order, str]:
    payment = await worker.context.bank.call(f"/charges/{order.number}")
    return order, payment


@worker.task
async def receipt(order: Order, payment: str) -> str:
    return f"order {order.number}: {order.cents / 100:.2f} EUR, paid by {payment}"


# CPU-bound and not async: it runs in a thread, and the event loop goes on.


@worker.task
def thumbnail(photo: int, *, size: int = 192, shrink: int = 4) -> int:
    """Shrink a photo by averaging squares of its pixels; how bright it is, from 0 to 255."""
    pixels = random.Random(photo).randbytes(size * size)
    small = [
        sum(
            pixels[(row + i) * size + column + j]
            for i in range(shrink)
            for j in range(shrink)
        ) // shrink**2
        for row in range(0, size, shrink)
        for column in range(0, size, shrink)
    ]  # fmt: skip
    return sum(small) // len(small)


# Somebody else's service is down now and then: try again, a little later each time.


@worker.task(max_tries=10)
async def exchange_rate(currency: str) -> str:
    try:
        return await worker.context.rates.call(f"/EUR/{currency}")
    except ConnectionError as e:
        raise StreaqRetry(str(e), delay=0.05 * exchange_rate.context.tries) from e


# Some errors are there to stay: these fail at once, and the result says why.


@worker.task
async def import_row(row: str) -> Order:
    number, cents = row.split(";")
    return Order(int(number), int(cents))


# A fail-over: the second runs only if the first fails, with the same arguments.


@worker.task
async def express_label(order: Order) -> str:
    return await worker.context.express.call(f"/labels/{order.number}")


@worker.task
async def standard_label(order: Order) -> str:
    return f"standard/labels/{order.number}"


# Later, in bulk, and by the clock.


@worker.task
async def reminder(order: Order) -> str:
    return f"rate your order {order.number}"


@worker.task
async def newsletter(customer: int) -> int:
    await anyio.sleep(0.001)
    return customer


@worker.cron("* * * * * *")
async def count_stock() -> int:
    return random.randrange(1000)


# ------------------------------------------------------------------------------- customers


async def buy(number: int) -> None:
    """One customer buys something: everything that follows is enqueued."""
    order = Order(number, random.randrange(500, 20_000))
    await (charge.enqueue(order).start(priority="high") | receipt)
    await (express_label.enqueue(order) ^ standard_label)
    await reminder.enqueue(order).start(delay=random.uniform(0.5, 2))
    if number % 2 == 0:
        await thumbnail.enqueue(number).start(priority="low")
    if number % 3 == 0:
        await exchange_rate.enqueue(random.choice(["USD", "GBP", "JPY"]))
    if number % 10 == 0:
        row = f"{number};{order.cents}" if number % 20 else f"{number};gratis"
        await import_row.enqueue(row)


async def shop(seconds: float, *, customers: int = 3, mailing: int = 3000) -> None:
    """Ten times a second some customers buy something, until the shop closes; now and then the
    newsletter goes out to everybody, in one batch.
    """
    closing = anyio.current_time() + seconds
    for tick in count():
        if anyio.current_time() >= closing:
            break
        async with anyio.create_task_group() as group:
            for i in range(customers):
                group.start_soon(buy, tick * customers + i)
        if tick % 300 == 10:
            mails = [newsletter.enqueue(i).start(priority="low") for i in range(mailing)]
            await worker.enqueue_many(mails)
        await anyio.sleep(0.1)


async def main() -> None:
    async with worker:
        await shop(seconds=10)


if __name__ == "__main__":
    anyio.run(main)
