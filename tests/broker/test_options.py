"""What users may say about their server, and what they are told when it cannot work."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aredis
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from streaq.broker.options import (
    ConnectionSettings,
    client_options,
    embedded_directory,
    is_embedded,
    keepalive_options,
    mask_url,
)
from streaq.types import StreaqError


def options(**settings: Any) -> dict[str, Any]:
    return client_options(ConnectionSettings(**settings))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {}),
        ("redis://h", {"host": "h"}),
        ("redis://h:1234/7", {"host": "h", "port": 1234, "db": 7}),
        ("valkey://h:1234", {"host": "h", "port": 1234}),
        ("redis://[::1]:1/", {"host": "::1", "port": 1}),
        ("redis://me:p%40ss@h", {"host": "h", "username": "me", "password": "p@ss"}),
        ("redis://:p%23s@h", {"host": "h", "password": "p#s"}),
        ("rediss://h", {"host": "h", "ssl": True}),
        ("valkeys://h", {"host": "h", "ssl": True}),
        ("rediss://h?ssl_ca_certs=/ca.pem", {"host": "h", "ssl": True, "ssl_ca_certs": "/ca.pem"}),
        ("unix:///run/r.sock?db=2", {"unix_socket_path": "/run/r.sock", "db": 2}),
        ("redis://h?decode_responses=True", {"host": "h"}),
        ("embedded://", {}),
        ("embedded:///some/dir", {}),
    ],
)
def test_url(url: str, expected: dict[str, Any]) -> None:
    assert options(url=url) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must start with"),
        ("localhost:6379", "must start with"),
        ("http://localhost", "must start with"),
        ("REDIS//h", "must start with"),
        ("redis://h:port", "host or port"),
        ("redis://h:99999", "host or port"),
        ("redis://[::1", "host or port"),
        ("redis://h/zero", "database number"),
        ("redis://h/-1", "database number"),
        ("redis://:se#cret@h", "percent-encoded"),
        ("redis://:se/cret@h", "percent-encoded"),
        ("redis://h?no_such_option=1", "no option 'no_such_option'"),
        ("redis://h?db=cret", "Invalid value for 'db'"),
        ("redis://h?socket_timeout=cret", "Invalid value for 'socket_timeout'"),
        ("redis://h?username=cret&no_such_option=cret", "no option 'no_such_option'"),
        ("unix://", "no socket path"),
        ("embedded:///", "root directory"),
        ("embedded:///d?db=1", "no options"),
    ],
)
def test_unusable_url(url: str, says: str) -> None:
    with pytest.raises(StreaqError, match=says) as caught:
        options(url=url)
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"sentinel_nodes": [("h", 1)], "cluster_nodes": [("h", 1)]},
        {"sentinel_nodes": [("h", 1)], "pool": aredis.ConnectionPool()},
        {"cluster_nodes": [("h", 1)], "pool": aredis.ConnectionPool()},
        {"cluster_nodes": [("h", 1)], "url": "embedded://"},
        {"pool": aredis.ConnectionPool(), "url": "embedded:///d"},
    ],
)
def test_conflicting_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(StreaqError, match="exclude each other"):
        options(**settings)


@pytest.mark.parametrize("name", ["sentinel_nodes", "cluster_nodes"])
def test_no_nodes(name: str) -> None:
    with pytest.raises(StreaqError, match=f"{name} is empty"):
        options(**{name: []})


def test_kwargs_are_passed_on_and_the_url_wins() -> None:
    found = options(url="redis://:url@h", kwargs={"password": "kwarg", "client_name": "me"})
    assert found == {"host": "h", "password": "url", "client_name": "me"}


@pytest.mark.parametrize("name", ["no_such", "connection_pool", "single_connection_client"])
def test_unknown_kwarg(name: str) -> None:
    with pytest.raises(StreaqError, match=f"Redis takes no option '{name}'"):
        options(kwargs={name: 1})


@pytest.mark.parametrize("name", ["host", "port", "unix_socket_path"])
def test_address_among_kwargs(name: str) -> None:
    with pytest.raises(StreaqError, match="put it into redis_url"):
        options(kwargs={name: "x"})


def test_cluster_options_are_the_cluster_clients() -> None:
    assert options(cluster_nodes=[("h", 1)], kwargs={"reinitialize_steps": 1}) == {
        "reinitialize_steps": 1
    }
    with pytest.raises(StreaqError, match="RedisCluster takes no option 'ssl_password'"):
        options(cluster_nodes=[("h", 1)], kwargs={"ssl_password": "x"})
    with pytest.raises(StreaqError, match="database 0 only"):
        options(cluster_nodes=[("h", 1)], url="redis://h/1")


def test_a_cluster_needs_a_client_that_can_subscribe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aredis.RedisCluster, "pubsub", raising=False)
    with pytest.raises(StreaqError, match="redis-py 8 or later"):
        options(cluster_nodes=[("h", 1)])
    assert options(sentinel_nodes=[("h", 1)]) == {}


@pytest.mark.parametrize("name", ["sentinel_nodes", "cluster_nodes"])
def test_login_and_tls_of_the_url_count_without_its_address(name: str) -> None:
    found = options(url="rediss://me:pw@h:1", **{name: [("n", 2)]})
    assert found == {"username": "me", "password": "pw", "ssl": True}


def test_decode_responses_is_ignored_and_said_so() -> None:
    with pytest.warns(UserWarning, match="raw bytes"):
        assert options(url="redis://h", kwargs={"decode_responses": True}) == {"host": "h"}


def test_a_pool_lends_its_address_and_options() -> None:
    pool = aredis.ConnectionPool.from_url(
        "rediss://me:pw@h:7/3?ssl_ca_certs=/ca.pem", decode_responses=True, max_connections=40
    )
    found = options(pool=pool, kwargs={"client_name": "c"})
    assert found.items() >= {
        "host": "h", "port": 7, "db": 3, "username": "me", "password": "pw", "ssl": True,
        "ssl_ca_certs": "/ca.pem", "max_connections": 40, "client_name": "c",
    }.items()  # fmt: skip
    assert "decode_responses" not in found


def test_a_pool_of_sockets() -> None:
    pool = aredis.ConnectionPool.from_url("unix:///run/r.sock")
    assert options(pool=pool)["unix_socket_path"] == "/run/r.sock"


def test_pools_that_cannot_be_copied() -> None:
    class Odd(Connection):
        pass

    with pytest.raises(StreaqError, match="Odd"):
        options(pool=aredis.ConnectionPool(connection_class=Odd))
    manager = Sentinel([("h", 1)])
    with pytest.raises(StreaqError, match="give sentinel_nodes"):
        options(pool=SentinelConnectionPool("mymaster", manager))


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://:secret@h", "redis://:***@h"),
        ("redis://me:secret@h/1", "redis://me:***@h/1"),
        ("redis://me:sec:ret@h", "redis://me:***@h"),
        ("unix:///s?password=secret&db=1", "unix:///s?password=***&db=1"),
        ("rediss://h?ssl_password=secret", "rediss://h?ssl_password=***"),
        ("redis://:se#secret@h", "redis://:se"),
        ("redis://secret@h", "redis://***@h"),
        ("redis://h?username=secret", "redis://h?username=***"),
        ("redis://h?socket_timeout=secret&x", "redis://h?socket_timeout=***&***"),
        ("redis://h?db=secret&db=2", "redis://h?db=***&db=2"),
        ("embedded:///d", "embedded:///d"),
        ("me:secret@h", "***"),
    ],
)
def test_masked_url(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_repr_has_no_secrets() -> None:
    settings = ConnectionSettings(
        "redis://:secret@h",
        aredis.ConnectionPool(password="secret"),
        {"password": "secret"},
        sentinel_nodes=[("s", 1)],
        sentinel_kwargs={"password": "secret"},
        cluster_nodes=[("c", 2)],
    )
    assert "secret" not in repr(settings)
    for shown in ("redis://:***@h", "ConnectionPool", "['password']", "('s', 1)", "('c', 2)"):
        assert shown in repr(settings)


def test_embedded_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert embedded_directory("embedded://") is None
    assert embedded_directory("embedded:///var/lib/q") == Path("/var/lib/q")
    assert embedded_directory("embedded:///a%20b") == Path("/a b")
    assert embedded_directory("embedded://data") == tmp_path / "data"
    assert embedded_directory("embedded://./data/q") == tmp_path / "data" / "q"
    assert embedded_directory("embedded://~/q") == Path("/home/me/q")
    assert is_embedded("embedded://")
    assert not is_embedded("redis://embedded")


def test_keepalive_options_are_accepted_by_the_system() -> None:
    with socket.socket() as s:
        for option, value in keepalive_options().items():
            s.setsockopt(socket.IPPROTO_TCP, option, value)
            assert s.getsockopt(socket.IPPROTO_TCP, option) == value
