"""A worker on every way to a server that it can be given, and the loops it runs itself."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from redis.asyncio import ConnectionPool

from streaq import StreaqError, Worker
from tests.servers import Server
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def answers(worker: Worker[Any]) -> bool:
    """Whether it runs a task and hears of its result."""

    @worker.task(name="double")
    async def double(val: int) -> int:
        return val * 2

    async with running(worker):
        task = await double.enqueue(21)
        return (await task.result(5)).result == 42


async def test_a_pool(make_worker: MakeWorker, redis_url: str) -> None:
    # Only its address and options are taken: nothing is ever opened in it.
    assert await answers(make_worker(redis_pool=ConnectionPool.from_url(redis_url)))


async def test_options_of_the_client(make_worker: MakeWorker) -> None:
    assert await answers(make_worker(redis_kwargs={"socket_timeout": 5, "client_name": "mine"}))
    # Whatever the user's other code wants, the worker's own connections read bytes.
    with pytest.warns(UserWarning, match="decode_responses in redis_kwargs is ignored"):
        worker = make_worker(redis_kwargs={"decode_responses": True})
    assert await answers(worker)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_password(queue: str) -> None:
    with Server(args=["--requirepass", "open sesame"], password="open sesame") as server:
        address = server.url.rpartition("@")[2]
        assert await answers(Worker(f"redis://:open%20sesame@{address}", telemetry=False))
        with pytest.raises(StreaqError, match="password") as e:
            async with Worker(f"redis://:wrong@{address}", telemetry=False):
                pass
        assert "wrong@" not in str(e.value)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_of_its_own(tmp_path: Path) -> None:
    assert await answers(Worker("embedded://", queue_name="own", telemetry=False))
    # On disk, and found again there.
    first = Worker(f"embedded://{tmp_path}/data", telemetry=False, queue_name="kept")
    async with first:
        task = await first.enqueue_unsafe("double", 4)
    second = Worker(f"embedded://{tmp_path}/data", telemetry=False, queue_name="kept")
    assert await answers(second)
    async with second:
        assert (await second.result_by_id(task.id, 5)).result == 8


async def test_the_users_own_client(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker()
    with pytest.raises(StreaqError, match="async with worker"):
        worker.redis  # noqa: B018 - asking raises
    async with worker:
        if _on_trio():
            with pytest.raises(StreaqError, match="Trio"):
                worker.redis  # noqa: B018 - asking raises
            return
        await worker.redis.set(f"{queue}-mine", "é", ex=60)
        assert await worker.redis.get(f"{queue}-mine") == "é"
    redis_client.delete(f"{queue}-mine")


def _on_trio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize(
    ("backend", "options", "loop"),
    [
        ("asyncio", {}, "asyncio"),
        ("asyncio", {"use_uvloop": True}, "uvloop"),
        ("trio", {}, "trio"),
    ],
)
def test_run_sync(
    make_worker: MakeWorker, backend: str, options: dict[str, Any], loop: str
) -> None:
    worker = make_worker(anyio_backend=backend, anyio_kwargs=options)
    worker.burst = True
    seen: list[str] = []

    @worker.task
    async def which() -> None:
        if backend == "trio":
            seen.append(type(sys.modules["trio"].lowlevel.current_task()).__module__)
        else:
            seen.append(type(asyncio.get_running_loop()).__module__)

    async def enqueue() -> None:
        async with worker:
            await which.enqueue()

    anyio.run(enqueue)
    worker.run_sync()
    assert len(seen) == 1
    assert seen[0].startswith(loop)
    assert worker.counters == {"completed": 1}
    assert worker.anyio_kwargs == options
