"""Looking without touching: one task, lists of tasks, and the whole queue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streaq.broker.keys import worker_of
from streaq.broker.publish import text, whole
from streaq.broker.scripts import Arg, Scripts


@dataclass(frozen=True, slots=True)
class Seen:
    """What Redis knows of one task. ``state`` is empty for an unknown one, or ``done``."""

    task_id: str
    state: str
    fields: dict[str, bytes]
    dependencies: set[str]
    dependents: set[str]
    scheduled_ms: int | None
    record: bytes

    def text(self, name: str) -> str:
        """A field as text; empty when it is not there."""
        return text(self.fields.get(name, b""))

    def number(self, name: str) -> int:
        """A field as a number; 0 when it is not there, or is none."""
        return whole(self.fields.get(name, b""))


COUNT_BEFORE_UP_TO = 10_000
ENDS = ("success", "failed", "aborted", "expired")
"""The ways a task ends, in the order in which ``snapshot.lua`` counts them."""


class Standing(NamedTuple):
    """Where a queued task stands."""

    now_ms: int
    before: int
    """Tasks before it at its priority; counted up to ``COUNT_BEFORE_UP_TO``."""
    reserved_by: str
    """The worker that prefetched it; empty for none."""
    locked_by: str
    """Id of the task that holds the unique lock of its function; empty for none."""


@dataclass(frozen=True, slots=True)
class PrioritySnapshot:
    """One priority of a queue at a moment."""

    priority: str
    depth: int
    """Tasks that could run now and do not, those that a worker has prefetched included."""
    scheduled: int
    blocked: int
    running: int
    """Tasks that a live worker runs."""
    oldest_due_ms: int | None
    enqueued: int = 0
    """Tasks that ever came in."""
    finished: Mapping[str, int] = field(default_factory=dict[str, int])
    """Tasks that ever ended: success, failed, aborted, expired."""


@dataclass(frozen=True, slots=True)
class CronSnapshot:
    """One cron job. Times are None until known."""

    name: str
    last_success_ms: int | None
    next_ms: int | None
    missed: int
    crontab: str


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A whole queue at a moment of the server's clock."""

    queue: str
    now_ms: int
    priorities: list[PrioritySnapshot]
    workers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    crons: list[CronSnapshot] = field(default_factory=list[CronSnapshot])
    repeating: int = 0

    def size(self, *, include_scheduled: bool) -> int:
        """Tasks that wait to run: due ones, and (if asked) those scheduled for later."""
        return sum(p.depth + (p.scheduled if include_scheduled else 0) for p in self.priorities)


def parse_snapshot(queue: str, raw: list[Any]) -> QueueSnapshot:
    """Read the answer of ``snapshot.lua``."""
    return QueueSnapshot(
        queue,
        int(raw[0]),
        sorted(
            (_priority(*p) for p in raw[1]),
            key=lambda p: p.priority,
        ),
        [json.loads(text(w)) for w in raw[2]],
        [
            CronSnapshot(
                text(c[0]),
                int(c[1]) if c[1] else None,
                int(c[2]) if c[2] else None,
                int(c[3]),
                text(c[4]),
            )
            for c in raw[3]
        ],
        raw[4],
    )


def _priority(
    name: bytes, depth: int, scheduled: int, blocked: int, running: int, oldest: bytes, *ever: bytes
) -> PrioritySnapshot:
    enqueued, *ended = map(int, ever)
    return PrioritySnapshot(
        text(name), depth, scheduled, blocked, running, int(oldest) if oldest else None,
        enqueued, dict(zip(ENDS, ended, strict=True)),
    )  # fmt: skip


class Inspector:
    """Reads the state of one queue. asyncio only."""

    def __init__(self, scripts: Scripts, queue: str) -> None:
        self._scripts = scripts
        self._queue = queue

    async def look(self, task_ids: Sequence[str], *, arguments: bool = False) -> list[Seen]:
        """What is known of these tasks, in their order."""
        if not task_ids:
            return []
        raw = await self._scripts("inspect", [int(arguments), *task_ids])
        return [_seen(task_id, r) for task_id, r in zip(task_ids, raw, strict=True)]

    async def list_ids(self, status: str, limit: int, priorities: Sequence[str]) -> list[str]:
        """Ids of tasks that are ``scheduled``, ``queued``, ``running`` or ``done``."""
        args: list[Arg] = [status, limit, *priorities]
        return [text(task_id) for task_id in await self._scripts("list", args)]

    async def standing(self, task_id: str) -> Standing:
        """Where a queued task stands. Its cost grows with the tasks before it, to a bound."""
        now, before, reserved_by, locked_by = await self._scripts(
            "standing", [task_id, COUNT_BEFORE_UP_TO]
        )
        holder = worker_of(text(reserved_by))
        return Standing(int(now), before, holder, text(locked_by or b""))

    async def snapshot(self) -> QueueSnapshot:
        """The whole queue, in one call whose cost does not grow with its tasks."""
        return parse_snapshot(self._queue, await self._scripts("snapshot", []))


def _seen(task_id: str, r: list[Any]) -> Seen:
    flat = r[1]
    return Seen(
        task_id,
        text(r[0]),
        {text(flat[i]): flat[i + 1] for i in range(0, len(flat), 2)},
        {text(d) for d in r[2]},
        {text(d) for d in r[3]},
        int(r[4]) if r[4] else None,
        r[5],
    )
