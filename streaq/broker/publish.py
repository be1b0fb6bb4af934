"""Enqueueing: many callers, few round trips.

Tasks awaited one by one but concurrently coalesce: while one call is under way, whatever arrives
is gathered for the next. A unit (one task, or the links of one pipeline) is never split.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    links: str
    """Traces of the attempts that it waited for, of one that failed with them."""


def whole(raw: bytes) -> int:
    """A number as Redis holds it; 0 for what is none, because somebody changed it."""
    try:
        return int(float(raw or 0))
    except (ValueError, OverflowError):
        return 0


def text(raw: bytes) -> str:
    """A text as Redis holds it. What is no UTF-8 in it is replaced: the script that told it has
    committed, so whoever cannot read its answer knows nothing of what it did.
    """
    return raw.decode("utf-8", "replace")


def parse_changes(raw: list[list[bytes]]) -> list[Change]:
    """Read the events that ``_finish.lua`` tells."""
    return [
        Change(
            text(r[0]), text(r[1]), text(r[2]), text(r[3]), text(r[4]),
            whole(r[5]), whole(r[6]), text(r[7]), r[8], text(r[9]),
        )
        for r in raw
    ]  # fmt: skip


class Published(NamedTuple):
    """Server time, a word for each envelope (see ``publish.lua``), and what followed."""

    now_ms: int
    words: list[str]
    changes: list[Change]


class _Batch(NamedTuple):
    """Whole units that go with one call, and who waits for them."""

    envelopes: list[Envelope]
    future: asyncio.Future[Published]


class Publisher:
    """Publishes units of envelopes, coalescing what is waiting. asyncio only."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._waiting: deque[_Batch] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def publish(self, units: Sequence[Sequence[Envelope]]) -> Published:
        """Write every unit; the words come back in the order of the envelopes.

        Safe to repeat: a task id that is there already is left alone (``exists``).
        """
        loop = asyncio.get_running_loop()
        batches = [_Batch(envelopes, loop.create_future()) for envelopes in _split(units)]
        self._waiting.extend(batches)
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush())
        if len(batches) == 1:
            return await batches[0].future
        parts = await asyncio.gather(*(batch.future for batch in batches))
        return Published(
            parts[-1].now_ms if parts else 0,
            [word for part in parts for word in part.words],
            [change for part in parts for change in part.changes],
        )

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batches = [self._waiting.popleft()]
                size = len(batches[0].envelopes)
                while self._waiting and size + len(self._waiting[0].envelopes) <= BATCH:
                    batches.append(self._waiting.popleft())
                    size += len(batches[-1].envelopes)
                await self._send(batches, size)
        finally:
            self._flusher = None

    async def _send(self, batches: list[_Batch], size: int) -> None:
        args: list[Arg] = [size]
        for batch in batches:
            for envelope in batch.envelopes:
                args += envelope.flat()
        try:
            now, words, changes = await self._scripts("publish", args)
        except Exception as e:  # noqa: BLE001 - it is raised again where it is waited for
            for batch in batches:
                if not batch.future.done():
                    batch.future.set_exception(e)
            return
        except BaseException:
            for batch in (*batches, *self._waiting):
                batch.future.cancel()
            self._waiting.clear()
            raise
        self._answer(batches, int(now), [w.decode() for w in words], parse_changes(changes))

    @staticmethod
    def _answer(batches: list[_Batch], now: int, words: list[str], changes: list[Change]) -> None:
        at = 0
        for envelopes, future in batches:
            own = words[at : at + len(envelopes)]
            at += len(envelopes)
            if not future.done():
                future.set_result(Published(now, own, changes))
                changes = []


def _split(units: Sequence[Sequence[Envelope]]) -> Iterator[list[Envelope]]:
    """Units in batches of about ``BATCH``; one that is larger is a batch of its own."""
    batch: list[Envelope] = []
    for unit in units:
        if batch and len(batch) + len(unit) > BATCH:
            yield batch
            batch = []
        batch += unit
    if batch:
        yield batch
