"""The one round trip per batch: settles go out, claimed tasks come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from streaq.broker.publish import Change, parse_changes, text, whole
from streaq.broker.scripts import Arg, Scripts

SETTLED, FENCED, SETTLED_BEFORE = 1, 0, 2


class End(NamedTuple):
    """An attempt that ended its task, as the exchange script takes it (see ``exchange.lua``)."""

    task_id: str
    message_id: bytes
    priority: str
    try_number: int
    keep: str
    flags: str
    record: bytes


class Handover(NamedTuple):
    """An attempt that did not end its task: to be retried, or handed back."""

    task_id: str
    message_id: bytes
    priority: str
    try_number: int
    action: str
    value: bytes
    text: str
    when: str
    trace: str
    flags: str
    reason: str = ""
    """One word on why it is tried again."""


Settle: TypeAlias = End | Handover


class Reserved(NamedTuple):
    """A message this worker holds without having started its task."""

    task_id: str
    message_id: bytes
    priority: str


class Claimed(NamedTuple):
    """A task that will run now: its try is counted."""

    task_id: str
    message_id: bytes
    priority: str
    try_number: int
    fn: str
    args: bytes
    headers: bytes
    created_ms: int
    due_ms: int
    kind: str
    input: bytes
    links: str
    previous: str
    lost_worker: str
    log: str
    """Ledger of its earlier attempts."""
    started_ms: int
    first_due_ms: int = 0
    """When its first attempt was due; 0 of a first attempt."""


class Refused(NamedTuple):
    """A task that may not run, and was ended by the claim."""

    task_id: str
    priority: str
    fn: str
    status: str
    reason: str
    text: str
    created_ms: int
    due_ms: int
    enqueued_ms: int
    tries: int
    kind: str
    headers: bytes
    previous: str
    links: str


class Request(NamedTuple):
    """What to settle, what to start, and how much more there is room for."""

    settles: Sequence[Settle]
    starts: Sequence[Reserved]
    want: int
    reserve: int
    reclaim: bool
    resent: bool
    fresh: bool = True
    """Whether new messages are wanted too, beside those to reclaim."""


class Reply(NamedTuple):
    """What came of it. ``short``: the queue had less than was wanted; ``more``: there may be more
    to reclaim.
    """

    now_ms: int
    codes: list[int]
    claimed: list[Claimed]
    refused: list[Refused]
    reserved: list[Reserved]
    changes: list[Change]
    short: bool
    more: bool


class Exchange:
    """Calls ``exchange.lua`` for one worker."""

    def __init__(
        self, scripts: Scripts, worker_id: str, lease_ms: int, priorities: Sequence[str]
    ) -> None:
        self._scripts = scripts
        self._worker_id = worker_id
        self._lease_ms = lease_ms
        self._priorities: list[Arg] = [len(priorities), *priorities]

    async def __call__(self, registry: str, request: Request) -> Reply:
        """Settle and claim.

        :raises redis.exceptions.ResponseError: ``STREAQ_REGISTRY``, when the server forgot the
            worker's functions (nothing was done; register them and repeat).
        """
        args: list[Arg] = [
            self._worker_id, registry, self._lease_ms, request.want, request.reserve,
            _reclaim_mode(request), int(request.resent), *self._priorities, len(request.starts),
        ]  # fmt: skip
        for start in request.starts:
            args += start
        ends = [settle for settle in request.settles if isinstance(settle, End)]
        others = [settle for settle in request.settles if isinstance(settle, Handover)]
        for group in (ends, others):
            args.append(len(group))
            for settle in group:
                args += settle
        reply = parse_reply(await self._scripts("exchange", args))
        if not (ends and others):
            return reply
        codes = iter(reply.codes)
        of = {id(settle): next(codes) for group in (ends, others) for settle in group}
        return reply._replace(codes=[of[id(settle)] for settle in request.settles])


def _reclaim_mode(request: Request) -> int:
    if not request.reclaim:
        return 0
    return 1 if request.fresh else 2


def parse_reply(raw: list[Any]) -> Reply:
    """Read the exchange script's answer."""
    now = int(raw[0])
    return Reply(
        now,
        raw[1],
        [_claimed(r, now) for r in raw[2]],
        [_refused(r) for r in raw[3]],
        [Reserved(text(r[0]), r[1], text(r[2])) for r in raw[4]],
        parse_changes(raw[5]) if raw[5] else [],
        raw[6] == 1,
        raw[7] == 1,
    )


new_tuple: Callable[..., Any] = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
"""Makes a named tuple in half the time that its own constructor takes."""
PLAIN_FIELDS = 8
_NOTHING_MORE = (b"",) * 8


def _claimed(r: list[Any], now: int) -> Claimed:
    plain, more = r[:PLAIN_FIELDS], r[PLAIN_FIELDS:]
    head, kind, value, links, trace, lost, log, first = more[0] if more else _NOTHING_MORE
    task_id, message_id, priority, tries, fn, args, made, due = plain
    try:
        return new_tuple(Claimed, (
            task_id.decode(), message_id, priority.decode(), int(tries), fn.decode(), args, head,
            int(made), int(float(due)), kind.decode() or "immediate", value, links.decode(),
            trace.decode(), lost.decode(), log.decode(), now, int(float(first or 0)),
        ))  # fmt: skip
    except (ValueError, OverflowError):  # somebody changed it in Redis
        return Claimed(
            text(task_id), message_id, text(priority), whole(tries), text(fn), args, head,
            whole(made), whole(due), text(kind) or "immediate", value, text(links),
            text(trace), text(lost), text(log), now, whole(first),
        )  # fmt: skip


def _refused(r: list[bytes]) -> Refused:
    return Refused(
        text(r[0]), text(r[1]), text(r[2]), text(r[3]), text(r[4]), text(r[5]),
        whole(r[6]), whole(r[7]), whole(r[8]), whole(r[9]), text(r[10]), r[11],
        text(r[12]), text(r[13]),
    )  # fmt: skip
