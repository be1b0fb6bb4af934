"""A thread that notices when the event loop stands still, and says on which line.

A blocked loop cannot report itself, and its leases run out meanwhile; so a thread watches the
beats and speaks up well before ``idle_timeout``.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from streaq.hooks import LoopBlocked

if TYPE_CHECKING:
    from streaq.engine.health import Health

FRACTION = 0.25
"""The loop is called blocked after this part of ``idle_timeout``."""
MAX_INTERVAL_S = 0.5

_LIBRARIES = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        "<frozen",
    }
)

_ENGINE = str(Path(__file__).parent)


class Watchdog:
    """Watches one event loop.

    :param health: where the beats are kept; ``beat()`` writes it, the thread reads it.
    :param idle_timeout_s: after how long a silent worker loses its leases; the loop is called
        blocked after a quarter of it.
    :param emit: told once per block, and again each time it has lasted twice as long. Called
        from the watchdog's thread.
    :param running: names of the tasks that run now.
    :param function_of: the function behind such a name, when known. With it, the event names
        just the task that blocks; without it, all that run.

    Example (the engine's)::

        dog = Watchdog(health, queue="default", worker_id=id, idle_timeout_s=60,
                       emit=lambda e: hooks.emit(hooks.on_loop_blocked, e), running=names)
        dog.start()                      # in the event loop's thread
        while True:
            dog.beat()
            await sleep(dog.interval_s)
        dog.stop()
    """

    def __init__(
        self,
        health: Health,
        *,
        queue: str,
        worker_id: str,
        idle_timeout_s: float,
        emit: Callable[[LoopBlocked], None],
        running: Callable[[], Iterable[str]],
        function_of: Callable[[str], object] | None = None,
    ) -> None:
        self.limit_s = idle_timeout_s * FRACTION
        self.interval_s = min(MAX_INTERVAL_S, self.limit_s / 4)
        """How often the engine should call ``beat()``, in seconds."""
        self._health = health
        self._queue = queue
        self._worker_id = worker_id
        self._emit = emit
        self._running = running
        self._function_of = function_of
        self._loop_thread = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch. Call it in the thread that runs the event loop."""
        self._loop_thread = threading.get_ident()
        self.beat()
        self._thread = threading.Thread(target=self._watch, name="streaq-watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Say that the loop runs. Call it from the loop every ``interval_s`` seconds."""
        self._health.beat(self.interval_s)

    def stop(self) -> None:
        """Stop watching; returns at once."""
        self._stop.set()

    def _watch(self) -> None:
        next_report = self.limit_s
        while not self._stop.wait(self.interval_s):
            silent = self._health.silent_s
            if silent < self.limit_s:
                next_report = self.limit_s
            elif silent >= next_report:
                next_report = silent * 2
                self._report(silent)

    def _report(self, silent_s: float) -> None:
        frames = stack_of(self._loop_thread)
        names = tuple(self._running())
        event = LoopBlocked(
            queue=self._queue,
            worker_id=self._worker_id,
            blocked_s=silent_s,
            where=describe(frames),
            tasks=self._culprits(names, frames) or names,
        )
        self._emit(event)

    def _culprits(self, names: tuple[str, ...], frames: list[FrameType]) -> tuple[str, ...]:
        if self._function_of is None:
            return ()
        codes = {frame.f_code for frame in frames}
        return tuple(name for name in names if code_of(self._function_of(name)) in codes)


def stack_of(thread_id: int) -> list[FrameType]:
    """The frames of a thread, innermost first; empty when the thread is gone."""
    frame: FrameType | None = sys._current_frames().get(thread_id)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def describe(frames: list[FrameType]) -> str:
    """The user's line that a stack stands on, and the library's line inside it, if any."""
    if not frames:
        return "unknown"
    inner = frames[0]
    ours = [i for i, f in enumerate(frames) if f.f_code.co_filename.startswith(_ENGINE)]
    task = frames[: ours[0]] if ours else frames
    if not task:
        return _line(inner)
    own = next((f for f in task if not f.f_code.co_filename.startswith(_LIBRARIES)), task[-1])
    return _line(own) if own is inner else f"{_line(own)}, inside {_line(inner)}"


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def code_of(function: Any) -> CodeType | None:
    """The code object behind a function, through any number of decorators."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        function = inner
    return getattr(function, "__code__", None)
