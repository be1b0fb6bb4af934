"""A workbench for the scripts: one queue on one server, called the way the engine calls it, with
the passing of time in the test's hands.

Times are the server's and real; what a test wants to be over (a lease, a delay, a lock) it says so,
and the bench writes it into Redis as if that time had passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import redis.asyncio as aredis
from redis.exceptions import ResponseError

from streaq.broker.connection import ConnectionSettings, Connector
from streaq.broker.exchange import Claimed, End, Handover, Reply, Request, Reserved, Settle
from streaq.broker.inspect import Seen
from streaq.broker.keys import GROUP, STAY, worker_of
from streaq.broker.link import Broker
from streaq.hooks import Dispatcher
from streaq.wire import Envelope, Mode, Record, make_record, parse_record
from tests.servers import Server

LEASE_MS = 60_000
LONG_MS = 3_600_000
DEFAULT = "default"
_numbers = count(1)


class Options(NamedTuple):
    """A function's options as the catalogue registers them."""

    tries: int | None = 3
    drift_ms: int | None = None
    unique: bool = False
    keep_ms: int = 300_000

    def __str__(self) -> str:
        tries = "" if self.tries is None else self.tries
        drift = "" if self.drift_ms is None else self.drift_ms
        return f"{tries}|{drift}|{int(self.unique)}|{self.keep_ms}"


FUNCTIONS: Mapping[str, Options] = {
    "work": Options(),
    "once": Options(tries=1),
    "always": Options(tries=None),
    "sole": Options(unique=True),
    "punctual": Options(drift_ms=1_000),
    "secret": Options(keep_ms=0),
    "kept": Options(keep_ms=-1),
}


def task(
    task_id: str = "",
    fn: str = "work",
    *,
    after: Sequence[str] = (),
    then: str = "",
    otherwise: str = "",
    priority: str = DEFAULT,
    args: bytes = b"args",
    **more: str,
) -> Envelope:
    """An envelope; ``more`` are its further fields (``due``, ``expires_in``, ``keep``, ...)."""
    dependencies: list[tuple[str, Mode]] = [(dep, "after") for dep in after]
    if then:
        dependencies.insert(0, (then, "then"))
    if otherwise:
        dependencies.insert(0, (otherwise, "otherwise"))
    return Envelope(
        task_id or f"t{next(_numbers)}",
        fn,
        priority,
        args,
        dependencies=tuple(dependencies),
        needs=more.pop("needs", "1" if then else ""),
        **more,
    )


def chain(length: int, fn: str = "work") -> list[Envelope]:
    """A pipeline of that many links, each fed with the result of the one before it."""
    first = next(_numbers)
    ids = [f"c{first}-{i}" for i in range(length)]
    return [task(ids[0], fn), *(task(ids[i], fn, then=ids[i - 1]) for i in range(1, length))]


