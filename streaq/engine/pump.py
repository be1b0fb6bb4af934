"""The loop of a worker: settle what finished, claim what fits, again.

Under load batches grow by themselves, because everything that finishes while an exchange is under
way goes with the next one. When much finishes, a second exchange is sent beside the first: Redis
works on one while the tasks of the other run. The second one is only ever a help. It waits for
nothing, retries nothing, and what it could not deliver goes back to the first.

When idle, a blocking read waits for the next message; it owns one of the free slots while it does,
so that a worker never holds a task it has no room for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from streaq.broker.errors import RedisError, ResponseError
from streaq.broker.exchange import Claimed, Reply, Reserved
from streaq.broker.portal import current_backend
from streaq.engine.attempt import Finished, Lease, never_began
from streaq.engine.burst import Burst
from streaq.engine.contact import SILENCE_S, Contact
from streaq.engine.lanes import Lanes
from streaq.engine.ledger import Ledger
from streaq.engine.outcome import Cause
from streaq.engine.reader import Reader
from streaq.engine.slots import Flight, Slots
from streaq.engine.wake import Wake
from streaq.hooks import Dispatcher

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
        self._lanes = Lanes(catalog.functions, hooks, settings)
        self.spawn: Spawn
        self._slots = Slots(settings)
        self.burst = Burst(broker, settings, self._slots)
        self.held = self._slots.held
        self.traced = self._slots.traced
        self.wake = Wake()
        self.reader = Reader(broker, settings, self._slots, health, self._fetch)
        self._help = Wake()
        self._helps = False
        self._first: Flight | None = None
        self._second: Flight | None = None
        self._failed = False
        self._contact = Contact(hooks, health, settings)

    # ---------------------------------------------------------------- told by others

    @property
    def running(self) -> dict[str, Lease]:
        """What runs now, by task id."""
        return self._slots.running

    def finish(self, finished: Finished) -> None:
        """An attempt ended: its slot is free, its settle goes with the next exchange. One whose
        lease was lost has nothing to settle.
        """
        slots = self._slots
        task_id = finished.lease.claimed.task_id
        if slots.running.get(task_id) is finished.lease:
            del slots.running[task_id]
        if finished.settle is None:
            self._ledger.fenced(finished)
        else:
            slots.finished.append(finished)
        if self._first is None:
            self.wake.ring()
        elif self._can_help():
            self._help.ring()

    def reclaim_soon(self) -> None:
        """Look for messages that were handed back, or whose worker died."""
        self._slots.reclaim = True
        self.wake.ring()

    def stop_task(self, task_id: str, cause: Cause) -> None:
        """Cancel an attempt, if it runs here or is about to."""
        self._slots.stop(task_id, cause)

    def lose(self, task_id: str, try_number: str) -> None:
        """Cancel the attempt whose lease this was."""
        lease = self.running.get(task_id)
        if lease is not None and str(lease.claimed.try_number) == try_number:
            lease.cancel(Cause.LOST)

    def drain(self) -> bool:
        """Claim no more; ``run`` returns when everything that runs is settled.

        :returns: whether this is the first time it is asked for.
        """
        first, self._slots.draining = not self._slots.draining, True
        self.reader.stop()
        self.wake.ring()
        return first

    def register_again(self) -> None:
        """The server forgot the worker's functions: the next exchange would be refused anyway, so
        have one, even if the worker is idle.
        """
        self.reclaim_soon()

    def interrupted(self) -> None:
        """The loop was cancelled, perhaps in the middle of an exchange: send that one again."""
        for flight in self._slots.flights[::-1]:
            self._slots.turn_back(flight)
        self._first = self._second = None

    def cancel_running(self) -> None:
        """Cancel what still runs, to be handed back."""
        for lease in list(self.running.values()):
            lease.cancel(Cause.SHUTDOWN)

    def look_after(self) -> bool:
        """What the loop cannot say of itself while it waits for an answer; called now and then.

        :returns: False once a worker that is to stop has waited for long enough.
        """
        self._health.holds(len(self.running), self._slots.oldest_ms())
        waited_s = self._contact.silence_s(self._slots)
        if not self.running:
            waited_s = max(waited_s, self._contact.lost_s)  # nobody needs time to clean up
        return not self._slots.draining or waited_s < GIVE_UP_S

    @property
    def is_cut_off(self) -> bool:
        """Whether Redis was lost, and has not been found again."""
        return self._contact.is_lost

    # ----------------------------------------------------------------------- the loop

    async def run(self) -> None:
        """Settle and claim until drained, or (in burst mode) until the queue is empty."""
        try:
            while self._goes_on():
                self._first = flight = self._slots.depart(share=self._can_help())
                if flight is None:
                    await self._rest()
                    continue
                self._tell_meanwhile()
                if self._can_help():
                    self._help.ring()
                reply = await self._send(flight)
                self._first, self._failed = None, False
                if reply is not None:
                    await self._take(flight, reply)
        finally:
            self._ledger.tell()

    async def _rest(self) -> None:
        """Until something finishes or comes, or the second exchange is answered."""
        self._health.holds(len(self.running), self._slots.oldest_ms())
        if self._second is None:
            self._ledger.tell()
            await self._let_go()
            self.reader.start()
        await self.wake.wait()

    async def help_forever(self) -> None:
        """Send the second exchange whenever it is worth it; a task of its own."""
        self._helps = True
        try:
            while True:
                if self._first is None or not self._can_help():
                    await self._help.wait()
                    continue
                await self._send_second()
        finally:
            self._helps = False

    async def _fetch(self) -> None:
        """Claim what a read found, at once and in the reader's task: a worker that was idle starts
        its task sooner than if the loop had to wake up first.
        """
        if self._contact.is_lost:
            self._slots.hungry = True  # whatever came of it, the loop is to find out
        elif self._first is None and self._second is None:
            await self._send_second()
        self.wake.ring()

    async def _send_second(self) -> None:
        self._second = flight = self._slots.depart()
        if flight is None:
            return
        self._tell_meanwhile()
        try:
            reply = await self._exchange(self._catalog.digest, flight.request)
        except (RedisError, OSError) as e:
            refused = _is_forgotten(e)
            self._slots.turn_back(flight, refused=refused)
            self._failed = True  # no more of it until the first was answered
            if not refused:
                self._contact.lose(e)
        else:
            await self._take(flight, reply)
            if self._contact.is_lost:
                self._slots.hungry = True  # it is for the loop to go on
        self._second = None
        self.wake.ring()

    def _can_help(self) -> bool:
        """Whether a second exchange is possible now, and worth it."""
        if not self._helps or self._second is not None or self._failed:
            return False
        return not self._contact.is_lost and self._slots.is_crowded()

    def _tell_meanwhile(self) -> None:
        """Have hooks told once the exchange that comes next has been sent."""
        if not self._ledger.has_news:
            return
        if current_backend() == "asyncio":
            asyncio.get_running_loop().call_soon(self._ledger.tell)
        else:
            self._ledger.tell()

    def _goes_on(self) -> bool:
        slots = self._slots
        return not slots.draining or bool(slots.running or slots.finished or slots.flights)

    async def _take(self, flight: Flight, reply: Reply) -> None:
        """Act on an answer: tell what committed, start what was claimed."""
        self._health.polled()
        slots, ledger = self._slots, self._ledger
        ledger.settled(slots.land(flight), reply.codes)
        if reply.changes:
            ledger.changed(reply.now_ms, reply.changes)
        for refused in reply.refused:
            ledger.refused(reply.now_ms, refused)
        self._begin(reply.claimed)
        self._health.started()
        self._health.holds(len(slots.running), slots.oldest_ms())
        slots.learn(flight.request, reply)
        if self._settings.burst:
            second = flight is self._second
            if await self.burst.is_over(flight.request, reply, second=second):
                self.drain()
        await self._release_surplus()

    def _begin(self, claims: Sequence[Claimed]) -> None:
        """Start what was claimed, or (too late for that) have it handed back."""
        slots = self._slots
        leases = [Lease(claimed, self._lanes.of(claimed)) for claimed in claims]
        if slots.draining:
            slots.finished += map(never_began, leases)
        elif leases:
            self._hooks.look()
            self._ledger.starting(leases)
        # Of the ends before those begin that have their slots now, else more would seem to run than
        # there is room for.
        self._tell_meanwhile()
        for lease in leases:
            if slots.hold(lease):
                self.spawn(lease)

    async def _release_surplus(self) -> None:
        """Hand back messages there is no room for."""
        surplus = self._slots.surplus()
        if surplus:
            try:
                with anyio.fail_after(SILENCE_S):
                    await self._broker.release(self._settings.consumer, surplus)
            except (RedisError, OSError):
                # The next exchange finds out, and waits it out.
                self._slots.reserved.extend(surplus)

    async def _let_go(self) -> None:
        """While the last tasks run, others can have everything else at once."""
        if not self._slots.draining:
            return
        await self._release_surplus()
        if self.reader.unheard:
            self.reader.unheard = False
            try:
                with anyio.fail_after(SILENCE_S):
                    await self._recover()
            except (RedisError, OSError):
                self.reader.unheard = True  # the next exchange finds out, and waits it out

    # ------------------------------------------------------------------- lost and found

    async def _send(self, flight: Flight) -> Reply | None:
        """One exchange, however often it takes. None when Redis stayed away during shutdown."""
        while True:
            self._health.polled()
            try:
                reply = await self._exchange(self._catalog.digest, flight.request)
            except (RedisError, OSError) as e:
                if _is_forgotten(e):
                    await self._register_again()
                    continue
                self._contact.lose(e)
                if self._gives_up():
                    return None
                await anyio.sleep(self._contact.backoff.next_delay())
                flight.reduce()
                continue
            if self._contact.is_lost:
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
            await anyio.sleep(self._contact.backoff.next_delay())

    def _gives_up(self) -> bool:
        """Whether to stop waiting for Redis."""
        slots = self._slots
        if not slots.draining or self._contact.lost_s < GIVE_UP_S:
            return False
        self.cancel_running()
        slots.flights, slots.finished = [], []
        return True

    async def _restored(self, reply: Reply) -> None:
        """Hand back what was claimed in answers that never arrived, and go on. ``reply`` is the
        one that did arrive.
        """
        while self._second is not None:
            await self.wake.wait()  # it may bring tasks, which are not to be handed back
        try:
            await self._recover(*reply.claimed, *reply.reserved)
        except (RedisError, OSError):
            return  # away again; the next exchange will find out
        self._slots.hungry = self._slots.reclaim = True
        self._contact.find()

    async def _recover(self, *came: Claimed | Reserved) -> None:
        settings = self._settings
        known = self._slots.known(*came)
        await self._broker.recover(settings.consumer, settings.priorities, known)


def _is_forgotten(error: Exception) -> bool:
    """Whether the server forgot the worker's functions: then it did nothing."""
    return isinstance(error, ResponseError) and "STREAQ_REGISTRY" in str(error)
