"""Every server that the scripts must run on, and a workbench on each."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest

from tests.broker.bench import Bench
from tests.servers import Server, binaries

_numbers = count(1)


@pytest.fixture
def anyio_backend() -> str:
    """The broker's room is asyncio only; other loops reach it through the portal."""
    return "asyncio"


@pytest.fixture(scope="session", params=["valkey", "redis-7", "redis-6.2"])
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind in turn. On CI a missing one is a failure."""
    kind: str = request.param
    if kind not in binaries():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no {kind} binary here, and CI must test with it")
        pytest.skip(f"no {kind} binary here")
    with Server(kind, unix=True) as server:
        yield server


@pytest.fixture
async def bench(any_server: Server, anyio_backend: str) -> AsyncIterator[Bench]:
    """An empty server, and one queue on it."""
    with any_server.client() as client:
        client.flushall()
        client.script_flush()
    bench = Bench(any_server, f"q{next(_numbers)}")
    await bench.open()
    try:
        yield bench
    finally:
        await bench.close()
