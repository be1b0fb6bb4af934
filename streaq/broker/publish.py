"""Enqueueing: many callers, few round trips.

Tasks awaited one by one but concurrently coalesce: while one call is under way, whatever arrives
is gathered for the next. A unit (one task, or the links of one pipeline) is never split.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from streaq.broker.scripts import Arg, Scripts
from streaq.wire import Envelope

BATCH = 500
"""Tasks in one script call: large enough to hide the round trip, small enough not to hold Redis."""


class Change(NamedTuple):
    """What the end (or refusal) of a task did to one that waits for it."""

    what: str
    """``released``, ``failed`` or ``skipped``."""
    task_id: str
    fn: str
    priority: str
    by: str
    created_ms: int
    due_ms: int
    kind: str
    headers: bytes


def parse_changes(raw: list[list[bytes]]) -> list[Change]:
    """Read the events that ``_finish.lua`` tells."""
    return [
        Change(
            r[0].decode(), r[1].decode(), r[2].decode(), r[3].decode(), r[4].decode(),
            int(float(r[5] or 0)), int(float(r[6] or 0)), r[7].decode(), r[8],
        )
        for r in raw
    ]  # fmt: skip


class Published(NamedTuple):
    """Server time, a word for each envelope (see ``publish.lua``), and what followed."""

    now_ms: int
    words: list[str]
    changes: list[Change]


class Publisher:
    """Publishes units of envelopes, coalescing what is waiting. asyncio only."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._waiting: list[tuple[Sequence[Envelope], asyncio.Future[Published]]] = []
        self._flusher: asyncio.Task[None] | None = None

    async def publish(self, units: Sequence[Sequence[Envelope]]) -> Published:
        """Write every unit; the words come back in the order of the envelopes.

        Safe to repeat: a task id that is there already is left alone (``exists``).
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Published]] = []
        for unit in units:
            future: asyncio.Future[Published] = loop.create_future()
            futures.append(future)
            self._waiting.append((unit, future))
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush())
        if len(futures) == 1:
            return await futures[0]
        parts = await asyncio.gather(*futures)
        return Published(
            parts[-1].now_ms if parts else 0,
            [word for part in parts for word in part.words],
            [change for part in parts for change in part.changes],
        )

    async def _flush(self) -> None:
        try:
            while self._waiting:
                size = 0
                for count, (unit, _) in enumerate(self._waiting, 1):
                    size += len(unit)
                    if size >= BATCH:
                        break
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                await self._send(batch, size)
        finally:
            self._flusher = None

    async def _send(
        self, batch: list[tuple[Sequence[Envelope], asyncio.Future[Published]]], size: int
    ) -> None:
        args: list[Arg] = [size]
        for unit, _ in batch:
            for envelope in unit:
                args += envelope.flat()
        try:
            now, words, changes = await self._scripts("publish", args)
        except BaseException as e:
            for _, future in batch:
                if not future.done():
                    future.set_exception(e if isinstance(e, Exception) else ConnectionError(str(e)))
            if not isinstance(e, Exception):
                raise
            return
        self._answer(batch, int(now), words, parse_changes(changes))

    @staticmethod
    def _answer(
        batch: list[tuple[Sequence[Envelope], asyncio.Future[Published]]],
        now: int,
        words: list[Any],
        changes: list[Change],
    ) -> None:
        at = 0
        for unit, future in batch:
            own = [word.decode() for word in words[at : at + len(unit)]]
            at += len(unit)
            if not future.done():
                future.set_result(Published(now, own, changes))
                changes = []
