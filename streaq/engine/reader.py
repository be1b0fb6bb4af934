"""Blocking reads: how an idle worker learns of the next message without asking for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from streaq.broker.connection import Backoff
from streaq.broker.errors import RedisError
from streaq.engine.wake import Wake

if TYPE_CHECKING:
    from streaq.broker.link import Broker
    from streaq.engine.health import Health
    from streaq.engine.settings import Settings
    from streaq.engine.slots import Slots


class Reader:
    """Reads one message at a time while the queue is empty, each into a slot kept free for it.

    :param fetch: awaited whenever a read ended, whatever it brought.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        slots: Slots,
        health: Health,
        fetch: Callable[[], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._slots = slots
        self._health = health
        self._fetch = fetch
        self._wanted = Wake()
        self._scope: anyio.CancelScope | None = None
        self.unheard = False
        """Whether a message may have come with a cancellation, unheard."""

    def start(self) -> None:
        """Have the next message read, if there is a slot for it and none in sight."""
        slots = self._slots
        if slots.free() > 0 and not (slots.reading or slots.hungry or slots.draining):
            slots.reading = True
            self._wanted.ring()

    def stop(self) -> None:
        """End the read that is under way."""
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> None:
        """Read whenever ``start`` asks for it; a task of its own."""
        settings, slots = self._settings, self._slots
        backoff = Backoff()
        while True:
            await self._wanted.wait()
            try:
                found = None
                with anyio.CancelScope() as self._scope:
                    found = await self._broker.read(settings.consumer, settings.priorities)
                slots.reserved.extend(found or ())
                slots.hungry = bool(found)
                self.unheard = found is None
                backoff.reset()
            except (RedisError, OSError):
                # The exchange meets the same trouble, tells of it and waits it out.
                await anyio.sleep(backoff.next_delay())
                slots.hungry = True
            slots.reading = False
            self._health.polled()
            await self._fetch()
