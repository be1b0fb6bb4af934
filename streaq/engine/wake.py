"""A doorbell: any number of rings before the door is opened count as one."""

from __future__ import annotations

import anyio


class Wake:
    """Wakes one sleeper. Rings are never lost, and never counted.

    Example::

        wake.ring()
        await wake.wait()  # returns at once
    """

    __slots__ = ("_new_event", "_rung", "_sleeper")

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: anyio.Event | None = None
        self._new_event: type[anyio.Event] | None = None

    def ring(self) -> None:
        """Have the sleeper wake up, now or when it next lies down."""
        self._rung = True
        if self._sleeper is not None:
            self._sleeper.set()

    async def wait(self) -> None:
        """Sleep until rung."""
        if not self._rung:
            # The backend's own class: anyio.Event looks for it anew each time it is called.
            self._new_event = self._new_event or type(anyio.Event())
            self._sleeper = self._new_event()
            try:
                await self._sleeper.wait()
            finally:
                self._sleeper = None
        self._rung = False

    async def wait_for(self, seconds: float) -> None:
        """Sleep until rung, or for that long."""
        with anyio.move_on_after(seconds):
            await self.wait()
