"""The one subscription of a process: control messages for workers, results for waiters.

A lost connection is reopened with backoff, everything is subscribed to again, and whoever depends
on messages is told to look for what was missed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from streaq.broker.connection import AsyncClient, Backoff, is_connection_lost

logger = logging.getLogger("streaq")

OnMessage = Callable[[bytes], None]


class Subscription:
    """Channels on one connection, opened with the first of them. asyncio only."""

    def __init__(self, client: AsyncClient) -> None:
        self._client: Any = client
        self._channels: dict[bytes, OnMessage] = {}
        self._confirmed: dict[bytes, Callable[[], None]] = {}
        self._joining: set[bytes] = set()
        self._leaving: set[bytes] = set()
        self._pubsub: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def add(self, channel: str, on_message: OnMessage, on_ready: Callable[[], None]) -> None:
        """Listen to a channel. ``on_ready`` is called whenever nothing published from then on can
        be missed: after the first subscription, and after each reconnection.
        """
        name = channel.encode()
        self._channels[name] = on_message
        self._confirmed[name] = on_ready
        self._joining.add(name)
        self._leaving.discard(name)
        self._changed.set()
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._run())

    def discard(self, channel: str) -> None:
        """Stop listening to a channel."""
        name = channel.encode()
        if self._channels.pop(name, None) is not None:
            del self._confirmed[name]
            self._joining.discard(name)
            self._leaving.add(name)
            self._changed.set()

    async def close(self) -> None:
        """Close the connection; nobody is called any more."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        await self._drop()

    async def _drop(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            try:
                await pubsub.aclose()
            except Exception as e:
                if not is_connection_lost(e):
                    raise

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._listen(backoff)
            except Exception as e:
                if not is_connection_lost(e):
                    logger.exception("the subscription failed and is opened again")
            await self._drop()
            await asyncio.sleep(backoff.next_delay())

    async def _listen(self, backoff: Backoff) -> None:
        while not self._channels:  # everybody left while the connection was away
            await self._changed.wait()
            self._changed.clear()
        self._pubsub = self._client.pubsub()
        self._joining = set(self._channels)
        self._leaving.clear()
        self._changed.set()
        await self._send_changes()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._read(backoff)), loop.create_task(self._write())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            await self._send_changes()

    async def _send_changes(self) -> None:
        """Send what was added and discarded since the last time, many channels a command."""
        await self._changed.wait()
        self._changed.clear()
        joining, self._joining = self._joining, set()
        leaving, self._leaving = self._leaving, set()
        if joining:
            await self._pubsub.subscribe(*joining)
        if leaving:
            await self._pubsub.unsubscribe(*leaving)

    async def _read(self, backoff: Backoff) -> None:
        while True:
            message: dict[str, Any] | None = await self._pubsub.get_message(timeout=None)
            if message is None:
                continue
            backoff.reset()
            channel: bytes = message["channel"]
            if message["type"] == "message":
                if handler := self._channels.get(channel):
                    handler(message["data"])
            elif message["type"] == "subscribe" and (ready := self._confirmed.get(channel)):
                ready()
