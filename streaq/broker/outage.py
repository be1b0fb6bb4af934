"""What an error from the server means: whether a worker should wait it out, for how long between
tries, and what to tell a person.
"""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import Iterator
from typing import Final

from redis import exceptions as errors
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.sentinel import MasterNotFoundError

# The server's way of saying "not now": during a failover, a resharding, a full disk or memory.
# redis-py has classes for some of them only, and for none when a script was the one refused.
_NOT_NOW: Final = re.compile(
    r"(?:^|\s-)(?:READONLY|UNBLOCKED|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|MISCONF|OOM)\s"
)
# Of redis-py's own errors about a Cluster, those that pass with time.
_CLUSTER_NOT_NOW: Final = (
    "Redis Cluster cannot be connected",
    "All slots are not covered",
    "startup_nodes could not agree",
)

# The first that fits the error, or what caused it, is told.
_MEANINGS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...]] = (
    (
        errors.AuthenticationError,
        "the server refuses the login; give the right user and password in redis_url",
    ),
    (
        errors.NoPermissionError,
        "the user may not do what streaq needs ({text}); extend its ACL",
    ),
    (
        ssl.SSLError,
        "TLS fails ({text}); check ssl_ca_certs and the name, or use redis:// without TLS",
    ),
    (
        errors.BusyLoadingError,
        "the server is still loading its data; try again in a moment",
    ),
    (
        (MasterNotFoundError, AsyncMasterNotFoundError),
        "no Sentinel knows a live master of that name ({text}); check both",
    ),
    (
        errors.RedisClusterException,
        "no Cluster answers there ({text}); check cluster_nodes",
    ),
)


def is_connection_lost(exc: BaseException) -> bool:
    """Whether this error says that the server is away or cannot serve writes now, so that a worker
    should wait, reconnect and go on. Errors that another try cannot cure are not among them.
    """
    if isinstance(exc, errors.ConnectionError | errors.TimeoutError | errors.SlotNotCoveredError):
        return True
    if isinstance(exc, errors.ReadOnlyError | errors.ClusterError | errors.OutOfMemoryError):
        return True
    if isinstance(exc, errors.ResponseError):
        return isinstance(exc, errors.TryAgainError) or bool(_NOT_NOW.search(f"{exc} "))
    if isinstance(exc, errors.RedisClusterException):
        return str(exc).startswith(_CLUSTER_NOT_NOW)
    # asyncio's own timeouts are TimeoutErrors without errno, and none of the server's business.
    return isinstance(exc, OSError) and not (isinstance(exc, TimeoutError) and exc.errno is None)


class Backoff:
    """How long to wait before trying to reconnect: a random part of a limit that doubles with each
    try, so that many workers do not come back at the same instant.

    :param base: the first limit, in seconds.
    :param cap: no limit is over this, in seconds.
    :param rng: the source of chance; give a seeded one in tests.
    """

    def __init__(
        self, base: float = 0.05, cap: float = 5.0, rng: random.Random | None = None
    ) -> None:
        self._base = base
        self._cap = cap
        self._rng = rng or random.Random()
        self._limit = base

    def next_delay(self) -> float:
        """Seconds to wait now; the limit of the next one is doubled."""
        limit = self._limit
        self._limit = min(limit * 2, self._cap)
        return self._rng.uniform(0, limit)

    def reset(self) -> None:
        """Start again from the base: the server answered."""
        self._limit = self._base


def explain(exc: Exception, *, tls: bool) -> str:
    """What is wrong when the server could not be reached, and what to do about it, in one line."""
    text = " ".join(str(exc).split())
    causes = list(_causes(exc))
    for kinds, meaning in _MEANINGS:
        if any(isinstance(e, kinds) for e in causes):
            return meaning.format(text=text)
    if tls and any(isinstance(e, FileNotFoundError | PermissionError) for e in causes):
        return f"a file named by ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be read ({text})"
    hint = "if it has no TLS, say redis://" if tls else "if it wants TLS, say rediss://"
    if any(isinstance(e, TimeoutError | errors.TimeoutError) for e in causes):
        return f"no answer in time; is it a Redis server, and no firewall between? And {hint}"
    return f"no Redis server answers ({text}); start one or correct redis_url, and {hint}"


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__
