"""When a worker that is to stop at the end of its queue has come there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from streaq.broker.errors import RedisError

if TYPE_CHECKING:
    from streaq.broker.exchange import Reply, Request
    from streaq.broker.link import Broker
    from streaq.engine.settings import Settings
    from streaq.engine.slots import Slots


class Burst:
    """Asks for what is due once more before it says that nothing is left.

    A blocking read may have been given a message whose answer is still under way, so that neither
    an exchange nor the slots know of it: what this worker holds is asked of the server.
    """

    def __init__(self, broker: Broker, settings: Settings, slots: Slots) -> None:
        self._broker = broker
        self._settings = settings
        self._slots = slots
        self.look: Callable[[], Awaitable[None]]
        """Has what is due moved to the queue."""
        self._looked = False
        """Whether that was done, and nothing since could have made more due."""

    async def is_over(self, request: Request, reply: Reply, *, second: bool) -> bool:
        """Whether to stop, after this answer.

        :param second: whether it is that of the second exchange, which never finds out.
        """
        if request.settles or reply.claimed or reply.refused:
            self._looked = False  # what ended or was retried may have made more due
        if second:
            self._slots.hungry = True
            return False
        if not (request.want or request.reserve):
            return False
        if not self._slots.is_empty_after(reply):
            self._looked = False
            return False
        try:
            if self._looked:
                return await self._holds_nothing()
            self._slots.hungry = self._looked = True
            await self.look()
        except (RedisError, OSError):
            self._looked = False
            self._slots.hungry = True  # the next exchange finds out, and waits it out
        return False

    async def _holds_nothing(self) -> bool:
        """By the server, and still when it has answered."""
        settings = self._settings
        held = await self._broker.count_held(settings.consumer, settings.priorities)
        return not held and self._looked and self._slots.is_idle
