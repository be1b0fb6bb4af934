"""Whether Redis answers, as far as a worker can tell, and who is told of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from streaq.broker.connection import Backoff
from streaq.broker.link import READ_BLOCK_MS
from streaq.hooks import RedisLink

if TYPE_CHECKING:
    from streaq.engine.health import Health
    from streaq.engine.settings import Settings
    from streaq.engine.slots import Slots
    from streaq.hooks import Dispatcher, Slot

SILENCE_S = 5.0
"""A Redis that took a request and has not answered it for so long is called lost."""
PROMPT_S = 1.0
"""A loop without a beat for longer was blocked itself, and has not yet read what came meanwhile."""


class Contact:
    """One worker's contact with Redis."""

    def __init__(self, hooks: Dispatcher, health: Health, settings: Settings) -> None:
        self._hooks = hooks
        self._health = health
        self._settings = settings
        self._lost_at: float | None = None
        self.backoff = Backoff()

    @property
    def is_lost(self) -> bool:
        """Whether Redis was called lost, and has not been found again."""
        return self._lost_at is not None

    @property
    def lost_s(self) -> float:
        """Seconds since Redis was lost; 0 while it answers."""
        return 0.0 if self._lost_at is None else time.monotonic() - self._lost_at

    def lose(self, error: Exception) -> None:
        """Redis does not answer; hooks are told the first time."""
        self._health.redis_lost()
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._tell(self._hooks.on_redis_lost, str(error), 0.0)

    def find(self) -> None:
        """Redis answers again."""
        outage_s, self._lost_at = self.lost_s, None
        self.backoff.reset()
        self._health.redis_restored()
        self._tell(self._hooks.on_redis_restored, "", outage_s)

    def silence_s(self, slots: Slots) -> float:
        """Seconds for which Redis owes an answer; it is called lost when they are too many.

        A connection that is only slow stays open: its answer is used whenever it comes.
        """
        if not (slots.flights or slots.reading) or self._health.silent_s > PROMPT_S:
            return 0.0
        silent_s = self._health.unanswered_s
        if not slots.flights:
            silent_s = max(0.0, silent_s - READ_BLOCK_MS / 1000)
        if silent_s > SILENCE_S:
            self.lose(TimeoutError(f"no answer for {silent_s:.0f} s"))
        return silent_s

    def _tell(self, slot: Slot, error: str, outage_s: float) -> None:
        if slot:
            event = RedisLink(self._settings.queue, self._settings.worker_id, error, outage_s)
            self._hooks.emit(slot, event)