@dataclass
class Hand:
    """A worker as far as Redis knows one: it registers, claims, settles and renews."""

    bench: Bench
    worker_id: str
    functions: Mapping[str, Options]
    priorities: Sequence[str]
    digest: str
    lease_ms: int = LEASE_MS
    trace: str = ""
    """Of its attempts, as it tells it with each renewal."""
    mine: dict[str, Claimed] = field(default_factory=dict[str, Claimed])

    async def register(self) -> None:
        options = {name: str(value) for name, value in self.functions.items()}
        await self.bench.broker.register(
            self.worker_id, self.digest, self.lease_ms, self.priorities, options
        )

    async def exchange(
        self,
        *settles: Settle,
        starts: Sequence[Reserved] = (),
        want: int = 0,
        reserve: int = 0,
        reclaim: bool = False,
        resent: bool = False,
    ) -> Reply:
        call = self.bench.broker.exchanger(self.worker_id, self.lease_ms, self.priorities)
        reply = await call(self.digest, Request(settles, starts, want, reserve, reclaim, resent))
        self.mine.update({claimed.task_id: claimed for claimed in reply.claimed})
        return reply

    async def claim(self, want: int = 1, *, reclaim: bool = False) -> list[Claimed]:
        return (await self.exchange(want=want, reclaim=reclaim)).claimed

    # What may come of an attempt, as `engine/attempt.py` writes it.

    def end(self, c: Claimed, status: str = "success", **more: Any) -> End:
        """The body returned, or (with another status) ended the task otherwise. ``more``:
        ``reason``, ``keep``, ``value``, ``text``, ``trace``, ``flags``, ``try_number``."""
        tries = more.pop("try_number", c.try_number)
        enqueued_ms = c.message_id.partition(b"-")[0].decode()
        record = make_record(
            status, more.pop("reason", "ok"), c.fn, c.task_id, c.created_ms, enqueued_ms,
            c.started_ms, c.started_ms + 1, tries, worker_of(self.worker_id), c.priority, c.due_ms,
            more.pop("trace", ""), more.pop("text", ""), c.log, more.pop("value", b"value"),
        )  # fmt: skip
        keep = more.pop("keep", str(self.functions[c.fn].keep_ms))
        flags = more.pop("flags", "u" * self.functions[c.fn].unique)
        assert not more, more
        return End(c.task_id, c.message_id, c.priority, tries, keep, flags, record)

    def fail(self, c: Claimed, text: str = "ValueError: no", **more: Any) -> End:
        """The body raised."""
        more = {"reason": "error", "value": b"error", "text": text, **more}
        return self.end(c, "failed", **more)

    def retry(self, c: Claimed, when: str = "+0", **more: Any) -> Handover:
        """The body asked for another try."""
        more = {"value": b"error", "text": "StreaqRetry: again", **more}
        return self._hand_over(c, "retry", when, **more)

    def hand_back(self, c: Claimed, when: str = "", **more: Any) -> Handover:
        """A shutdown cut the attempt short; with ``when`` "+0" its body had begun."""
        return self._hand_over(c, "return", when, **more)

    def _hand_over(self, c: Claimed, action: str, when: str, **more: Any) -> Handover:
        handover = Handover(
            c.task_id, c.message_id, c.priority, more.pop("try_number", c.try_number), action,
            more.pop("value", b""), more.pop("text", ""), when, more.pop("trace", ""),
            "u" * self.functions[c.fn].unique,
        )  # fmt: skip
        assert not more, more
        return handover

    async def claim_one(self, task_id: str = "") -> Claimed:
        (claimed,) = await self.claim()
        assert task_id in ("", claimed.task_id)
        return claimed

    async def settle(self, *settles: Settle, resent: bool = False) -> list[int]:
        return (await self.exchange(*settles, resent=resent)).codes

    async def run_one(self, task_id: str = "", value: bytes = b"value", **more: Any) -> Reply:
        """Claim the next task and end it in success."""
        claimed = await self.claim_one(task_id)
        reply = await self.exchange(self.end(claimed, value=value, **more))
        assert reply.codes == [1]
        return reply

    async def renew(self, *held: Claimed | Reserved, health: str = "{}") -> Renewed:
        """Renew leases as the lease thread does."""
        args: list[Any] = [
            self.worker_id, self.lease_ms, self.digest, health, len(self.priorities),
            *self.priorities, len(held),
        ]  # fmt: skip
        for one in held:
            if isinstance(one, Claimed):
                unique = self.functions[one.fn].unique
                args += (*one[:3], str(one.try_number), one.fn if unique else "", self.trace)
            else:
                args += (*one, "", "", "")
        _, lost, stop, gone = await self.bench.call("renew", args)
        lost = [(task_id.decode(), int(tries or 0)) for task_id, tries in lost]
        return Renewed(lost, [raw.decode() for raw in stop], gone == 1)

    async def dies(self) -> None:
        """Nothing is heard of it any more, and its leases run out (its locks too)."""
        await self.bench.lease_runs_out(self.worker_id)


class Renewed(NamedTuple):
    lost: list[tuple[str, int]]
    """Task and try; no try (0) of a reserved message."""
    stop: list[str]
    gone: bool


