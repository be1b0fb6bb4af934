"""Turns what a user says about the server (URL, pool, keyword options) into options for redis-py's
clients, refusing at once what cannot work. Does no I/O and holds no connection.
"""

from __future__ import annotations

import inspect
import re
import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis.asyncio as aredis
from redis.asyncio.connection import (
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.sentinel import SentinelConnectionPool

from streaq.types import StreaqError

_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "unix": "unix",
    "valkeys": "rediss",
}
_NOT_FOR_USERS: Final = frozenset(
    {
        "auto_close_connection_pool",
        "connection_pool",
        "single_connection_client",
        "startup_nodes",
    }
)
_OF_THE_POOL_ITSELF: Final = ("event_dispatcher", "maint_notifications_config")
_ADDRESS: Final = frozenset({"host", "port", "unix_socket_path", "path"})
_DATABASE: Final = re.compile(r"db=\d+")


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionSettings:
    """Where the server is and how to talk to it; the ``redis_*``, ``sentinel_*`` and
    ``cluster_nodes`` parameters of ``Worker``.

    :param url: ``redis://``, ``rediss://`` (TLS), ``valkey://``, ``valkeys://``, ``unix://`` or
        ``embedded://``. With Sentinel or Cluster only its credentials, database and TLS are used.
    :param pool: take the address and options of this pool instead of the URL.
    :param kwargs: options of redis-py's client (``password``, ``ssl_ca_certs``, ...).
    :param sentinel_nodes: ``(host, port)`` of each Sentinel.
    :param sentinel_master: the name under which the Sentinels know the master.
    :param sentinel_kwargs: options of the connections to the Sentinels themselves.
    :param cluster_nodes: ``(host, port)`` of some nodes of a Cluster; the rest is discovered.
    """

    url: str = "redis://localhost:6379"
    pool: aredis.ConnectionPool | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sentinel_nodes: Sequence[tuple[str, int]] | None = None
    sentinel_master: str = "mymaster"
    sentinel_kwargs: Mapping[str, Any] | None = None
    cluster_nodes: Sequence[tuple[str, int]] | None = None

    def __repr__(self) -> str:
        parts = [f"url={mask_url(self.url)!r}"]
        if self.pool is not None:
            parts.append(f"pool={type(self.pool).__name__}")
        if self.kwargs:
            parts.append(f"kwargs={sorted(self.kwargs)}")
        if self.sentinel_nodes is not None:
            parts.append(f"sentinel_nodes={list(self.sentinel_nodes)}")
            parts.append(f"sentinel_master={self.sentinel_master!r}")
        if self.cluster_nodes is not None:
            parts.append(f"cluster_nodes={list(self.cluster_nodes)}")
        return f"ConnectionSettings({', '.join(parts)})"


def is_embedded(url: str) -> bool:
    """Whether the URL asks for a server that streaq starts by itself."""
    return url.startswith("embedded://")


def embedded_directory(url: str) -> Path | None:
    """The directory that an ``embedded://`` URL names, or None for the private server.

    :raises StreaqError: it is no directory path.
    """
    rest = url.removeprefix("embedded://")
    if "?" in rest or "#" in rest:
        raise StreaqError("an embedded:// URL takes a directory and no options")
    if not rest:
        return None
    directory = Path(unquote(rest)).expanduser().resolve()
    if directory == directory.parent:
        raise StreaqError("embedded:/// is the root directory: name one for the data, or none")
    return directory


def mask_url(url: str) -> str:
    """The URL with ``***`` for all that may be a secret, fit for logs and error messages: of its
    options but the names are shown, and a database that is a number.
    """
    if "://" not in url:
        return "***"
    parts = urlsplit(url)
    credentials, at, where = parts.netloc.rpartition("@")
    if at:  # without a colon it may be a password that lacks one
        user, colon, _ = credentials.partition(":")
        credentials = f"{user}:***" if colon else "***"
    # A '#' is never meaningful in these URLs: what follows it may be the end of a password.
    query = f"?{_mask_query(parts.query)}" if parts.query else ""
    return f"{parts.scheme}://{credentials}{at}{where}{parts.path}{query}"


def _mask_query(query: str) -> str:
    pairs = [(part, *part.partition("=")[:2]) for part in query.split("&")]
    return "&".join(
        part if _DATABASE.fullmatch(part) else f"{name}=***" if equals else "***"
        for part, name, equals in pairs
    )


def client_options(settings: ConnectionSettings) -> dict[str, Any]:
    """Checked options for ``redis.asyncio.Redis(...)``; for Sentinel and Cluster, without address.

    :raises StreaqError: conflicting settings, an unusable URL or pool, an unknown option.
    """
    _refuse_conflicts(settings)
    client_class = aredis.Redis if settings.cluster_nodes is None else aredis.RedisCluster
    _check_names(settings.kwargs, client_class)
    options = _pool_options(settings.pool) if settings.pool is not None else {}
    options.update(settings.kwargs)
    if options.pop("decode_responses", False) and "decode_responses" in settings.kwargs:
        message = "decode_responses in redis_kwargs is ignored: streaq needs the raw bytes"
        warnings.warn(message, UserWarning, stacklevel=4)
    if is_embedded(settings.url):
        embedded_directory(settings.url)
    elif settings.pool is None:
        options.update(_url_options(settings.url))
    if settings.sentinel_nodes is not None or settings.cluster_nodes is not None:
        for name in _ADDRESS:
            options.pop(name, None)
    if settings.cluster_nodes is not None and int(options.pop("db", 0)):
        raise StreaqError("a Redis Cluster has database 0 only: remove the database from redis_url")
    return options


