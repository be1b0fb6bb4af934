"""The one loop of a worker: settle what finished, claim what fits, again.

Under load batches grow by themselves, because everything that finishes while an exchange is under
way goes with the next one. When idle, a blocking read waits for the next message; it owns one of
the free slots while it does, so that a worker never holds a task it has no room for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from streaq.broker.connection import Backoff
from streaq.broker.errors import RedisError, ResponseError
from streaq.broker.exchange import Claimed, Reply, Request, Reserved
from streaq.broker.portal import current_backend
from streaq.engine.attempt import Finished, Lease, never_began
from streaq.engine.ledger import Ledger
from streaq.engine.outcome import Cause
from streaq.engine.wake import Wake
from streaq.hooks import Dispatcher, RedisLink, Slot

if TYPE_CHECKING:
    from streaq.broker.link import Broker, Exchanger
    from streaq.engine.catalog import Catalog
    from streaq.engine.health import Health
    from streaq.engine.settings import Settings
    from streaq.engine.spawn import Spawn

GIVE_UP_S = 10.0
"""A worker that shuts down while Redis is away waits this long for it; then others reclaim."""


class Pump:
    """Keeps the slots of one worker full.

    :param spawn: starts an attempt.
    :param look: has what is due moved to the queue; asked before a burst ends.
    :param ledger: told what committed.
    """

    def __init__(
        self,
        broker: Broker,
        exchanger: Exchanger,
        catalog: Catalog,
        hooks: Dispatcher,
        health: Health,
        settings: Settings,
        ledger: Ledger,
    ) -> None:
        self._broker = broker
        self._exchange = exchanger
        self._catalog = catalog
        self._hooks = hooks
        self._health = health
        self._settings = settings
        self._ledger = ledger
        self.spawn: Spawn
        self.look: Callable[[], Awaitable[None]]
        self.running: dict[str, Lease] = {}
        self._finished: list[Finished] = []
        self._sending: Sequence[Finished] = ()
        self._reserved: deque[Reserved] = deque()
        self.wake = Wake()
        self._read = Wake()
        self._reading = False
        self._read_scope: anyio.CancelScope | None = None
        self._unheard = False
        self._hungry = True
        self._reclaim = True
        self._draining = False
        self._looked = False
        self._resent = False
        self._lost_at: float | None = None
        self._backoff = Backoff()

    # ---------------------------------------------------------------- told by others

    def finish(self, finished: Finished) -> None:
        """An attempt ended: its slot is free, its settle goes with the next exchange."""
        task_id = finished.lease.claimed.task_id
        if self.running.get(task_id) is finished.lease:
            del self.running[task_id]
        self._finished.append(finished)
        self.wake.ring()

    def reclaim_soon(self) -> None:
        """Look for messages that were handed back, or whose worker died."""
        self._reclaim = True
        self.wake.ring()

    def stop_task(self, task_id: str, cause: Cause) -> None:
        """Cancel an attempt, if it runs here."""
        if lease := self.running.get(task_id):
            lease.cancel(cause)

    def lose(self, task_id: str, try_number: str) -> None:
        """Cancel the attempt whose lease this was."""
        lease = self.running.get(task_id)
        if lease is not None and str(lease.claimed.try_number) == try_number:
            lease.cancel(Cause.LOST)

    def drain(self) -> bool:
        """Claim no more; ``run`` returns when everything that runs is settled.

        :returns: whether this is the first time it is asked for.
        """
        first, self._draining = not self._draining, True
        if self._read_scope is not None:
            self._read_scope.cancel()
        self.wake.ring()
        return first

    def register_again(self) -> None:
        """The server forgot the worker's functions: the next exchange would be refused anyway, so
        have one, even if the worker is idle.
        """
        self.reclaim_soon()

    def interrupted(self) -> None:
        """The loop was cancelled, perhaps in the middle of an exchange: send that one again."""
        self._finished[:0] = self._sending
        self._sending = ()
        self._resent = True

    def cancel_running(self) -> None:
        """Cancel what still runs, to be handed back."""
        for lease in list(self.running.values()):
            lease.cancel(Cause.SHUTDOWN)

    def held(self) -> list[tuple[str, bytes, str, str, str, str]]:
        """Every message whose lease is ours: id, message, priority, try, lock and trace. Safe to
        call from the lease's thread.
        """
        leases = [*list(self.running.values())]
        leases += [f.lease for f in [*list(self._finished), *self._sending] if f.settle]
        found = [
            (
                lease.claimed.task_id, lease.claimed.message_id, lease.claimed.priority,
                str(lease.claimed.try_number),
                lease.function.name if "u" in lease.function.flags else "", lease.trace,
            )
            for lease in leases
        ]  # fmt: skip
        reserved = list(self._reserved)
        return found + [(r.task_id, r.message_id, r.priority, "", "", "") for r in reserved]

    # ----------------------------------------------------------------------- the loop

    async def run(self) -> None:
        """Settle and claim until drained, or (in burst mode) until the queue is empty."""
        while not self._done():
            request = self._next_request()
            if request is None:
                self._ledger.tell()
                await self._let_go()
                self._start_reading()
                await self.wake.wait()
                continue
            self._tell_meanwhile()
            reply = await self._send(request)
            if reply is not None:
                await self._take(request, reply)
        self._ledger.tell()

    def _tell_meanwhile(self) -> None:
        """Have hooks told once the exchange that comes next has been sent."""
        if not self._ledger.has_news:
            return
        if current_backend() == "asyncio":
            asyncio.get_running_loop().call_soon(self._ledger.tell)
        else:
            self._ledger.tell()

    def _done(self) -> bool:
        return self._draining and not (self.running or self._finished)

    def _next_request(self) -> Request | None:
        """What to ask for now; None when there is nothing to say."""
        self._sending, self._finished = self._sending_after(), []
        settles = [f.settle for f in self._sending if f.settle is not None]
        settings = self._settings
        room = 0 if self._draining else settings.concurrency - len(self.running)
        starts = [self._reserved.popleft() for _ in range(min(room, len(self._reserved)))]
        room -= len(starts)
        want = room - 1 if self._reading and room and not self._reclaim else room
        reserve = 0
        if settings.prefetch and not self._draining:
            reserve = max(0, settings.prefetch - len(self._reserved))
        hungry = (want or reserve) and (self._hungry or self._reclaim)
        if not (settles or starts or hungry):
            return None
        reclaim = self._reclaim and want > 0
        if reclaim:
            self._reclaim = False
        # What a blocking read waits for is its own to bring: else a later message could overtake.
        fresh = not (reclaim and self._reading)
        return Request(settles, starts, want, reserve, reclaim, self._resent, fresh)

    def _sending_after(self) -> list[Finished]:
        """What finished since the last exchange; lost leases have nothing to settle."""
        for finished in self._finished:
            if finished.settle is None:
                self._ledger.fenced(finished)
        return [f for f in self._finished if f.settle is not None]

    async def _take(self, request: Request, reply: Reply) -> None:
        """Act on an answer: tell what committed, start what was claimed."""
        self._health.polled()
        sent, self._sending = self._sending, ()
        for finished, code in zip(sent, reply.codes, strict=True):
            self._ledger.settled(finished, code)
        if reply.changes:
            self._ledger.changed(reply.now_ms, reply.changes)
        for claimed in reply.claimed:
            if before := self.running.get(claimed.task_id):
                before.cancel(Cause.LOST)  # this process was paused, and reclaimed from itself
            lease = Lease(claimed, self._catalog.functions[claimed.fn])
            if self._draining:
                self._finished.append(never_began(lease))
                continue
            self.running[claimed.task_id] = lease
            self.spawn(lease)
        for refused in reply.refused:
            self._ledger.refused(reply.now_ms, refused)
        self._health.started(len(self.running))
        self._reserved.extend(reply.reserved)
        self._reclaim = self._reclaim or reply.more
        if request.want or request.reserve:
            self._hungry = not reply.short
            if self._settings.burst:
                await self._end_burst(empty=self._is_empty(reply))
        await self._release_surplus()

    async def _end_burst(self, *, empty: bool) -> None:
        """Leave when the queue is empty, and still is once all that is due was moved there."""
        if not empty:
            self._looked = False
        elif self._looked:
            self.drain()
        else:
            self._hungry = True
            try:
                await self.look()
                self._looked = True
            except (RedisError, OSError):
                pass  # the next exchange finds out, and waits it out

    def _is_empty(self, reply: Reply) -> bool:
        nothing_came = not (reply.claimed or reply.refused or reply.reserved)
        nothing_left = not (self.running or self._finished or self._reserved)
        return reply.short and nothing_came and nothing_left and not self._reclaim

    async def _release_surplus(self) -> None:
        """Hand back messages there is no room for (a read and a reclaim came at once)."""
        room = self._settings.concurrency - len(self.running)
        keep = 0 if self._draining else room + self._settings.prefetch
        surplus = [self._reserved.pop() for _ in range(max(0, len(self._reserved) - keep))]
        if surplus:
            try:
                await self._broker.release(self._settings.consumer, surplus)
            except (RedisError, OSError):
                self._reserved.extend(surplus)  # the next exchange finds out, and waits it out

    async def _let_go(self) -> None:
        """While the last tasks run, others can have everything else at once."""
        if not self._draining:
            return
        await self._release_surplus()
        if self._unheard:
            self._unheard = False
            try:
                await self._recover()
            except (RedisError, OSError):
                self._unheard = True  # the next exchange finds out, and waits it out

    # ------------------------------------------------------------------ blocking reads

    def _start_reading(self) -> None:
        room = self._settings.concurrency - len(self.running)
        if room > 0 and not (self._reading or self._hungry or self._draining):
            self._reading = True
            self._read.ring()

    async def read_forever(self) -> None:
        """Wait for messages while the queue is empty; a task of its own."""
        settings = self._settings
        backoff = Backoff()
        while True:
            await self._read.wait()
            try:
                found = None
                with anyio.CancelScope() as self._read_scope:
                    found = await self._broker.read(settings.consumer, settings.priorities)
                self._reserved.extend(found or ())
                self._hungry = bool(found)
                # A message may have come with the cancellation, unheard.
                self._unheard = found is None
                backoff.reset()
            except (RedisError, OSError):
                # The exchange meets the same trouble, tells of it and waits it out.
                await anyio.sleep(backoff.next_delay())
                self._hungry = True
            self._reading = False
            self._health.polled()
            self.wake.ring()

    # ------------------------------------------------------------------- lost and found

    async def _send(self, request: Request) -> Reply | None:
        """One exchange, however often it takes. None when Redis stayed away during shutdown."""
        while True:
            self._health.polled()
            try:
                reply = await self._exchange(self._catalog.digest, request)
            except (RedisError, OSError) as e:
                if isinstance(e, ResponseError) and "STREAQ_REGISTRY" in str(e):
                    await self._register_again()
                    continue
                if self._lost(e):
                    return None
                await anyio.sleep(self._backoff.next_delay())
                # Whether it arrived is not known: repeat what is safe to repeat, claim later.
                request = Request(request.settles, (), 0, 0, False, True)
                continue
            if self._lost_at is not None:
                await self._restored(reply)
            return reply

    async def _register_again(self) -> None:
        settings = self._settings
        try:
            await self._broker.register(
                settings.consumer,
                self._catalog.digest,
                settings.lease_ms,
                settings.priorities,
                self._catalog.options,
            )
        except (RedisError, OSError):
            await anyio.sleep(self._backoff.next_delay())

    def _lost(self, error: Exception) -> bool:
        """Note that Redis is away; whether to stop waiting for it."""
        now = time.monotonic()
        self._health.redis_lost()
        if self._lost_at is None:
            self._lost_at = now
            self._tell_link(self._hooks.on_redis_lost, str(error), 0.0)
        if not self._draining or now - self._lost_at < GIVE_UP_S:
            return False
        self.cancel_running()
        self._sending, self._finished = (), []
        return True

    async def _restored(self, reply: Reply) -> None:
        """Hand back what was claimed in answers that never arrived, and go on. ``reply`` is the
        one that did arrive.
        """
        try:
            await self._recover(*reply.claimed, *reply.reserved)
        except (RedisError, OSError):
            return  # away again; the next exchange will find out
        outage_s = time.monotonic() - (self._lost_at or time.monotonic())
        self._lost_at = None
        self._backoff.reset()
        self._health.redis_restored()
        self._hungry = self._reclaim = True
        self._tell_link(self._hooks.on_redis_restored, "", outage_s)

    async def _recover(self, *came: Claimed | Reserved) -> None:
        held = [(held[2], held[1]) for held in (*self.held(), *came)]
        settings = self._settings
        await self._broker.recover(settings.consumer, settings.priorities, held)

    def _tell_link(self, slot: Slot, error: str, outage: float) -> None:
        if slot:
            event = RedisLink(self._settings.queue, self._settings.worker_id, error, outage)
            self._hooks.emit(slot, event)
