"""What every adapter shares: the meter a worker counts into, the start gate, the bodies of tasks.

Only the standard library is imported here, because this file runs inside each peer's own virtual
environment. The harness talks to an adapter through files in `BENCH_DIR` (so that measuring never
touches the Redis that is measured) and one line of JSON on standard output.

- A worker process holds itself at `gate()` once it has imported everything, so interpreter start-up
  is outside every figure and two workers begin at the same instant.
- Each task ends with `tick()`: a counter and two wall-clock stamps in a memory-mapped file. The
  cost (about half a microsecond) is the same for all queues.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from itertools import count
from pathlib import Path

DIR = Path(os.environ.get("BENCH_DIR", "."))
URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "32"))
OPTIONS = json.loads(os.environ.get("BENCH_OPTIONS", "{}"))
LANES = ["p1", "p2", "p3", "p4", "p5"]  # lowest to highest

COUNT, FIRST, LAST, SAMPLES, HEAD = 0, 1, 2, 3, 4
SLOTS = 16_384
METER_BYTES = 8 * (HEAD + SLOTS)


class Meter:
    """Counts finished tasks of one process where the harness can see it without asking Redis."""

    def __init__(self) -> None:
        path = DIR / f"{os.getpid()}.meter"
        with path.open("w+b") as file:
            file.truncate(METER_BYTES)
            self._map = mmap.mmap(file.fileno(), METER_BYTES)
        self._cells = memoryview(self._map).cast("q")
        self._counter = count(1)
        self._lock = threading.Lock()

    def tick(self, started_ns: int) -> None:
        now = time.time_ns()
        with self._lock:
            cells = self._cells
            if not cells[FIRST]:
                cells[FIRST] = started_ns or now
            cells[LAST] = now
            cells[COUNT] = next(self._counter)

    def sample(self, value: int) -> None:
        with self._lock:
            cells = self._cells
            index = cells[SAMPLES]
            if index < SLOTS:
                cells[HEAD + index] = value
                cells[SAMPLES] = index + 1


_meter: Meter | None = None
_making = threading.Lock()


def _forget() -> None:
    global _meter, _making
    _meter, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def meter() -> Meter:
    """The meter of this process, made at its first use so that forked children have their own."""
    global _meter  # noqa: PLW0603 - one meter a process, made late
    with _making:
        if _meter is None:
            _meter = Meter()
        return _meter


def tick(started_ns: int = 0) -> None:
    (_meter or meter()).tick(started_ns)


def samples_seen() -> int:
    """How many samples all worker processes have written so far."""
    total = 0
    for path in DIR.glob("*.meter"):
        with path.open("rb") as file:
            file.seek(8 * SAMPLES)
            total += int.from_bytes(file.read(8), sys.byteorder)
    return total


def gate() -> None:
    """Say that this process is ready, then wait until the harness lets all of them go."""
    (DIR / f"{os.getpid()}.ready").touch()
    go = DIR / "go"
    while not go.exists():
        time.sleep(0.002)
    if os.environ.get("BENCH_SAMPLE"):
        from _sampler import Sampler

        Sampler(lambda: _meter is not None).start()


def peak_mb() -> float:
    """The most memory that this process was resident with.

    Not `ru_maxrss` where it can be helped: Linux has that begin with the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(ln for ln in status.read_text().splitlines() if ln.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- bodies of the tasks, the same for every queue -------------------------------------------


def noop_body() -> None:
    tick()


def stamp_body() -> int:
    now = time.time_ns()
    tick(now)
    return now


def echo_body(payload: str) -> str:
    tick()
    return payload


def spin_body() -> None:
    """Keep a core busy for one millisecond of its own time."""
    started = time.time_ns()
    until = time.thread_time_ns() + 1_000_000
    while time.thread_time_ns() < until:
        pass
    tick(started)


def late_body(due_ms: int) -> None:
    now = time.time_ns()
    meter().sample(now - due_ms * 1_000_000)
    tick(now)


def step_body(value: int) -> int:
    tick()
    return value + 1


def nap_body() -> None:
    """The blocking form of `nap`, for queues whose tasks are plain functions."""
    started = time.time_ns()
    time.sleep(0.01)
    tick(started)


def hold_began() -> None:
    (DIR / "held").touch()


def hold_ended() -> None:
    meter().sample(time.time_ns())


def exec_cli(*arguments: str) -> None:
    """Become the peer's own command line, run by this interpreter's environment."""
    tool = Path(sys.executable).with_name(arguments[0])
    os.execv(str(tool), [str(tool), *arguments[1:]])
