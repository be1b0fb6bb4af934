"""Clients of real servers of every kind: they speak raw bytes, never send anything twice, survive
restarts, and say clearly what is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio as aredis
import trustme
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from streaq.broker import connection
from streaq.broker.connection import (
    AsyncClient,
    Backoff,
    ConnectionSettings,
    Connector,
    is_connection_lost,
)
from streaq.types import StreaqError
from tests.broker.fakes import fake_server
from tests.servers import Server, free_port, kinds

pytestmark = pytest.mark.anyio

BINARY = bytes(range(256))
OK = b"+OK\r\n"


@pytest.fixture(
    params=[("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(scope="module", params=kinds())
def server(request: pytest.FixtureRequest) -> Generator[Server]:
    with Server(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def valkey() -> Generator[Server]:
    with Server() as running:
        yield running


@asynccontextmanager
async def opened(connector: Connector, *, decoded: bool = False) -> AsyncGenerator[Any]:
    client = await (connector.open_decoded() if decoded else connector.open())
    try:
        yield client
    finally:
        await client.aclose()
        await connector.close()


async def check(**settings: Any) -> None:
    connector = Connector(ConnectionSettings(**settings))
    async with opened(connector) as client:
        await connector.check(client)


async def complaint(**settings: Any) -> str:
    """What ``check`` has against these settings."""
    with pytest.raises(StreaqError) as caught:
        await check(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------- raw bytes


async def test_bytes_come_back_as_they_went(server: Server) -> None:
    connector = Connector(ConnectionSettings(server.url))
    assert connector.address == ("127.0.0.1", server.port)
    assert connector.safe_url == server.url
    async with opened(connector) as client:
        await connector.check(client)
        await client.set(BINARY, BINARY)
        assert await client.get(BINARY) == BINARY
    with connector.open_sync() as sync:
        assert sync.get(BINARY) == BINARY


SCRIPT = "return {KEYS[1], ARGV[1], 7, false, {'a', {}}, redis.status_reply('fine')}"


async def test_replies_of_scripts_are_plain_lists(server: Server) -> None:
    connector = Connector(ConnectionSettings(server.url))
    expected = [b"k", BINARY, 7, None, [b"a", []], b"fine"]
    async with opened(connector) as client:
        sha = await client.script_load(SCRIPT)
        assert await client.evalsha(sha, 1, "k", BINARY) == expected
    with connector.open_sync() as sync:
        assert sync.evalsha(sha, 1, "k", BINARY) == expected


async def test_the_users_client_decodes(server: Server) -> None:
    async with opened(Connector(ConnectionSettings(server.url)), decoded=True) as client:
        await client.hset("h", mapping={"name": "värde"})
        assert await client.hgetall("h") == {"name": "värde"}


async def test_unix_socket() -> None:
    with Server(unix=True) as server:
        connector = Connector(ConnectionSettings(server.url))
        assert connector.address == (server.socket_path, 0)
        async with opened(connector) as client:
            await connector.check(client)
            await client.set("k", "v")
        with connector.open_sync() as sync:
            assert sync.get("k") == b"v"


async def test_database_and_options_of_url_and_kwargs(valkey: Server) -> None:
    settings = ConnectionSettings(f"{valkey.url}/3", kwargs={"client_name": "streaq-test"})
    async with opened(Connector(settings)) as client:
        info = await client.client_info()
    assert (info["db"], info["name"]) == (3, "streaq-test")
    with Connector(settings).open_sync() as sync:
        info = sync.client_info()
    assert (info["db"], info["name"]) == (3, "streaq-test")


# --------------------------------------------------------------------------------- one try


def hang_up_on(name: str) -> Any:
    return lambda words: None if words[0] == name else OK


async def test_a_call_is_never_sent_twice() -> None:
    async with fake_server(hang_up_on("INCRBY")) as fake:
        connector = Connector(ConnectionSettings(fake.url))
        async with opened(connector) as client:
            with pytest.raises(redis.ConnectionError):
                await client.incr("k")
        assert fake.times("INCRBY") == 1
        with connector.open_sync() as sync, pytest.raises(redis.ConnectionError):
            await asyncio.to_thread(sync.incr, "k")
        assert fake.times("INCRBY") == 2


async def test_not_even_if_the_user_asks_for_retries() -> None:
    kwargs = {
        "retry": Retry(NoBackoff(), 3),
        "retry_on_error": [redis.ConnectionError],
    }
    async with fake_server(hang_up_on("INCRBY")) as fake:
        connector = Connector(ConnectionSettings(fake.url, kwargs=kwargs))
        async with opened(connector) as client:
            with pytest.raises(redis.ConnectionError):
                await client.incr("k")
        assert fake.times("INCRBY") == 1
        async with opened(connector, decoded=True) as client:
            with pytest.raises(redis.ConnectionError):
                await client.incr("k")
        assert fake.times("INCRBY") == 1 + 4


# ------------------------------------------------------------------------------ time limits


async def test_blocking_reads_outlast_the_users_socket_timeout(valkey: Server) -> None:
    settings = ConnectionSettings(valkey.url, kwargs={"socket_timeout": 0.1})
    async with opened(Connector(settings)) as client:
        start = time.monotonic()
        assert await client.blpop(["nothing-here"], timeout=0.4) is None
        assert time.monotonic() - start >= 0.3


async def test_a_thread_does_not_hang_for_ever() -> None:
    async with fake_server(lambda words: b"" if words[0] == "PING" else OK) as fake:
        settings = ConnectionSettings(fake.url, kwargs={"socket_timeout": 0.2})
        with Connector(settings).open_sync() as sync, pytest.raises(redis.TimeoutError):
            await asyncio.to_thread(sync.ping)


def test_limit_of_the_threads_client() -> None:
    def limit(**kwargs: Any) -> object:
        with Connector(ConnectionSettings(kwargs=kwargs)).open_sync() as sync:
            return sync.get_connection_kwargs()["socket_timeout"]

    assert limit() == 5
    assert limit(socket_timeout=60) == 5
    assert limit(socket_timeout=None) == 5
    assert limit(socket_timeout=2) == 2


async def test_callers_wait_for_a_free_connection(valkey: Server) -> None:
    settings = ConnectionSettings(valkey.url, kwargs={"max_connections": 2})
    async with opened(Connector(settings)) as client:
        readers = [asyncio.create_task(client.blpop([f"wait-{i}"])) for i in range(15)]
        answers = await asyncio.gather(*(client.echo(str(i)) for i in range(300)))
        assert answers == [str(i).encode() for i in range(300)]
        await asyncio.gather(*(client.rpush(f"wait-{i}", "x") for i in range(15)))
        assert [key for key, _ in await asyncio.gather(*readers)] == [
            f"wait-{i}".encode() for i in range(15)
        ]


# ------------------------------------------------------------------------------ reconnecting


async def until_it_answers(client: AsyncClient) -> None:
    """As a worker would: wait out what ``is_connection_lost`` says, and nothing else."""
    backoff = Backoff()
    while True:
        try:
            await client.ping()
        except Exception as e:
            if not is_connection_lost(e):
                raise
            await asyncio.sleep(backoff.next_delay())
        else:
            return


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("unix", [False, True])
async def test_a_client_outlives_its_server(kind: str, unix: bool) -> None:
    with Server(kind, unix=unix, aof=True) as server:
        connector = Connector(ConnectionSettings(server.url))
        async with opened(connector) as client:
            for kill in (True, False):
                await client.set("k", "v")
                reader = asyncio.create_task(client.blpop(["never"]))
                await asyncio.gather(*(client.ping() for _ in range(10)))
                (server.kill if kill else server.stop)()
                with pytest.raises(redis.RedisError) as lost:
                    await reader
                assert is_connection_lost(lost.value)
                for _ in range(12):
                    with pytest.raises(redis.RedisError) as away:
                        await client.get("k")
                    assert is_connection_lost(away.value)
                await asyncio.to_thread(server.start)
                await until_it_answers(client)
                assert await client.get("k") == b"v"


async def test_a_server_that_turns_replica_is_waited_out(server: Server) -> None:
    connector = Connector(ConnectionSettings(server.url))
    async with opened(connector) as client:
        reader = asyncio.create_task(client.blpop(["never"]))
        while not (await client.info("clients"))["blocked_clients"]:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the server tells nobody when a client blocks
        await client.replicaof("127.0.0.1", free_port())
        try:
            with pytest.raises(redis.RedisError) as unblocked:
                await reader
            with pytest.raises(redis.RedisError) as refused:
                await client.set("k", "v")
            with pytest.raises(redis.RedisError) as script:
                await client.eval("return redis.call('SET', KEYS[1], 'v')", 1, "k")
            for caught in (unblocked, refused, script):
                assert is_connection_lost(caught.value), str(caught.value)
            with pytest.raises(StreaqError, match="this is a replica"):
                await connector.check(client)
        finally:
            await client.replicaof("NO", "ONE")


async def test_a_full_server_is_waited_out(server: Server) -> None:
    async with opened(Connector(ConnectionSettings(server.url))) as client:
        await client.config_set("maxmemory", "1")
        try:
            for call in (
                client.set("k", "v"),
                client.eval("return redis.call('SET', KEYS[1], 'v')", 1, "k"),
            ):
                with pytest.raises(redis.RedisError) as full:
                    await call
                assert is_connection_lost(full.value), str(full.value)
        finally:
            await client.config_set("maxmemory", "0")


# -------------------------------------------------------------------------- what is wrong


async def test_nobody_there() -> None:
    said = await complaint(url=f"redis://:hunter2@127.0.0.1:{free_port()}")
    assert said.startswith("redis://:***@127.0.0.1:")
    assert "no Redis server answers" in said
    assert "hunter2" not in said


async def test_a_cluster_with_an_old_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aredis.RedisCluster, "pubsub")
    monkeypatch.setattr(redis, "__version__", "7.4.0")
    with pytest.raises(StreaqError) as e:
        Connector(ConnectionSettings(cluster_nodes=[("localhost", 6379)]))
    assert str(e.value) == (
        "Redis Cluster needs redis-py 8 or newer, and 7.4.0 is installed: pip install -U redis."
    )


async def test_no_socket_there(tmp_path: Path) -> None:
    assert "no Redis server answers" in await complaint(url=f"unix://{tmp_path}/no.sock")


async def test_something_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CHECK_TIMEOUT", 0.2)
    async with fake_server(lambda _: b"") as fake:
        assert "no answer in time" in await complaint(url=fake.url)


@pytest.mark.parametrize("kind", kinds())
async def test_logins(kind: str) -> None:
    with Server(kind, args=("--requirepass", "right"), password="right") as server:
        address = f"127.0.0.1:{server.port}"
        await check(url=server.url)
        await check(url=f"redis://{address}", kwargs={"password": "right"})
        for url in (f"redis://{address}", f"redis://:wrong@{address}", f"redis://me:x@{address}"):
            said = await complaint(url=url)
            assert "refuses the login" in said
            assert "wrong" not in said


async def test_a_user_who_may_not_ask_for_info(valkey: Server) -> None:
    with valkey.client() as admin:
        admin.acl_setuser("few", enabled=True, passwords=["+x"], commands=["+ping"])
        admin.acl_setuser("fewer", enabled=True, passwords=["+x"], commands=["+get"])
    await check(url=f"redis://few:x@127.0.0.1:{valkey.port}")
    assert "extend its ACL" in await complaint(url=f"redis://fewer:x@127.0.0.1:{valkey.port}")


@pytest.mark.parametrize(
    ("version", "welcome"),
    [("6.0.16", False), ("5.0.7", False), ("6.2.0", True), ("10.0.0", True), ("255.255.255", True)],
)
async def test_version(version: str, welcome: bool) -> None:
    text = f"# Server\r\nredis_version:{version}\r\n".encode()

    def reply(words: list[str]) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(text), text) if words[0] == "INFO" else b"+PONG\r\n"

    async with fake_server(reply) as fake:
        if welcome:
            await check(url=fake.url)
        else:
            short = ".".join(version.split(".")[:2])
            assert f"is version {short}, but streaq needs 6.2" in await complaint(url=fake.url)


async def test_a_server_that_is_loading() -> None:
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    async with fake_server(lambda words: OK if words[0] == "CLIENT" else loading) as fake:
        assert "still loading" in await complaint(url=fake.url)


# ------------------------------------------------------------------------------------ pools


async def test_a_decoding_pool_of_the_users_does_for_raw_bytes(valkey: Server) -> None:
    pool = aredis.ConnectionPool.from_url(f"{valkey.url}/2", decode_responses=True)
    connector = Connector(ConnectionSettings(pool=pool))
    assert connector.address == ("127.0.0.1", valkey.port)
    assert connector.safe_url == valkey.url
    async with opened(connector) as client:
        await connector.check(client)
        await client.set("raw", BINARY)
        assert await client.get("raw") == BINARY
        assert (await client.client_info())["db"] == 2
    async with opened(connector, decoded=True) as client:
        await client.set("text", "x")
        assert await client.get("text") == "x"
    with connector.open_sync() as sync:
        assert sync.get("raw") == BINARY
    await pool.aclose()


async def test_a_pool_of_sockets() -> None:
    with Server(unix=True) as server:
        pool = aredis.ConnectionPool.from_url(server.url)
        connector = Connector(ConnectionSettings(pool=pool))
        assert connector.safe_url == server.url
        async with opened(connector) as client:
            await connector.check(client)
        with connector.open_sync() as sync:
            assert sync.ping()


# -------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    ca, other = trustme.CA(), trustme.CA()
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    files = {name: str(directory / f"{name}.pem") for name in ("ca", "cert", "key", "other")}
    ca.cert_pem.write_to_path(files["ca"])
    other.cert_pem.write_to_path(files["other"])
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    certificate.private_key_pem.write_to_path(files["key"])
    return files


@pytest.fixture(scope="module", params=kinds())
def tls(request: pytest.FixtureRequest, certificates: Mapping[str, str]) -> Generator[Server]:
    server = Server(request.param, tls=certificates)
    try:
        server.start()
    except AssertionError as e:
        server.close()
        if "tls" not in str(e).lower():
            raise
        pytest.skip(f"this {request.param} binary is built without TLS")
    yield server
    server.close()


async def test_tls(tls: Server, certificates: Mapping[str, str]) -> None:
    ca = certificates["ca"]
    for settings in (
        ConnectionSettings(tls.url, kwargs={"ssl_ca_certs": ca}),
        ConnectionSettings(f"{tls.url}?ssl_ca_certs={ca}"),
        ConnectionSettings(tls.url.replace("rediss", "valkeys"), kwargs={"ssl_ca_certs": ca}),
        ConnectionSettings(tls.url, kwargs={"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ConnectionSettings(
            pool=aredis.ConnectionPool.from_url(f"{tls.url}?ssl_ca_certs={ca}"),
        ),
    ):
        connector = Connector(settings)
        async with opened(connector) as client:
            await connector.check(client)
        async with opened(connector, decoded=True) as client:
            assert await client.echo("x") == "x"
        with connector.open_sync() as sync:
            assert sync.ping()
        assert connector.safe_url.startswith(("rediss://127", "valkeys://127"))


async def test_tls_gone_wrong(tls: Server, certificates: Mapping[str, str]) -> None:
    assert "TLS fails" in await complaint(url=tls.url)
    assert "TLS fails" in await complaint(
        url=tls.url, kwargs={"ssl_ca_certs": certificates["other"]}
    )
    assert "rediss://" in await complaint(url=tls.url.replace("rediss", "redis"))
    said = await complaint(url=tls.url, kwargs={"ssl_ca_certs": "/no/such/file"})
    assert "ssl_ca_certs" in said


async def test_tls_where_there_is_none(valkey: Server) -> None:
    # The server takes the handshake for the beginning of a very long command, and waits.
    url = valkey.url.replace("redis", "rediss")
    said = await complaint(url=url, kwargs={"socket_connect_timeout": 0.3})
    assert "if it has no TLS, say redis://" in said
