"""A connection pool whose callers wait when every connection is taken, instead of failing.

redis-py's own ``BlockingConnectionPool`` does that too, but takes a condition and a timer for each
call, which nearly doubles the cost of a small one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool


class WaitingPool(ConnectionPool):
    """As redis-py's pool; over ``max_connections``, callers wait for as long as it takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # pyright: ignore[reportUnknownMemberType]
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def get_connection(
        self, command_name: str | None = None, *keys: Any, **options: Any
    ) -> AbstractConnection:
        """A connected connection, as soon as there is one; the parameters mean nothing."""
        while not self.can_get_connection():
            await self._wait()
        # Nothing can come between the question and this, which are one step of the event loop.
        connection: AbstractConnection = self.get_available_connection()
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give a connection back, for the one who waits longest."""
        try:
            await super().release(connection)
        finally:
            self._wake_one()

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
