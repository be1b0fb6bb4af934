"""What the tests share: a local Valkey, workers on queues of their own, every event loop, and a
guard that lets no test leave a key behind.

Example::

    pytestmark = pytest.mark.anyio

    async def test_add(make_worker: MakeWorker) -> None:
        worker = make_worker()
        ...
        async with running(worker):
            assert (await (await add.enqueue(1, 2)).result(3)).result == 3
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
import redis
import structlog
from hypothesis import settings

from streaq import Worker
from streaq.broker.keys import STAY, Keys
from tests.servers import Server, binaries
from tests.support import MakeWorker

BACKENDS: dict[str, str | tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": "trio",
}

# The same examples are tried each time, unless ``STREAQ_EXPLORE`` says to look for others: what a
# random search finds is not to stop a change that has nothing to do with it.
settings.register_profile("same", derandomize=True)
if not int(os.environ.get("STREAQ_EXPLORE", "0")):
    settings.load_profile("same")

_numbers = count(1)
_passed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    # A shell without job control starts what it puts into the background with SIGINT ignored, and
    # the processes that the tests interrupt would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "leaves(*prefixes): keys without a TTL that the test leaves on purpose"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_passed] = report.passed
    return report


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every event loop a worker runs on. A module that needs but one overrides this."""
    return request.param


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for all tests of this process, on a Unix socket in a directory of its own."""
    with Server("valkey" if "valkey" in binaries() else "redis-7", unix=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(server: Server) -> str:
    """The URL of that server."""
    return server.url


@pytest.fixture(scope="session")
def redis_client(server: Server) -> Iterator[redis.Redis]:
    """A blocking client of that server, for looking at what is really there."""
    with server.client() as client:
        yield client


@pytest.fixture
def queue(redis_client: redis.Redis) -> Iterator[str]:
    """The name of a queue of this test's own; its keys are gone afterwards."""
    name = f"test-{next(_numbers)}-{uuid4().hex[:8]}"
    yield name
    if found := list(redis_client.scan_iter(f"{_prefix(name)}*", count=1000)):
        redis_client.delete(*found)


@pytest.fixture
def make_worker(redis_url: str, queue: str) -> MakeWorker:
    """Makes workers on the test's queue (``queue_name`` is appended to its name), without
    telemetry and signal handlers unless asked for."""

    def make(**options: Any) -> Worker[Any]:
        suffix = options.pop("queue_name", "")
        options.setdefault("redis_url", redis_url)
        options.setdefault("telemetry", False)
        options.setdefault("handle_signals", False)
        return Worker(queue_name=f"{queue}{suffix}", **options)

    return make


@pytest.fixture(autouse=True)
def logging_stays_as_it_was() -> Iterator[None]:
    """What one test makes of it, the docs' examples too, is nothing to the next."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)  # by the method: loggers remember what their levels let through
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def no_key_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every key of the test's queue has a TTL afterwards, or is one of those that stay."""
    if "queue" not in request.fixturenames:
        yield
        return
    name: str = request.getfixturevalue("queue")
    client: redis.Redis = request.getfixturevalue("redis_client")
    yield
    if not request.node.stash.get(_passed, False):
        return
    allowed = STAY + tuple(
        prefix for mark in request.node.iter_markers("leaves") for prefix in mark.args
    )
    if left := unexpected_keys(client, name, allowed):
        pytest.fail(f"keys left behind without a TTL: {', '.join(left)}")


def unexpected_keys(client: redis.Redis, queue: str, allowed: tuple[str, ...]) -> list[str]:
    """Keys of queues that begin with this name, without a TTL, and not allowed to stay."""
    keys = list(client.scan_iter(f"{_prefix(queue)}*", count=1000))
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.ttl(key)
    names = [key.decode() for key, ttl in zip(keys, pipeline.execute(), strict=True) if ttl == -1]
    return sorted(name for name in names if not name.partition("}:")[2].startswith(allowed))


def _prefix(queue: str) -> str:
    return Keys(queue).base.removesuffix("}:")
