"""Waiting for results: however many waiters, one subscription and batched look-ups."""

from __future__ import annotations

import asyncio
from typing import Any

from streaq.broker.connection import AsyncClient, Backoff, is_connection_lost
from streaq.broker.control import Subscription
from streaq.broker.keys import Keys


class Results:
    """Hands result records to whoever waits for them. asyncio only.

    A waiter subscribes first and looks second, so a result can't slip through between the two;
    the look is repeated whenever the subscription was interrupted.
    """

    def __init__(self, client: AsyncClient, keys: Keys, subscription: Subscription) -> None:
        self._client: Any = client
        self._keys = keys
        self._subscription = subscription
        self._waiters: dict[str, list[asyncio.Future[bytes]]] = {}
        self._unseen: set[str] = set()
        self._looker: asyncio.Task[None] | None = None

    async def fetch(self, task_ids: list[str]) -> list[bytes | None]:
        """Stored records, None where there is none (yet, or any more)."""
        if not task_ids:
            return []
        keys = [self._keys.result(task_id) for task_id in task_ids]
        found: list[bytes | None] = await self._client.execute_command("MGET", *keys)
        return found

    async def wait(self, task_id: str) -> bytes:
        """The record of a task, as soon as there is one. Cancel it to stop waiting."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(task_id, [])
        waiters.append(future)
        if len(waiters) == 1:
            self._subscription.add(
                self._keys.done(task_id),
                lambda record: self._resolve(task_id, record),
                lambda: self._look_for(task_id),
            )
        else:
            self._look_for(task_id)
        try:
            return await future
        finally:
            self._forget(task_id, future)

    def _resolve(self, task_id: str, record: bytes) -> None:
        for future in self._waiters.get(task_id, ()):
            if not future.done():
                future.set_result(record)

    def _forget(self, task_id: str, future: asyncio.Future[bytes]) -> None:
        waiters = self._waiters[task_id]
        waiters.remove(future)
        if not waiters:
            del self._waiters[task_id]
            self._unseen.discard(task_id)
            self._subscription.discard(self._keys.done(task_id))

    def _look_for(self, task_id: str) -> None:
        self._unseen.add(task_id)
        if self._looker is None:
            self._looker = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        backoff = Backoff()
        try:
            while self._unseen:
                await asyncio.sleep(0)  # let more confirmations of the same read arrive
                batch = list(self._unseen)[:500]
                try:
                    records = await self.fetch(batch)
                except Exception as e:
                    if not is_connection_lost(e):
                        raise
                    await asyncio.sleep(backoff.next_delay())
                    continue
                self._unseen.difference_update(batch)
                for task_id, record in zip(batch, records, strict=True):
                    if record is not None:
                        self._resolve(task_id, record)
        except Exception as e:  # noqa: BLE001 - whatever it is, it is for those who wait
            self._fail(e)
        finally:
            self._looker = None

    def _fail(self, error: Exception) -> None:
        for waiters in self._waiters.values():
            for future in waiters:
                if not future.done():
                    future.set_exception(error)

    async def close(self) -> None:
        """Stop looking; waiters are cancelled."""
        if self._looker is not None:
            self._looker.cancel()
            await asyncio.gather(self._looker, return_exceptions=True)
        for waiters in list(self._waiters.values()):
            for future in waiters:
                future.cancel()