class Bench:
    """One queue on one server."""

    def __init__(self, server: Server, queue: str) -> None:
        self.server = server
        self.broker = Broker(Connector(ConnectionSettings(url=server.url)), queue, Dispatcher())
        self.base = self.broker.keys.base
        self._client: Any = aredis.Redis.from_url(server.url, protocol=2)
        self._client.response_callbacks.clear()

    async def open(self) -> None:
        await self.broker.open()

    async def close(self) -> None:
        await self.broker.close()
        await self._client.aclose()

    async def raw(self, *command: str | bytes | int) -> Any:
        """A command, on a connection of the bench's own; the reply as it is."""
        return await self._client.execute_command(*command)

    async def call(self, name: str, args: Sequence[Any]) -> Any:
        return await self.broker._call(name, args)

    async def worker(
        self,
        worker_id: str = "w1",
        functions: Mapping[str, Options] = FUNCTIONS,
        priorities: Sequence[str] = (DEFAULT,),
        digest: str = "d1",
    ) -> Hand:
        """A registered worker; priorities are highest first."""
        hand = Hand(self, worker_id, functions, priorities, digest)
        await hand.register()
        return hand

    # -------------------------------------------------------------------- producers

    async def publish(self, *envelopes: Envelope) -> list[str]:
        """Publish as one unit; the words."""
        return (await self.broker.publish([envelopes])).words

    async def enqueue(self, task_id: str = "", fn: str = "work", **more: Any) -> str:
        """Publish one task that can be claimed at once; its id."""
        envelope = task(task_id, fn, **more)
        assert await self.publish(envelope) == ["queued"]
        return envelope.task_id

    # ---------------------------------------------------------------- looking inside

    async def keys(self) -> set[str]:
        """Every key of the queue but its totals, by its own part of the name."""
        found = await self.raw("KEYS", "*")
        return {raw.decode().removeprefix(self.base) for raw in found} - {"totals"}

    async def fields(self, task_id: str) -> dict[str, str]:
        """The hash of a live task."""
        flat = await self.raw("HGETALL", f"{self.base}task:{task_id}")
        return {name.decode(): value.decode() for name, value in _pairs(flat).items()}

    async def state(self, task_id: str) -> str:
        (seen,) = await self.broker.look([task_id])
        return seen.state

    async def states(self, *task_ids: str) -> list[str]:
        return [seen.state for seen in await self.broker.look(task_ids)]

    async def seen(self, task_id: str) -> Seen:
        (seen,) = await self.broker.look([task_id], arguments=True)
        return seen

    async def record(self, task_id: str) -> Record:
        (raw,) = await self.broker.fetch_results([task_id])
        assert raw is not None, f"task {task_id} has no result"
        return parse_record(raw)

    async def pending(self, priority: str = DEFAULT) -> dict[str, str]:
        """Who holds which task's message."""
        stream = self.broker.keys.stream(priority)
        entries = await self.raw("XRANGE", stream, "-", "+")
        ids = {message: fields[1].decode() for message, fields in entries}
        page = await self._pending(stream)
        return {ids[message]: owner for message, owner in page}

    async def waiting(self, priority: str = DEFAULT) -> list[str]:
        """Ids in the stream that nobody holds, in their order."""
        held = await self.pending(priority)
        stream = self.broker.keys.stream(priority)
        entries = await self.raw("XRANGE", stream, "-", "+")
        ids = [fields[1].decode() for _, fields in entries]
        return [task_id for task_id in ids if task_id not in held]

    async def _pending(self, stream: str) -> list[tuple[bytes, str]]:
        try:
            raw = await self.raw("XPENDING", stream, GROUP, "-", "+", 100_000)
        except ResponseError as e:
            if "NOGROUP" not in str(e):
                raise
            return []
        return [(message, owner.decode()) for message, owner, *_ in raw]

    async def ttl_ms(self, key: str) -> int:
        return int(await self.raw("PTTL", self.base + key))

    async def consumers(self, priority: str = DEFAULT) -> set[str]:
        stream = self.broker.keys.stream(priority)
        raw = await self.raw("XINFO", "CONSUMERS", stream, GROUP)
        return {_pairs(found)[b"name"].decode() for found in raw}

    async def assert_nothing_is_left(self, *but: str) -> None:
        """Every live task is gone, and of the rest only what stays or has a TTL."""
        for key in await self.keys():
            own = key.partition(":")[0]
            assert own not in {"task", "due", "blocked", "dependents", "dependencies", "lock"}, key
            if not key.startswith((*STAY, *but)):
                assert await self.ttl_ms(key) > 0, f"{key} has no TTL"
        for stream in [key for key in await self.keys() if key.startswith("stream:")]:
            length = await self.raw("XLEN", self.base + stream)
            pending = await self._pending(self.base + stream)
            assert (length, pending) == (0, []), stream

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        """Until the server is as the test wants it. It tells nobody, so it is asked."""
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def until_blocked(self, readers: int) -> None:
        """Until that many clients wait for messages."""

        async def blocked() -> bool:
            return b"blocked_clients:%d\r" % readers in await self.raw("INFO", "clients")

        await self.until(blocked)

    async def until_listening(self, channels: Sequence[str]) -> None:
        """Until each of these channels has a subscriber."""

        async def listening() -> bool:
            return 0 not in (await self.raw("PUBSUB", "NUMSUB", *channels))[1::2]

        await self.until(listening)

    async def until_nobody_listens(self, *channels: str) -> None:
        """Until none of these channels (of all, without any) has a subscriber."""

        async def silent() -> bool:
            found = await self.raw("PUBSUB", "CHANNELS")
            return not ({channel.encode() for channel in channels} or set(found)) & set(found)

        await self.until(silent)

    # ------------------------------------------------------------ time, as told by tests

    async def lease_runs_out(self, worker_id: str, *, locks: bool = True) -> None:
        """As if this worker had been silent for very long."""
        for key in await self.keys():
            if not key.startswith("stream:"):
                continue
            stream = self.base + key
            for message, owner in await self._pending(stream):
                if owner == worker_id:
                    await self.raw(
                        "XCLAIM", stream, GROUP, owner, 0, message, "IDLE", 10**9, "JUSTID"
                    )
        if locks:
            for key in await self.keys():
                if key.startswith("lock:"):
                    await self.raw("DEL", self.base + key)

    async def becomes_due(self, task_id: str, at: int = 1) -> None:
        """As if the moment of a scheduled task (or a repeating schedule) had come."""
        fields = await self.fields(task_id)
        zset = "schedules"
        if fields.get("state") == "scheduled":
            zset = f"due:{fields['pri']}"
            await self.raw("HSET", f"{self.base}task:{task_id}", "due", at)
        changed = await self.raw("ZADD", self.base + zset, "XX", "CH", at, task_id)
        assert changed == 1, f"{task_id} is not scheduled"


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
