"""A task whose worker died in its last try ends with the last error that was seen, if any was."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import redis

from streaq import Hook, StreaqError, StreaqRetry, Worker
from streaq.broker.exchange import Request
from streaq.broker.keys import GROUP, Keys
from streaq.hooks import Ending
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


class Retried(Hook):
    def __init__(self) -> None:
        self.seen = anyio.Event()

    def on_retry(self, e: Ending) -> None:
        self.seen.set()


async def die_with(worker: Worker[Any], client: redis.Redis, queue: str) -> None:
    """Claim its next task as a worker that is never heard of again."""
    broker, keys = worker._session.broker(), Keys(queue)
    (registry,) = client.keys(f"{keys.base}registry:*")
    exchange = broker.exchanger("dead", 60_000, worker.priorities)
    request = Request([], [], 1, 0, reclaim=True, resent=False)
    (claimed,) = (await exchange(registry.decode().rpartition(":")[2], request)).claimed
    stream = keys.stream(claimed.priority)
    client.xclaim(stream, GROUP, "dead", 0, [claimed.message_id], idle=10**9, justid=True)


async def test_the_last_real_error_with_the_tries_in_its_notes(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Retried()
    worker = make_worker(hooks=[hook])

    @worker.task(max_tries=2)
    async def flaky() -> None:
        try:
            int("no number")
        except ValueError as e:
            raise StreaqRetry("again", delay=3600) from e

    async with worker:
        task = await flaky.enqueue()
        async with running(worker):
            with anyio.fail_after(10):
                await hook.seen.wait()
        broker = worker._session.broker()
        await broker.hasten(worker.priorities)
        await broker.tick(10, worker.priorities)
        await die_with(worker, redis_client, queue)
        async with running(worker):
            result = await task.result(10)
    assert not result.success
    assert result.tries == 2
    assert "no number" in str(result.exception)
    assert type(result.exception) is ValueError
    assert result.exception.__notes__ == ["streaq gave up after 2 of 2 tries."]


async def test_no_error_was_ever_seen(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker()

    @worker.task(max_tries=1)
    async def deadly() -> None: ...

    async with worker:
        async with running(worker):
            pass  # so that its functions are known
        task = await deadly.enqueue()
        await die_with(worker, redis_client, queue)
        async with running(worker):
            result = await task.result(10)
    assert isinstance(result.exception, StreaqError)
    assert "died during every one of its 1 tries" in str(result.exception)
