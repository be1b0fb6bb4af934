"""On a real Cluster of three nodes: scripts, blocking reads and subscriptions find their node."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Generator
from contextlib import ExitStack

import pytest
from redis.crc import key_slot
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from streaq.broker.connection import Backoff, ConnectionSettings, Connector, is_connection_lost
from streaq.types import StreaqError
from tests.servers import Server, free_port, kinds

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SLOTS = 16384
ARGS = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=kinds())
def nodes(request: pytest.FixtureRequest) -> Generator[list[Server]]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(Server(request.param, args=ARGS, aof=True)) for _ in range(3)
        ]
        for i, server in enumerate(servers):
            with server.client() as client:
                slots = range(SLOTS * i // 3, SLOTS * (i + 1) // 3)
                client.execute_command("CLUSTER", "ADDSLOTS", *slots)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        with servers[0].client() as client:
            for server in servers[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        for server in servers:
            wait_until_whole(server)
        yield servers


def wait_until_whole(server: Server) -> None:
    deadline = time.monotonic() + 20
    with server.client() as client:
        while True:
            info = str(client.execute_command("CLUSTER", "INFO"))
            if "cluster_state:ok" in info and "cluster_known_nodes:3" in info:
                return
            assert time.monotonic() < deadline, f"the cluster does not form: {info}"
            time.sleep(0.02)


def settings(nodes: list[Server]) -> ConnectionSettings:
    return ConnectionSettings(cluster_nodes=[("127.0.0.1", node.port) for node in nodes[:2]])


# Three queues, one on each node.
QUEUES = [
    next(f"q{n}" for n in range(1000) if key_slot(f"q{n}".encode()) * 3 // SLOTS == i)
    for i in range(3)
]


async def test_scripts_run_where_their_keys_are(nodes: list[Server]) -> None:
    connector = Connector(settings(nodes))
    client = await connector.open()
    await connector.check(client)
    assert connector.address == ("127.0.0.1", nodes[0].port)
    assert connector.safe_url == f"cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}"
    sha = await client.script_load(
        "redis.call('SET', KEYS[1], ARGV[1]); return {KEYS[2], {redis.call('GET', KEYS[1])}, 1}"
    )
    sync = connector.open_sync()
    for queue, node in zip(QUEUES, nodes, strict=True):
        keys = (f"streaq:{{{queue}}}:a", f"streaq:{{{queue}}}:b")
        expected = [keys[1].encode(), [b"\xff"], 1]
        assert await client.evalsha(sha, 2, *keys, b"\xff") == expected
        assert sync.evalsha(sha, 2, *keys, b"\xff") == expected
        with node.client() as there:
            assert there.get(keys[0]) == b"\xff"
    sync.close()
    await client.aclose()
    await connector.close()


async def test_an_unknown_script_is_no_script(nodes: list[Server]) -> None:
    connector = Connector(settings(nodes))
    client = await connector.open()
    for queue in QUEUES:
        with pytest.raises(NoScriptError):
            await client.evalsha("0" * 40, 1, f"{{{queue}}}")
        # As the recovery does it: EVAL goes to the same node, and teaches it the script.
        assert await client.eval("return KEYS[1]", 1, f"{{{queue}}}") == f"{{{queue}}}".encode()
    await client.aclose()


async def test_blocking_reads_and_subscriptions(nodes: list[Server]) -> None:
    connector = Connector(settings(nodes))
    client = await connector.open()
    for queue in QUEUES:
        stream, channel = f"streaq:{{{queue}}}:s", f"streaq:{{{queue}}}:c"
        await client.xgroup_create(stream, "g", mkstream=True)
        read = asyncio.create_task(
            client.execute_command(
                "XREADGROUP", "GROUP", "g", "w", "BLOCK", 10_000, "STREAMS", stream, ">"
            )
        )
        pubsub = client.pubsub()
        await pubsub.subscribe(channel)
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        # As the scripts do it, published on the node that has the queue's keys.
        script = "redis.call('XADD', KEYS[1], '*', 'k', 'v'); redis.call('PUBLISH', KEYS[2], 'hi')"
        await client.eval(script, 2, stream, channel)
        [[name, [[_, fields]]]] = await read
        assert (name, fields) == (stream.encode(), {b"k": b"v"})
        message = await pubsub.get_message(timeout=5)
        assert (message["channel"], message["data"]) == (channel.encode(), b"hi")
        await pubsub.aclose()
    await client.aclose()


async def test_the_users_client_decodes(nodes: list[Server]) -> None:
    connector = Connector(settings(nodes))
    client = await connector.open_decoded()
    for queue in QUEUES:
        await client.set(f"{{{queue}}}", "x")
        assert await client.get(f"{{{queue}}}") == "x"
    await client.aclose()


# redis-py drops what it had of a dead node without closing it, and warns when that is freed: let it
# be here, where the warning is ignored, and not in another test.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_client_outlives_a_node(nodes: list[Server]) -> None:
    connector = Connector(settings(nodes))
    client = await connector.open()
    sync = connector.open_sync()
    key, node = f"{{{QUEUES[0]}}}", nodes[0]
    await client.set(key, "v")
    assert sync.get(key) == b"v"
    node.kill()
    for _ in range(3):
        with pytest.raises((RedisError, RedisClusterException)) as lost:
            await client.get(key)
        assert is_connection_lost(lost.value), repr(lost.value)
        with pytest.raises((RedisError, RedisClusterException)) as lost:
            await asyncio.to_thread(sync.get, key)
        assert is_connection_lost(lost.value), repr(lost.value)
    node.start()
    for call in (client.get, lambda k: asyncio.to_thread(sync.get, k)):
        backoff = Backoff(cap=0.2)
        while True:
            try:
                assert await call(key) == b"v"
                break
            except Exception as e:
                if not is_connection_lost(e):
                    raise
                await asyncio.sleep(backoff.next_delay())
    sync.close()
    await client.aclose()
    del client
    gc.collect()


async def test_what_is_said_when_there_is_no_cluster() -> None:
    with Server() as single:
        for port in (free_port(), single.port):
            connector = Connector(ConnectionSettings(cluster_nodes=[("127.0.0.1", port)]))
            client = await connector.open()
            with pytest.raises(StreaqError, match="no Cluster answers there"):
                await connector.check(client)
            await client.aclose()