def keepalive_options() -> dict[int, int]:
    """TCP options by which a vanished server is noticed within about a minute, not hours.

    Keepalive covers a silent connection; the user timeout covers one with unacknowledged data.
    Not every platform has every option.
    """
    wanted = {
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 60_000,
    }
    return {getattr(socket, name): n for name, n in wanted.items() if hasattr(socket, name)}


def known_to(client_class: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that the constructor of this client class takes."""
    names = inspect.signature(client_class).parameters
    return {name: value for name, value in options.items() if name in names}


def _refuse_conflicts(settings: ConnectionSettings) -> None:
    given = [
        name
        for name, value in (
            ("redis_pool", settings.pool),
            ("sentinel_nodes", settings.sentinel_nodes),
            ("cluster_nodes", settings.cluster_nodes),
            ("an embedded:// redis_url", is_embedded(settings.url) or None),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise StreaqError(f"{' and '.join(given)} exclude each other: give one of them")
    for name in ("sentinel_nodes", "cluster_nodes"):
        nodes = getattr(settings, name)
        if nodes is not None and not nodes:
            raise StreaqError(f"{name} is empty: give at least one (host, port)")
    if settings.cluster_nodes is not None and not hasattr(aredis.RedisCluster, "pubsub"):
        raise StreaqError("a Redis Cluster needs redis-py 8 or later: pip install -U redis")
    if isinstance(settings.pool, SentinelConnectionPool):
        raise StreaqError("redis_pool is a Sentinel pool: give sentinel_nodes instead")


def _check_names(kwargs: Mapping[str, Any], client_class: type[Any]) -> None:
    known = {*inspect.signature(client_class).parameters} - _NOT_FOR_USERS
    for name in kwargs:
        if name in _ADDRESS:
            raise StreaqError(f"{name!r} does not belong in redis_kwargs: put it into redis_url")
        if name not in known:
            raise StreaqError(f"redis_kwargs: {client_class.__name__} takes no option {name!r}")


def _url_options(url: str) -> dict[str, Any]:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        names = ", ".join(f"{name}://" for name in (*_SCHEMES, "embedded"))
        raise StreaqError(f"redis_url must start with one of {names}")
    plain = f"{_SCHEMES[scheme]}://{rest}"
    _check_shape(plain)
    try:
        options: dict[str, Any] = dict(parse_url(plain))
    except ValueError as e:
        raise StreaqError(f"redis_url {mask_url(url)}: {e}") from None
    options.pop("decode_responses", None)
    connection_class = options.pop("connection_class", None)
    if connection_class is SSLConnection:
        options["ssl"] = True
    elif connection_class is UnixDomainSocketConnection:
        options["unix_socket_path"] = options.pop("path")
    known = {*inspect.signature(aredis.Redis).parameters} - _NOT_FOR_USERS
    if unknown := sorted(set(options) - known):
        raise StreaqError(f"redis_url {mask_url(url)}: redis-py takes no option {unknown[0]!r}")
    return options


def _check_shape(url: str) -> None:
    """What redis-py's own parser would pass over in silence, or report with the password in it."""
    hint = "(characters such as # / @ in a password must be percent-encoded)"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise StreaqError(
            f"redis_url is malformed: its host or port is no such thing {hint}"
        ) from None
    if parts.fragment:
        raise StreaqError(f"redis_url is malformed: it has a '#' {hint}")
    if parts.scheme == "unix":
        if not parts.path:
            raise StreaqError("redis_url has no socket path: write unix:///path/to/redis.sock")
    elif parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise StreaqError(f"redis_url is malformed: after the host comes a database number {hint}")


def _pool_options(pool: aredis.ConnectionPool) -> dict[str, Any]:
    if pool.connection_class not in (Connection, SSLConnection, UnixDomainSocketConnection):
        name = pool.connection_class.__name__
        raise StreaqError(
            f"redis_pool has connections of a class of its own ({name}), which streaq"
            " cannot copy: give redis_url and redis_kwargs instead"
        )
    options: dict[str, Any] = dict(pool.connection_kwargs)
    if "path" in options:
        options["unix_socket_path"] = options.pop("path")
    if issubclass(pool.connection_class, SSLConnection):
        options["ssl"] = True
    options["max_connections"] = pool.max_connections
    # Decoding pools are welcome: we build our own from their address and credentials.
    for name in ("decode_responses", *_OF_THE_POOL_ITSELF):
        options.pop(name, None)
    return known_to(aredis.Redis, options)
