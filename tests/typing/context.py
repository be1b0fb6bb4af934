"""The worker's context has the type that its lifespan gives; a task knows itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import assert_type

from streaq import Hook, StreaqCancelled, StreaqError, StreaqRetry, TaskContext, Worker
from streaq.types import ReturnCoroutine


@dataclass
class Resources:
    name: str
    size: int


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Resources]:
    yield Resources("pool", 3)


worker = Worker(lifespan=lifespan)
bare = Worker()

assert_type(worker, Worker[Resources])
assert_type(bare, Worker[None])


@worker.task
async def use_context() -> str:
    assert_type(worker.context, Resources)
    assert_type(worker.context.size, int)
    worker.context.color  # error
    number: int = worker.context.name  # error
    print(number)
    return worker.context.name


@worker.task
async def know_thyself() -> str:
    assert_type(know_thyself.context, TaskContext)
    assert_type(know_thyself.context.tries, int)
    assert_type(know_thyself.context.task_id, str)
    know_thyself.context.tries = 3  # error
    know_thyself.context.attempt  # error
    return know_thyself.context.fn_name


@worker.task
def sync_know_thyself() -> int:
    assert_type(sync_know_thyself.context, TaskContext)
    return sync_know_thyself.context.tries


@worker.task
async def try_thrice(kind: int) -> bool:
    if kind == 1:
        raise StreaqRetry("Retrying!")
    if kind == 2:
        raise StreaqRetry("Retrying!", delay=3)
    if kind == 3:
        raise StreaqRetry(delay=timedelta(seconds=3.5))
    if kind == 4:
        raise StreaqRetry(schedule=datetime(2030, 1, 1, tzinfo=UTC))
    if kind == 5:
        raise StreaqCancelled("enough")
    if kind == 6:
        raise StreaqRetry(delay="3")  # error
    if kind == 7:
        raise StreaqRetry(schedule=3)  # error
    if kind == 8:
        raise StreaqRetry(after=3)  # error
    return True


def errors_are_streaq_errors() -> tuple[StreaqError, StreaqError]:
    return StreaqRetry(), StreaqCancelled()


@worker.middleware
def timer(call_next: ReturnCoroutine) -> ReturnCoroutine:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        assert_type(timer.context, TaskContext)
        return await call_next(*args, **kwargs)

    return wrapper


@worker.middleware  # error
def no_middleware(n: int) -> int:
    return n


class Counting(Hook):
    """A hook of a user's own."""


configured = Worker(
    redis_url="redis://localhost:6379",
    concurrency=32,
    sync_concurrency=4,
    queue_name="other",
    priorities=["low", "high"],
    prefetch=0,
    tz=UTC,
    handle_signals=False,
    signing_secret="secret",  # noqa: S106
    idle_timeout=timedelta(minutes=1),
    grace_period=5,
    anyio_backend="trio",
    hooks=[Counting()],
    telemetry=False,
)


async def a_workers_life() -> None:
    async with worker as entered:
        assert_type(entered, Worker[Resources])
    worker.include(bare)
    await worker.run_async()
    assert_type(worker.running(), int)


def wrong_configuration() -> None:
    Worker("redis://localhost:6379", concurrency="16")  # error
    Worker(priorities=["low", 3])  # error
    Worker(anyio_backend="curio")  # error
    Worker(lifespan=3)  # error
    Worker(hooks=[3])  # error
    Worker(tz="Europe/Berlin")  # error
    Worker(color="red")  # error
    worker.include("other")  # error
