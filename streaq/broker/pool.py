"""A connection pool whose callers wait when every connection is taken, instead of failing.

redis-py's own ``BlockingConnectionPool`` does that too, but takes a condition and a timer for each
call, which nearly doubles the cost of a small one. Nor does a connection that is fit for use go
through all that redis-py does for one that is not: an idle worker would start its next task later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

_IS_SLOW: Final = hasattr(AbstractConnection, "can_read")
"""Whether redis-py is one (from 8 on) that makes much of taking and giving back a connection."""


class WaitingPool(ConnectionPool):
    """As redis-py's pool; over ``max_connections``, callers wait for as long as it takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        self._waiting: deque[asyncio.Future[None]] = deque()
        # Such a one may have a new password for a connection, which it gets when it is given back.
        self._renews_passwords = self.connection_kwargs.get("credential_provider") is not None

    async def get_connection(
        self, command_name: str | None = None, *keys: Any, **options: Any
    ) -> AbstractConnection:
        """A connected connection, as soon as there is one; the parameters mean nothing."""
        while not self.can_get_connection():
            await self._wait()
        # Nothing can come between the question and this, which are one step of the event loop.
        connection: AbstractConnection = self.get_available_connection()
        try:
            if not (_IS_SLOW and connection.is_connected and await _is_silent(connection)):
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give a connection back, for the one who waits longest."""
        try:
            if _IS_SLOW and not (self._renews_passwords or self._is_being_changed(connection)):
                self._in_use_connections.remove(connection)
                self._available_connections.append(connection)
            else:
                await super().release(connection)
        finally:
            self._wake_one()

    def _is_being_changed(self, connection: AbstractConnection) -> bool:
        return self._lock.locked() or connection.should_reconnect()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # Woken and cancelled at once: the connection is for the next one.
            if turn.done() and not turn.cancelled():
                self._wake_one()
            raise

    def _wake_one(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


async def _is_silent(connection: AbstractConnection) -> bool:
    """Whether nothing is left in it to be read: neither an answer that nobody wants nor its end."""
    try:
        return not await connection.can_read()
    except (RedisError, OSError):
        return False
