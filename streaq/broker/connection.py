"""Opens clients to the server that the settings name (one server, Sentinel, Cluster, embedded),
and says clearly when it cannot be reached.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import redis
import redis.asyncio as aredis
from redis import exceptions as errors
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelPool
from redis.asyncio.sentinel import SentinelManagedConnection as AsyncSentinelConnection
from redis.asyncio.sentinel import (
    SentinelManagedSSLConnection as AsyncSentinelSSLConnection,
)
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from streaq.broker.options import (
    ConnectionSettings,
    client_options,
    is_embedded,
    keepalive_options,
    known_to,
    mask_url,
)
from streaq.broker.outage import Backoff, explain, is_connection_lost
from streaq.broker.pool import WaitingPool
from streaq.types import StreaqError

__all__ = [
    "AsyncClient",
    "Backoff",
    "ConnectionSettings",
    "Connector",
    "SyncClient",
    "is_connection_lost",
]

AsyncClient: TypeAlias = aredis.Redis | aredis.RedisCluster
SyncClient: TypeAlias = redis.Redis | redis.RedisCluster

OLDEST_SERVER: Final = (6, 2)
_VERSION: Final = re.compile(r"\d+")
_CONNECT_TIMEOUT: Final = 5
_SYNC_TIMEOUT: Final = 5
_SENTINEL_TIMEOUT: Final = 2
_CHECK_TIMEOUT: Final = 10
# Blocking reads and the subscription keep theirs for good; too few would be a deadlock.
_MIN_CONNECTIONS: Final = 16
_MAX_CONNECTIONS: Final = 128
_MAX_NODE_CONNECTIONS: Final = 2**16
_ASYNC_ONLY: Final = ("retry", "redis_connect_func", "event_dispatcher")


class _Once(AsyncRetry):
    """Does what it is told once. redis-py's own, with no retries left, still reconnects before it
    lets an error through: the reader and the writer of a subscription do that at the same moment,
    and one of the two new connections is never closed.
    """

    async def call_with_retry(self, do: Callable[[], Awaitable[Any]], *_: Any, **__: Any) -> Any:
        """Await ``do()``, whatever comes of it."""
        return await do()


class Connector:
    """Opens clients to one server, and knows how to name it in errors and traces.

    Constructing one checks the settings and does no I/O. Clients speak RESP2, so that a script's
    reply is plain lists of bytes on every server.

    :raises StreaqError: settings that conflict or cannot work; a Cluster, and a redis-py whose
        asyncio client for it can't subscribe to channels.

    Example::

        connector = Connector(ConnectionSettings("redis://localhost:6379"))
        client = await connector.open()
        await connector.check(client)
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        if settings.cluster_nodes is not None and not hasattr(aredis.RedisCluster, "pubsub"):
            raise StreaqError(
                f"Redis Cluster needs redis-py 8 or newer, and {redis.__version__} is installed: "
                f"pip install -U redis."
            )
        self._settings = settings
        self._options = client_options(settings)
        self._sentinels: list[AsyncSentinel] = []

    @property
    def safe_url(self) -> str:
        """The address as a URL, without secrets, fit for logs."""
        s = self._settings
        if s.sentinel_nodes is not None:
            return f"sentinel://{_join(s.sentinel_nodes)}/{s.sentinel_master}"
        if s.cluster_nodes is not None:
            return f"cluster://{_join(s.cluster_nodes)}"
        if s.pool is None:
            return mask_url(s.url)
        path = self._options.get("unix_socket_path")
        host, port = self.address
        return f"unix://{path}" if path else f"redis{'s' * self._tls}://{host}:{port}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for ``server.address`` and ``server.port``; a socket's port is 0. With
        Sentinel or Cluster: the first node given.
        """
        nodes = self._settings.sentinel_nodes or self._settings.cluster_nodes
        if nodes:
            return nodes[0][0], nodes[0][1]
        if is_embedded(self._settings.url):
            return str(self._options.get("unix_socket_path", "embedded")), 0
        path = self._options.get("unix_socket_path")
        if path:
            return str(path), 0
        return str(self._options.get("host", "localhost")), int(self._options.get("port", 6379))

    async def open(self) -> AsyncClient:
        """A client for the broker's own calls: raw bytes, and no retries by redis-py, because
        only the caller knows what may be sent twice. Reads have no time limit, since some of them
        block: a ``socket_timeout`` of the user's is for the other clients, and TCP keepalive
        notices a server that vanished. Close it with ``aclose()``.

        :raises StreaqError: ``embedded://`` without its extra, or its server does not start.
        """
        await self._start_embedded()
        options = self._with_defaults(decode_responses=False)
        # A Cluster's client needs its retries for finding out where the slots are.
        retry = AsyncRetry if self._settings.cluster_nodes is not None else _Once
        options.update(retry=retry(NoBackoff(), 0), socket_timeout=None, protocol=2)
        options.pop("retry_on_error", None)
        options.pop("retry_on_timeout", None)
        return self._client(options)

    async def open_decoded(self) -> AsyncClient:
        """A client for users (``worker.redis``): strings, and redis-py's own retries."""
        await self._start_embedded()
        return self._client(self._with_defaults(decode_responses=True))

    def open_sync(self) -> SyncClient:
        """A blocking client for threads: raw bytes, no retries, and no call may take over 5 s
        (or the user's ``socket_timeout``, if shorter). For a Cluster, this does I/O already.
        """
        if is_embedded(self._settings.url):
            self._start_embedded_sync()
        options = self._with_defaults(decode_responses=False)
        for name in _ASYNC_ONLY:
            options.pop(name, None)
        options.pop("retry_on_error", None)
        options.pop("retry_on_timeout", None)
        limit = min(options.get("socket_timeout") or _SYNC_TIMEOUT, _SYNC_TIMEOUT)
        options.update(retry=Retry(NoBackoff(), 0), socket_timeout=limit, protocol=2)
        s = self._settings
        if s.cluster_nodes is not None:
            nodes = [ClusterNode(host, port) for host, port in s.cluster_nodes]
            # This class passes what it does not name itself on to redis.Redis.
            return redis.RedisCluster(startup_nodes=nodes, **known_to(aredis.RedisCluster, options))
        options = known_to(redis.Redis, options)
        if s.sentinel_nodes is None:
            return redis.Redis(**options)
        kwargs = redis.Redis(**options).connection_pool.connection_kwargs
        manager = Sentinel(s.sentinel_nodes, sentinel_kwargs=self._sentinel_options(Retry))
        kwargs = {name: v for name, v in kwargs.items() if name not in ("host", "port")}
        return manager.master_for(  # pyright: ignore[reportUnknownMemberType]
            s.sentinel_master, ssl=self._tls, **kwargs
        )

    async def check(self, client: AsyncClient) -> None:
        """Makes sure that the server answers, takes writes and is recent enough.

        :raises StreaqError: in one line, what is wrong and what to do about it.
        """
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT):
                await client.ping()  # pyright: ignore[reportUnknownMemberType]
                info = await _server_info(client)
        except Exception as e:
            raise StreaqError(f"{self.safe_url}: {explain(e, tls=self._tls)}") from e
        version = tuple(int(n) for n in _VERSION.findall(str(info.get("redis_version", "")))[:2])
        if version and version < OLDEST_SERVER:
            found, needed = (".".join(map(str, v)) for v in (version, OLDEST_SERVER))
            raise StreaqError(
                f"{self.safe_url}: the server is version {found}, but streaq needs {needed}"
            )
        if info.get("role") == "slave":
            raise StreaqError(
                f"{self.safe_url}: this is a replica; give the address of its primary"
            )

    async def close(self) -> None:
        """Lets go of what the connector itself opened: connections to Sentinels. An embedded
        server is shared by the process and ends with it.
        """
        while self._sentinels:
            for sentinel in self._sentinels.pop().sentinels:
                await sentinel.aclose()

    @property
    def _tls(self) -> bool:
        return bool(self._options.get("ssl"))

    async def _start_embedded(self) -> None:
        if is_embedded(self._settings.url):
            await asyncio.to_thread(self._start_embedded_sync)

    def _start_embedded_sync(self) -> None:
        # Imported here because it needs fcntl, which Windows has not.
        try:
            from streaq.broker.embedded import start_embedded
        except ImportError as e:
            raise StreaqError(f"embedded:// does not work on this system: {e}") from e
        url = start_embedded(self._settings.url)
        self._options["unix_socket_path"] = url.removeprefix("unix://")

    def _with_defaults(self, *, decode_responses: bool) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": _CONNECT_TIMEOUT,
        }
        if "unix_socket_path" not in self._options:
            defaults["socket_keepalive"] = True
            defaults["socket_keepalive_options"] = keepalive_options()
        return {**defaults, **self._options, "decode_responses": decode_responses}

    def _client(self, options: dict[str, Any]) -> AsyncClient:
        s = self._settings
        if s.cluster_nodes is not None:
            options.setdefault("max_connections", _MAX_NODE_CONNECTIONS)
            nodes = [AsyncClusterNode(host, port) for host, port in s.cluster_nodes]
            return aredis.RedisCluster(
                startup_nodes=nodes, **known_to(aredis.RedisCluster, options)
            )
        kwargs = _connection_kwargs(options)
        if s.sentinel_nodes is not None:
            return aredis.Redis.from_pool(self._sentinel_pool(options, kwargs))
        # Callers beyond the limit wait for a connection instead of failing.
        limit = max(options.get("max_connections") or _MAX_CONNECTIONS, _MIN_CONNECTIONS)
        return aredis.Redis.from_pool(WaitingPool(max_connections=limit, **kwargs))

    def _sentinel_pool(self, options: dict[str, Any], kwargs: dict[str, Any]) -> AsyncSentinelPool:
        s = self._settings
        manager = AsyncSentinel(
            s.sentinel_nodes or (), sentinel_kwargs=self._sentinel_options(AsyncRetry)
        )
        self._sentinels.append(manager)
        kwargs["connection_class"] = (
            AsyncSentinelSSLConnection if self._tls else AsyncSentinelConnection
        )
        for name in ("host", "port"):
            kwargs.pop(name, None)
        limit = options.get("max_connections") or _MAX_NODE_CONNECTIONS
        return AsyncSentinelPool(s.sentinel_master, manager, max_connections=limit, **kwargs)

    def _sentinel_options(self, retry: type[Retry | AsyncRetry]) -> dict[str, Any]:
        # One Sentinel that does not answer must not hold up the question to the next.
        defaults: dict[str, Any] = {
            "socket_timeout": _SENTINEL_TIMEOUT,
            "socket_connect_timeout": _SENTINEL_TIMEOUT,
            "retry": retry(NoBackoff(), 0),
            "protocol": 2,
        }
        return {**defaults, **(self._settings.sentinel_kwargs or {})}


def _connection_kwargs(options: dict[str, Any]) -> dict[str, Any]:
    """What redis-py's own client would hand to its pool, made by asking it."""
    asked: dict[str, Any] = {**known_to(aredis.Redis, options), "protocol": 2}
    template = aredis.Redis(**asked).connection_pool
    kwargs = dict(template.connection_kwargs)
    kwargs.pop("himport_registry", None)
    return {
        **kwargs,
        "connection_class": template.connection_class,
        "protocol": options["protocol"],
    }


async def _server_info(client: AsyncClient) -> Mapping[str, Any]:
    try:
        if isinstance(client, aredis.RedisCluster):
            # Any node will do, and a replica is as good: the client finds the primaries itself.
            info = await client.info("server", target_nodes=client.get_default_node())  # pyright: ignore[reportUnknownMemberType]
        else:
            info = await client.info()  # pyright: ignore[reportUnknownMemberType]
    except errors.NoPermissionError:
        return {}  # A hosted server may forbid it; then the scripts will tell soon enough.
    return info


def _join(nodes: Sequence[tuple[str, int]]) -> str:
    return ",".join(f"{host}:{port}" for host, port in nodes)
