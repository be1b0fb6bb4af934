"""Carries calls from Trio to asyncio. redis-py's async client is asyncio only, so under Trio the
broker lives on an asyncio loop in a thread of its own. The only module that knows of Trio.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, TypeVarTuple

import anyio
import anyio.lowlevel
import anyio.to_thread

from streaq.types import StreaqError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def current_backend() -> Literal["asyncio", "trio"]:
    """The event loop library that the caller runs on.

    :raises StreaqError: it runs on none.
    """
    # Who never imported Trio does not run on it, and it need not be installed.
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_task():
            return "trio"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise StreaqError("no event loop is running here: call this from async code") from None
    return "asyncio"


class _Call:
    """One call on its way: its task over there, and the event that its end sets over here."""

    __slots__ = ("done", "task")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.task: asyncio.Task[Any] | None = None

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Portal:
    """An asyncio loop (uvloop's where installed) in a thread, for as long as the context is open.

    Example::

        async with Portal() as portal:  # under Trio
            client = await portal.call(connector.open)
            await portal.call(client.ping)
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread
        self._soon: Callable[..., object]

    async def __aenter__(self) -> Self:
        self._soon = home_scheduler()
        self._loop = loop = _new_loop()
        self._thread = threading.Thread(
            target=self._run, args=(loop,), name="streaq-portal", daemon=True
        )
        self._thread.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(self._stop.set)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._thread.join)

    async def call(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Runs ``await fn(*args)`` as a task of the portal's loop, in the caller's context.

        A caller that is cancelled already does not begin. Cancelling it later cancels that task,
        and the cancellation goes on when the task has ended. Should the task have come to an end
        of its own all the same, its value or error is not lost: it is handed on, and the
        cancellation comes at the caller's next checkpoint.

        :raises StreaqError: the portal is closed, or was closed before the call ended.
        """
        loop = self._loop
        if loop is None:
            raise StreaqError("the portal is closed: enter it before calling through it")
        # The task over there may be faster than the cancellation that follows it.
        await anyio.lowlevel.checkpoint_if_cancelled()
        call = _Call()
        loop.call_soon_threadsafe(self._begin, call, fn, args, context=copy_context())
        try:
            await call.done.wait()
        except anyio.get_cancelled_exc_class():
            # A loop that is closed has ended the call before.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(call.cancel)
            with anyio.CancelScope(shield=True):
                await call.done.wait()
            if call.task is None or call.task.cancelled():
                raise
        if call.task is None or call.task.cancelled():
            raise StreaqError("the portal was closed before the call ended")
        return call.task.result()

    def post(self, fn: Callable[[*Ts], object], *args: *Ts) -> None:
        """From the portal's thread: have ``fn(*args)`` called soon on the one that entered it."""
        self._soon(fn, *args)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        # The runner cancels what is left when the portal closes, and closes the loop.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._stop.wait())

    def _begin(self, call: _Call, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        call.task = asyncio.ensure_future(_run_call(fn, args))
        call.task.add_done_callback(lambda _: self.post(call.done.set))


async def _run_call(fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
    return await fn(*args)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def home_scheduler() -> Callable[..., object]:
    """What schedules a callback on the loop that runs here now, from any thread."""
    if current_backend() == "asyncio":
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio

    return trio.lowlevel.current_trio_token().run_sync_soon
