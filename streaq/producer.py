"""From tasks to envelopes: checks what was asked for, tells the hooks, hands over to the broker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio

from streaq.broker.connection import Backoff, is_connection_lost
from streaq.broker.errors import RedisError
from streaq.engine.cron import Crontab
from streaq.events import tell_changes
from streaq.hooks import Dispatcher, Enqueue, Kind, Publish
from streaq.registry import FIVE_MINUTES
from streaq.types import StreaqError
from streaq.utils import to_ms
from streaq.wire import DEFAULT_KEEP_MS, FOREVER_MS, Codec, Envelope, Mode, encode_headers

if TYPE_CHECKING:
    from streaq.broker.link import Broker
    from streaq.broker.publish import Published
    from streaq.task import Task

SEND_TRIES = 5
"""Times that publishing is sent when the connection breaks: it is safe to repeat, by task id."""


def keep_of(ttl: timedelta | float | None) -> int:
    """How long results stay, in ms: -1 for ever, 0 not at all."""
    return FOREVER_MS if ttl is None else to_ms(ttl)


def datetime_ms(moment: datetime, tz: tzinfo) -> int:
    """A moment as milliseconds since the epoch; a naive one is taken in ``tz``."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=tz)
    return round(moment.timestamp() * 1000)


def check_start(task: Task[Any, Any], priorities: Sequence[str], tz: tzinfo) -> None:
    """Refuse what can't be scheduled, where it is written.

    :raises StreaqError: with one line saying what is wrong.
    """
    name = task.parent.fn_name
    if task.priority is not None and task.priority not in priorities:
        known = ", ".join(reversed(priorities))
        raise StreaqError(
            f"Task {name}: there is no priority {task.priority!r}; this worker has {known} "
            f"(Worker(priorities=[...]))."
        )
    if task.delay is not None and _delay_ms(name, task.delay) < 0:
        raise StreaqError(f"Task {name}: a delay can't be negative (it is {task.delay}).")
    schedule = cast("object", task.schedule)
    if isinstance(schedule, str):
        Crontab.parse(schedule, tz)
    elif schedule is not None and not isinstance(schedule, datetime):
        raise StreaqError(f"Task {name}: schedule is a datetime or a crontab, not {schedule!r}.")


def _delay_ms(name: str, delay: timedelta | float) -> int:
    try:
        return to_ms(delay)
    except (TypeError, ValueError, OverflowError):
        raise StreaqError(f"Task {name}: delay is seconds or a timedelta, not {delay!r}.") from None


_Units: TypeAlias = Sequence[Sequence[Envelope]]
_NOT_DEFAULT: dict[str, str] = {kind: kind for kind in ("delayed", "cron", "dependent")}


