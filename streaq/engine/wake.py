"""A doorbell: any number of rings before the door is opened count as one."""

from __future__ import annotations

import anyio


class Wake:
    """Wakes one sleeper. Rings are never lost, and never counted.

    Example::

        wake.ring()
        await wake.wait()  # returns at once
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Have the sleeper wake up, now or when it next lies down."""
        self._event.set()

    async def wait(self) -> None:
        """Sleep until rung."""
        if not self._event.is_set():
            await self._event.wait()
        self._event = anyio.Event()

    async def wait_for(self, seconds: float) -> None:
        """Sleep until rung, or for that long."""
        with anyio.move_on_after(seconds):
            await self.wait()
