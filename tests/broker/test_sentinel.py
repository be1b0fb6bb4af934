"""Through Sentinel, with real ones: clients find the master, and follow it when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from streaq.broker.connection import Backoff, ConnectionSettings, Connector, is_connection_lost
from streaq.types import StreaqError
from tests.servers import Server, free_port, kinds

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

NAME = "orders"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Watched:
    """A master with a replica, and the Sentinel that watches them."""

    master: Server
    replica: Server
    sentinel: Server

    @property
    def settings(self) -> ConnectionSettings:
        return ConnectionSettings(
            url="redis://:pw@",
            # Nobody listens at the first, as when one Sentinel of three is down.
            sentinel_nodes=[("127.0.0.1", free_port()), ("127.0.0.1", self.sentinel.port)],
            sentinel_master=NAME,
        )

    async def knows_replica(self) -> None:
        """Returns when the Sentinel could promote the replica."""
        with self.sentinel.client() as client:
            while not any(  # noqa: ASYNC110 - a Sentinel's clients have to ask
                "slave" in row["flags"] and row["master-link-status"] == "ok"
                for row in client.sentinel_slaves(NAME)
            ):
                await asyncio.sleep(0.05)


@pytest.fixture(params=kinds())
def watched(request: pytest.FixtureRequest) -> Generator[Watched]:
    login = ("--requirepass", "pw", "--masterauth", "pw", "--repl-diskless-sync-delay", "0")
    with ExitStack() as stack:
        master = stack.enter_context(Server(request.param, args=login, password="pw"))
        replicaof = ("--replicaof", "127.0.0.1", str(master.port))
        replica = Server(request.param, args=(*login, *replicaof), password="pw")
        stack.enter_context(replica)
        config = [
            f"sentinel monitor {NAME} 127.0.0.1 {master.port} 1",
            f"sentinel auth-pass {NAME} pw",
            f"sentinel down-after-milliseconds {NAME} 300",
            f"sentinel failover-timeout {NAME} 2000",
        ]
        sentinel = stack.enter_context(Server(request.param, sentinel=config))
        if request.param != "redis-6.2":
            # What takes ten seconds and eight by default, and cannot be configured in 6.2.
            with sentinel.client() as client:
                client.execute_command(
                    "SENTINEL", "DEBUG", "INFO-PERIOD", 100, "PUBLISH-PERIOD", 100
                )
        yield Watched(master, replica, sentinel)


async def until(call: Any) -> None:
    """Repeat the call as a worker would, until it succeeds."""
    backoff = Backoff(cap=0.2)
    while True:
        try:
            await call()
        except Exception as e:
            if not is_connection_lost(e):
                raise
            await asyncio.sleep(backoff.next_delay())
        else:
            return


async def test_clients_follow_the_master(watched: Watched) -> None:
    connector = Connector(watched.settings)
    client, decoded, sync = (
        await connector.open(),
        await connector.open_decoded(),
        connector.open_sync(),
    )
    assert connector.safe_url.startswith("sentinel://127.0.0.1:")
    assert "pw" not in connector.safe_url
    await connector.check(client)
    await client.set("k", b"\xff")
    assert await client.eval("return {KEYS[1], 1}", 1, "k") == [b"k", 1]
    await decoded.set("text", "x")
    assert sync.get("k") == b"\xff"
    await client.wait(1, 5000)
    await watched.knows_replica()
    reader = asyncio.create_task(client.blpop(["never"]))

    watched.master.kill()

    with pytest.raises(redis.RedisError) as lost:
        await reader
    assert is_connection_lost(lost.value)
    await until(lambda: client.set("after", "failover"))
    with watched.replica.client() as replica:
        assert replica.get("after") == b"failover"
    assert await client.get("k") == b"\xff"
    await until(lambda: decoded.get("text"))
    assert await decoded.get("text") == "x"
    await until(lambda: asyncio.to_thread(sync.ping))
    assert sync.get("after") == b"failover"
    await connector.check(client)
    sync.close()
    await client.aclose()
    await decoded.aclose()
    await connector.close()


@pytest.mark.parametrize("watched", kinds("valkey", "redis-7"), indirect=True)
async def test_a_master_that_is_replaced_while_it_lives(watched: Watched) -> None:
    connector = Connector(watched.settings)
    client = await connector.open()
    await client.set("k", "v")
    await client.wait(1, 5000)
    await watched.knows_replica()
    reader = asyncio.create_task(client.blpop(["never"]))
    with watched.sentinel.client() as sentinel:
        sentinel.execute_command("SENTINEL", "FAILOVER", NAME)

    with pytest.raises(redis.RedisError) as lost:
        await reader
    assert is_connection_lost(lost.value)

    async def write_to_the_new_master() -> None:
        await client.set("after", "failover")
        with watched.replica.client() as replica:
            if replica.get("after") != b"failover":
                raise redis.ConnectionError("written to the old one")

    await until(write_to_the_new_master)
    await client.aclose()
    await connector.close()


async def test_what_is_said_when_there_is_no_master(watched: Watched) -> None:
    nodes = watched.settings.sentinel_nodes
    for settings, says in (
        (ConnectionSettings(sentinel_nodes=nodes, sentinel_master="other"), "no Sentinel knows"),
        (ConnectionSettings(sentinel_nodes=[("127.0.0.1", free_port())]), "no Sentinel knows"),
        (ConnectionSettings(sentinel_nodes=nodes, sentinel_master=NAME), "refuses the login"),
    ):
        connector = Connector(settings)
        client = await connector.open()
        with pytest.raises(StreaqError, match=says) as caught:
            await connector.check(client)
        assert "\n" not in str(caught.value)
        await client.aclose()
        await connector.close()


@pytest.mark.parametrize("kind", kinds())
async def test_a_sentinel_with_a_password(kind: str) -> None:
    with Server(kind) as master:
        config = [f"sentinel monitor {NAME} 127.0.0.1 {master.port} 1", "requirepass spw"]
        with Server(kind, sentinel=config, password="spw") as sentinel:
            settings = ConnectionSettings(
                sentinel_nodes=[("127.0.0.1", sentinel.port)],
                sentinel_master=NAME,
                sentinel_kwargs={"password": "spw"},
            )
            connector = Connector(settings)
            client = await connector.open()
            await connector.check(client)
            with connector.open_sync() as sync:
                assert sync.ping()
            await client.aclose()
            await connector.close()