class Producer:
    """Enqueues tasks for one worker object.

    :param queue: name of the queue.
    :param client_id: who enqueues, for telemetry.
    :param priorities: highest first.
    :param default_priority: where tasks go that name none.
    """

    def __init__(
        self,
        broker: Broker,
        codec: Codec,
        hooks: Dispatcher,
        *,
        queue: str,
        client_id: str,
        priorities: Sequence[str],
        default_priority: str,
        tz: tzinfo,
    ) -> None:
        self._broker = broker
        self._codec = codec
        self._hooks = hooks
        self._queue = queue
        self._client_id = client_id
        self._priorities = priorities
        self._default_priority = default_priority
        self._tz = tz

    async def publish(self, tasks: Sequence[Task[Any, Any]]) -> None:
        """Enqueue tasks, each with those it follows in a pipeline.

        :raises StreaqError: when one can't be serialised or the server can't be reached. Nothing
            of a task is written then, or all of it; awaiting the same task again is safe.
        """
        # A large batch has few containers of its own: each would be looked at by the garbage
        # collector again and again while the batch is made.
        if any(task.previous is not None for task in tasks):
            chains = [task.chain() for task in tasks]
            links = [link for chain in chains for link in chain]
            lengths = [len(chain) for chain in chains]
        else:
            links, lengths = list(tasks), None
        events = self._events(links)
        with self._around(events):
            for event in events:
                self._hooks.emit(self._hooks.on_enqueue, event)
            headers = {e.task_id: encode_headers(e.headers) for e in events if e.headers}
            sealed = [await self._seal(link, headers.get(link.id, "")) for link in links]
            units = _in_units(sealed, lengths)
            published = await self._write(links, units)
        for link in links:
            link.enqueued = True
        if self._hooks.on_enqueued:
            for event, word in zip(events, published.words, strict=True):
                if word != "exists":
                    self._hooks.emit(self._hooks.on_enqueued, event)
        if published.changes:
            changes = published.changes
            tell_changes(self._hooks, self._queue, self._client_id, published.now_ms, changes)

    def _events(self, links: list[Task[Any, Any]]) -> list[Enqueue]:
        hooks = self._hooks
        if not (hooks.on_enqueue or hooks.on_enqueued or hooks.around_publish):
            return []
        return [self._event(link) for link in links]

    def _event(self, task: Task[Any, Any]) -> Enqueue:
        after = tuple(task.after)
        if task.previous is not None:
            after = (task.previous.id, *after)
        delay_ms = 0
        if task.delay is not None:
            delay_ms = to_ms(task.delay)
        elif isinstance(task.schedule, datetime):
            delay_ms = max(0, datetime_ms(task.schedule, self._tz) - round(time.time() * 1000))
        return Enqueue(
            self._queue, task.parent.fn_name, task.id, task.priority or self._default_priority,
            kind_of(task, after), delay_ms, after, {}, task.parent.silent,
        )  # fmt: skip

    def _around(self, events: list[Enqueue]) -> AbstractContextManager[None]:
        slot = self._hooks.around_publish
        if not slot or not events:
            return nullcontext()
        return self._hooks.around(slot, Publish(self._queue, self._client_id, events))

    async def _seal(self, task: Task[Any, Any], headers: str) -> Envelope:
        """One task as it travels."""
        parent = task.parent
        fn = parent.fn_name
        if task.is_plain and parent.expire is None and parent.ttl == FIVE_MINUTES:
            priority = task.priority or self._default_priority
            args = await self._codec.dump_call(fn, task.args, task.kwargs)
            return Envelope(task.id, fn, priority, args, headers)
        check_start(task, self._priorities, self._tz)
        mode: Mode = "otherwise" if task.fallback else "then"
        dependencies: list[tuple[str, Mode]] = [(task_id, "after") for task_id in task.after]
        if task.previous is not None:
            dependencies.insert(0, (task.previous.id, mode))
        keep = keep_of(parent.ttl)
        return Envelope(
            task.id,
            parent.fn_name,
            task.priority or self._default_priority,
            await self._codec.dump_call(parent.fn_name, task.args, task.kwargs),
            headers,
            self._due(task),
            "" if parent.expire is None else str(to_ms(parent.expire)),
            "" if keep == DEFAULT_KEEP_MS else str(keep),
            _NOT_DEFAULT.get(kind_of(task, dependencies), ""),
            "1" if task.takes_input else "",
            task.schedule if isinstance(task.schedule, str) else "",
            tz_name(self._tz) if isinstance(task.schedule, str) else "",
            tuple(dependencies),
        )

    def _due(self, task: Task[Any, Any]) -> str:
        if task.delay is not None:
            return f"+{to_ms(task.delay)}"
        if isinstance(task.schedule, datetime):
            return str(datetime_ms(task.schedule, self._tz))
        if isinstance(task.schedule, str):
            first = Crontab.parse(task.schedule, self._tz).next_after(round(time.time() * 1000))
            if first is None:
                raise StreaqError(f"The crontab {task.schedule!r} has no firing left.")
            return str(first)
        return ""

    async def _write(self, links: list[Task[Any, Any]], units: _Units) -> Published:
        if any(link.enqueued or link.doubtful for link in links):
            units = _again(units)
        try:
            return await self._send(units)
        except BaseException:
            for link in links:
                link.doubtful = True
            raise

    async def _send(self, units: _Units) -> Published:
        try:
            return await self._broker.publish(units)
        except (RedisError, OSError) as e:
            error: Exception = e
        backoff = Backoff()
        units = _again(units)
        for _ in range(SEND_TRIES - 1):
            if not is_connection_lost(error):
                break
            await anyio.sleep(backoff.next_delay())
            try:
                return _sent_again(await self._broker.publish(units))
            except (RedisError, OSError) as e:
                error = e
        raise StreaqError(
            f"Could not enqueue at {self._broker.connector.safe_url}: {error}. "
            f"Awaiting the same task again is safe."
        ) from error


def _again(units: _Units) -> _Units:
    """The same, saying that it may have been written before."""
    return [[envelope._replace(again="1") for envelope in unit] for unit in units]


def _sent_again(published: Published) -> Published:
    """What exists was written by an earlier try, whose answer was lost: it is as good as new."""
    words = ["written" if word == "exists" else word for word in published.words]
    return published._replace(words=words)


def _in_units(sealed: list[Envelope], lengths: list[int] | None) -> list[Sequence[Envelope]]:
    """What goes with one call each: pipelines of these lengths, or else single tasks."""
    if lengths is None:
        return [(envelope,) for envelope in sealed]
    rest = iter(sealed)
    return [list(islice(rest, length)) for length in lengths]


def kind_of(task: Task[Any, Any], dependencies: Sequence[object]) -> Kind:
    """Why a task will become due."""
    if dependencies:
        return "dependent"
    if isinstance(task.schedule, str):
        return "cron"
    if task.delay is not None or task.schedule is not None:
        return "delayed"
    return "immediate"


def tz_name(tz: tzinfo) -> str:
    """A time zone as it travels: its IANA name, or empty for "the worker's own"."""
    if tz is UTC:
        return "UTC"
    return str(getattr(tz, "key", ""))
