"""The broker as the rest of the house sees it: one object per ``async with worker``.

Under Trio every call hops to the asyncio loop of a portal; callers see no difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar

from typing_extensions import TypeVarTuple, Unpack

from streaq.broker.connection import AsyncClient, Connector, is_connection_lost
from streaq.broker.control import Subscription
from streaq.broker.exchange import Exchange, Reply, Request, Reserved
from streaq.broker.inspect import Inspector, QueueSnapshot, Seen, Standing
from streaq.broker.keys import GROUP, Keys
from streaq.broker.portal import Portal, current_backend
from streaq.broker.publish import Change, Published, Publisher, parse_changes, text
from streaq.broker.results import Results
from streaq.broker.scripts import Arg, Scripts
from streaq.hooks import Dispatcher
from streaq.wire import Envelope

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

READ_BLOCK_MS = 30_000
"""How long one blocking read lasts before it is repeated; only bounds a half-open connection."""


class DueSchedule(NamedTuple):
    """A repeating schedule that is to be fired for ``due_ms``."""

    schedule_id: bytes
    """As Redis has it: a schedule that is not found by its id would be due for ever."""
    fn: str
    due_ms: int
    crontab: str
    tz: str
    priority: str


class Tick(NamedTuple):
    """What became due. ``next_ms`` is None when nothing is scheduled."""

    now_ms: int
    next_ms: int | None
    moved: list[tuple[str, str, str, int]]
    """Id, function, priority and due time of each task moved to its queue."""
    schedules: list[DueSchedule]


class CronFiring(NamedTuple):
    """A cron job to register (``due_ms`` 0) or to fire."""

    fn: str
    crontab: str
    due_ms: int
    next_ms: int | None
    missed: int
    task_id: str
    priority: str
    args: bytes
    headers: str
    keep: str
    since_ms: int = 0
    """The last firing known to whoever counted ``missed``."""


class CronState(NamedTuple):
    """What the server knows of a cron job after the call."""

    now_ms: int
    made: bool
    last_ms: int
    missed: int
    outdated: bool = False
    """Nothing was done: others have fired since, and ``missed`` is to be counted from there."""


class Aborted(NamedTuple):
    """``aborted`` (it had not started), ``asked`` (its worker is told), ``done`` or ``missing``."""

    word: str
    fields: list[bytes]
    changes: list[Change]


class Broker:
    """Everything that can be asked of Redis for one queue.

    :param connector: how to reach the server.
    :param queue: name of the queue.
    :param hooks: told how long calls take.
    """

    def __init__(self, connector: Connector, queue: str, hooks: Dispatcher) -> None:
        self.connector = connector
        self.keys = Keys(queue)
        self._queue = queue
        self._hooks = hooks
        self._stack = AsyncExitStack()
        self._portal: Portal | None = None
        self._client: AsyncClient
        self._scripts: Scripts
        self._publisher: Publisher
        self._inspector: Inspector
        self._subscription: Subscription
        self._results: Results

    async def open(self) -> None:
        """Connect, and check that the server answers.

        :raises StreaqError: when it can't be reached or used, in one line.
        """
        async with AsyncExitStack() as stack:
            if current_backend() == "trio":
                self._portal = await stack.enter_async_context(Portal())
            stack.push_async_callback(self._here, self._close)
            await self._here(self._open)
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Let go of every connection."""
        await self._stack.aclose()

    async def _open(self) -> None:
        client = await self.connector.open()
        self._client = client
        self._scripts = Scripts(client, self.keys, self._hooks)
        self._publisher = Publisher(self._scripts)
        self._inspector = Inspector(self._scripts, self._queue)
        self._subscription = Subscription(client)
        self._results = Results(client, self.keys, self._subscription)
        await self.connector.check(client)

    async def _close(self) -> None:
        if not hasattr(self, "_results"):
            return
        await self._results.close()
        await self._subscription.close()
        await self._client.aclose()
        await self.connector.close()

    async def _here(self, fn: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
        """Run on the loop that the client lives on."""
        if self._portal is None:
            return await fn(*args)
        return await self._portal.call(fn, *args)

    # ------------------------------------------------------------------ for producers

    async def publish(self, units: Sequence[Sequence[Envelope]]) -> Published:
        """Enqueue; see ``Publisher.publish``."""
        return await self._here(self._publisher.publish, units)

    async def wait_result(self, task_id: str) -> bytes:
        """The result record of a task, as soon as there is one."""
        return await self._here(self._results.wait, task_id)

    async def fetch_results(self, task_ids: list[str]) -> list[bytes | None]:
        """Stored result records."""
        return await self._here(self._results.fetch, task_ids)

    async def look(self, task_ids: Sequence[str], *, arguments: bool = False) -> list[Seen]:
        """What is known of these tasks."""

        async def look() -> list[Seen]:
            return await self._inspector.look(task_ids, arguments=arguments)

        return await self._here(look)

    async def list_ids(self, status: str, limit: int, priorities: Sequence[str]) -> list[str]:
        """Ids of tasks in a state."""
        return await self._here(self._inspector.list_ids, status, limit, priorities)

    async def standing(self, task_id: str) -> Standing:
        """Where a queued task stands."""
        return await self._here(self._inspector.standing, task_id)

    async def snapshot(self) -> QueueSnapshot:
        """The whole queue at a glance."""
        return await self._here(self._inspector.snapshot)

    async def abort(self, task_id: str) -> Aborted:
        """End a task that has not started, or have its worker told."""
        word, fields, changes = await self._call("abort", [task_id])
        return Aborted(word.decode(), fields, parse_changes(changes))

    async def unschedule(self, task_id: str) -> tuple[bool, list[Change]]:
        """Remove a repeating schedule; whether there was one."""
        there, changes = await self._call("unschedule", [task_id])
        return there == 1, parse_changes(changes)

    # -------------------------------------------------------------------- for workers

    def exchanger(self, consumer: str, lease_ms: int, priorities: Sequence[str]) -> Exchanger:
        """The exchange of one worker."""
        return Exchanger(self._here, Exchange(self._scripts, consumer, lease_ms, priorities))

    async def register(
        self,
        consumer: str,
        digest: str,
        lease_ms: int,
        priorities: Sequence[str],
        options: dict[str, str],
    ) -> None:
        """Make a worker known, its functions and its streams."""
        flat = [part for pair in options.items() for part in pair]
        await self._call(
            "register", [digest, lease_ms, consumer, len(priorities), *priorities, *flat]
        )

    async def read(self, consumer: str, priorities: Sequence[str]) -> list[Reserved]:
        """Block until a message arrives; reserve it. May return several, one a priority."""
        streams = {self.keys.stream(p): p for p in priorities}

        async def read() -> Any:
            return await self._scripts.execute(
                "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", 1, "BLOCK", READ_BLOCK_MS,
                "STREAMS", *streams, *([">"] * len(streams)),
            )  # fmt: skip

        return _reserved(await self._here(read), streams)

    async def tick(self, most: int, priorities: Sequence[str]) -> Tick:
        """Move what is due to the queue."""
        now, following, moved, fire = await self._call("tick", [most, len(priorities), *priorities])
        return Tick(
            int(now),
            None if following == b"-1" else int(following),
            [(text(m[0]), text(m[1]), text(m[2]), int(m[3])) for m in moved],
            [DueSchedule(f[0], text(f[1]), int(f[2]), *map(text, f[3:])) for f in fire],
        )

    async def hasten(self, priorities: Sequence[str]) -> int:
        """Make every task that is due later due now; how many there were."""
        return int(await self._call("hasten", [len(priorities), *priorities]))

    async def count_held(self, consumer: str, priorities: Sequence[str]) -> int:
        """In how many priorities a worker holds messages, whether or not it knows of them yet."""
        return int(await self._call("held", [consumer, len(priorities), *priorities]))

    async def fire(
        self, schedule_id: str | bytes, due_ms: int, next_ms: int | None, made: str
    ) -> str:
        """One firing of a repeating schedule; the id of the task, or empty."""
        following = "" if next_ms is None else next_ms
        _, task_id = await self._call("fire", [schedule_id, due_ms, following, made])
        return text(task_id)

    async def cron(self, firing: CronFiring) -> CronState:
        """Register or fire a cron job of the code."""
        args: list[Arg] = ["" if value is None else value for value in firing]
        now, made, last, missed = await self._call("cron", args)
        return CronState(int(now), made == 1, int(last), int(missed), made == 2)  # noqa: PLR2004

    async def release(self, consumer: str, messages: Sequence[Reserved]) -> None:
        """Hand back reserved messages."""
        if messages:
            await self._call("release", [consumer, *(part for m in messages for part in m)])

    async def recover(
        self, consumer: str, priorities: Sequence[str], held: Sequence[tuple[str, bytes]]
    ) -> int:
        """Hand back what was claimed in an answer that never arrived. ``held``: priority and
        message of all that did arrive.
        """
        known = [part for pair in held for part in pair]
        args: list[Arg] = [consumer, len(priorities), *priorities, *known]
        return int(await self._call("recover", args))

    async def sweep(self, lease_ms: int, leaving: str = "") -> int:
        """Forget dead workers, or the one that leaves."""
        return int(await self._call("sweep", [lease_ms, leaving]))

    async def listen(
        self, on_message: Callable[[bytes], None], on_ready: Callable[[], None]
    ) -> None:
        """Have control messages handed to ``on_message``, in the caller's thread; ``on_ready`` is
        called whenever some may have been missed before.
        """
        portal = self._portal
        if portal is None:
            self._subscription.add(self.keys.control, on_message, on_ready)
            return
        post = portal.post

        async def add() -> None:
            self._subscription.add(
                self.keys.control,
                lambda data: post(on_message, data),
                lambda: post(on_ready),
            )

        await portal.call(add)

    async def unlisten(self) -> None:
        """Hear no more control messages."""

        async def discard() -> None:
            self._subscription.discard(self.keys.control)

        await self._here(discard)

    async def _call(self, name: str, args: Sequence[Arg]) -> Any:
        return await self._here(self._scripts, name, args)


class Exchanger:
    """Settle and claim from wherever the engine runs."""

    def __init__(self, here: Callable[..., Awaitable[Reply]], exchange: Exchange) -> None:
        self._here = here
        self._exchange = exchange

    async def __call__(self, registry: str, request: Request) -> Reply:
        return await self._here(self._exchange, registry, request)


def _reserved(raw: Any, streams: dict[str, str]) -> list[Reserved]:
    """Read an XREADGROUP reply: nothing, or the messages of each stream. A message is its id and
    one field, the task's id, as the server sends it (the Cluster client makes it a dict).
    """
    found: list[Reserved] = []
    replies: list[tuple[bytes, list[tuple[bytes, list[bytes] | dict[bytes, bytes]]]]] = raw or []
    for stream, messages in replies:
        priority = streams[stream.decode()]
        for message_id, fields in messages:
            task_id = fields[b"id"] if isinstance(fields, dict) else fields[1]
            found.append(Reserved(text(task_id), message_id, priority))
    return found


__all__ = ["Broker", "is_connection_lost"]
