"""What every adapter shares: the meter a worker counts into, the start gate, the client commands.

Only the standard library is imported here, because this file runs inside each peer's own virtual
environment. The harness talks to an adapter through files in `BENCH_DIR` (so that measuring never
touches the Redis that is measured) and one line of JSON on standard output.

- A worker process holds itself at `gate()` once it has imported everything, so interpreter
  start-up is outside every figure and two workers begin at the same instant.
- Each task ends with `tick()`: a counter and two wall-clock stamps in a memory-mapped file. The cost
  (about half a microsecond) is the same for all queues.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
    global _meter
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
        Sampler().start()


class Sampler:
    """Notes where the processor time of the main thread goes, by a timer that runs only while it computes.

    Stacks are written as "innermost;...;outer" with how often each was seen. It looks only while tasks are
    being counted, so starting up is not in it.
    """

    PERIOD_S = 0.001
    DEPTH = 14

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.total = 0

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self.look)
        signal.setitimer(signal.ITIMER_PROF, self.PERIOD_S, self.PERIOD_S)

    def look(self, _number, frame) -> None:
        if _meter is None:
            return
        stack = []
        while frame is not None and len(stack) < self.DEPTH:
            stack.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
            frame = frame.f_back
        key = ";".join(stack)
        self.seen[key] = self.seen.get(key, 0) + 1
        self.total += 1
        if self.total % 10 == 0:
            draft = DIR / f"{os.getpid()}.draft"
            draft.write_text(json.dumps(self.seen))
            draft.replace(DIR / f"{os.getpid()}.stacks")


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


# --- what an adapter implements ---------------------------------------------------------------


class AsyncPeer:
    """A queue whose client is asyncio. Override what the queue has; say in `missing` what not.

    `missing` maps a feature (lanes, delay, chain, abort, results) to the reason for its lack.
    """

    missing: dict[str, str] = {}
    width = 100  # coroutines that enqueue at the same time in the "concurrent" workload
    waits = "result()"

    def run(self, main):
        try:
            import uvloop
        except ImportError:
            return asyncio.run(main())
        return uvloop.run(main())

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def gather(self, coroutines) -> list:
        return await asyncio.gather(*coroutines)

    async def enqueue(self, task: str, *args, at_ms: int | None = None, lane: str | None = None):
        raise NotImplementedError

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        """Enqueue (task, args, at_ms, lane) tuples by the fastest documented way."""
        for task, args, at_ms, lane in calls:
            await self.enqueue(task, *args, at_ms=at_ms, lane=lane)

    async def result(self, handle):
        raise NotImplementedError

    async def results(self, handles: list) -> list:
        return await self.gather([self.result(handle) for handle in handles])

    async def abort(self, handle) -> None:
        raise NotImplementedError

    async def chain(self):
        raise NotImplementedError

    def work(self) -> None:
        raise NotImplementedError


class SyncPeer(AsyncPeer):
    """A queue whose client blocks: the same commands, with threads where others use coroutines."""

    width = 8  # threads; more only adds switching on a small machine

    def run(self, main):
        return asyncio.run(main())

    async def gather(self, coroutines) -> list:
        return [await coroutine for coroutine in coroutines]


# --- the client commands ----------------------------------------------------------------------


def calls_for(args: argparse.Namespace) -> list[tuple]:
    payload = ("x" * args.size,) if args.task == "echo" else ()
    at_ms = int((time.time() + args.delay) * 1000) if args.delay else None
    lanes = LANES if args.task == "lanes" else [None]
    task = "noop" if args.task == "lanes" else args.task
    return [(task, payload, at_ms, lanes[i % len(lanes)]) for i in range(args.n)]


async def command_enqueue(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    """Enqueue n tasks and tell how long it took; the connection is warmed first by a few of them."""
    if args.task == "chain":
        started = time.perf_counter()
        await pull(peer, range(args.n), lambda _: peer.chain())
        return {"n": args.n, "seconds": time.perf_counter() - started}
    calls = calls_for(args)
    warm = min(20, max(args.n // 10, 1))
    await peer.enqueue_batch(calls[:warm])
    rest = calls[warm:]
    started = time.perf_counter()
    if args.mode == "batch":
        size = args.chunk or len(rest)
        for start in range(0, len(rest), size):
            await peer.enqueue_batch(rest[start : start + size])
    elif isinstance(peer, SyncPeer):
        threaded(peer, rest)
    else:
        await pull(peer, rest, lambda c: peer.enqueue(c[0], *c[1], at_ms=c[2], lane=c[3]))
    return {"n": len(rest), "seconds": time.perf_counter() - started}


async def pull(peer: AsyncPeer, items, call) -> None:
    """Let `peer.width` coroutines take items one after another, each awaiting its own call."""
    source = iter(items)

    async def one() -> None:
        for item in source:
            await call(item)

    await peer.gather([one() for _ in range(peer.width)])


def threaded(peer: SyncPeer, calls: list[tuple]) -> None:
    source = iter(calls)
    lock = threading.Lock()

    async def drain() -> None:
        while True:
            with lock:
                call = next(source, None)
            if call is None:
                return
            await peer.enqueue(call[0], *call[1], at_ms=call[2], lane=call[3])

    with ThreadPoolExecutor(peer.width) as pool:
        for future in [pool.submit(lambda: asyncio.run(drain())) for _ in range(peer.width)]:
            future.result()


async def command_latency(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    """One task at a time on an idle queue: from before the enqueue to its start and its result."""
    rng = random.Random(7)
    to_start, to_result = [], []
    for index in range(args.n + 5):
        await peer.sleep(0.02 + rng.random() * 0.03)
        before = time.time_ns()
        handle = await peer.enqueue("stamp")
        began = int(await peer.result(handle))
        after = time.time_ns()
        if index >= 5:
            to_start.append((began - before) / 1e6)
            to_result.append((after - before) / 1e6)
    return {"start_ms": to_start, "result_ms": to_result}


async def command_lateness(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    """Schedule n tasks evenly over `span` seconds; the tasks sample how late they started."""
    first = int(time.time() * 1000) + 3_000
    step = args.span * 1000 / args.n
    calls = []
    for i in range(args.n):
        at_ms = first + int(i * step)
        calls.append(("late", (at_ms,), at_ms, None))
    rng = random.Random(7)
    rng.shuffle(calls)
    await pull(peer, calls, lambda c: peer.enqueue(c[0], *c[1], at_ms=c[2], lane=None))
    return {"n": args.n, "seconds": args.span}


async def command_abort(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    """Abort a running task n times; the task samples the instant at which it sees it."""
    rng = random.Random(7)
    asked = []
    for _ in range(args.n):
        held = DIR / "held"
        held.unlink(missing_ok=True)
        seen = samples_seen()
        handle = await peer.enqueue("hold")
        await until(peer, held.exists)
        await peer.sleep(0.05 + rng.random() * 0.1)
        asked.append(time.time_ns())
        await peer.abort(handle)
        await until(peer, lambda: samples_seen() > seen)  # noqa: B023
    return {"asked_ns": asked}


async def until(peer: AsyncPeer, condition, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the task did not start or did not notice its abort in time")
        await peer.sleep(0.001)


async def command_waiters(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    """Enqueue n tasks, then wait for all their results at once in this one process."""
    handles: list = [None] * args.n

    async def put(index: int) -> None:
        handles[index] = await peer.enqueue("stamp")

    started = time.perf_counter()
    await pull(peer, range(args.n), put)
    enqueued = time.perf_counter()
    results = await peer.results(handles)
    done = time.perf_counter()
    if len([r for r in results if r is not None]) != args.n:
        raise RuntimeError(f"only {len(results)} of {args.n} results came back")
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": done - started, "wait_s": done - enqueued, "rss_mb": peak_kb / 1024}


COMMANDS = {
    "enqueue": command_enqueue,
    "latency": command_latency,
    "lateness": command_lateness,
    "abort": command_abort,
    "waiters": command_waiters,
}


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser()
    parse.add_argument("command", choices=[*COMMANDS, "worker", "companion", "about"])
    parse.add_argument("--task", default="noop")
    parse.add_argument("--n", type=int, default=100)
    parse.add_argument("--mode", choices=["batch", "concurrent"], default="batch")
    parse.add_argument("--size", type=int, default=0)
    parse.add_argument("--chunk", type=int, default=0)
    parse.add_argument("--delay", type=float, default=0)
    parse.add_argument("--span", type=float, default=60)
    return parse


def main(peer: AsyncPeer, doc: str, packages: list[str]) -> None:
    """Run one command of the adapter and print its figures as one line of JSON."""
    args = parser().parse_args()
    if args.command == "worker":
        peer.work()
    elif args.command == "companion":
        peer.companion()
    elif args.command == "about":
        print(json.dumps(about(peer, doc, packages)))
    else:
        print(json.dumps(peer.run(lambda: client(peer, args))))


async def client(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    await peer.open()
    try:
        return await COMMANDS[args.command](peer, args)
    finally:
        await peer.close()


def about(peer: AsyncPeer, doc: str, packages: list[str]) -> dict:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {"doc": doc, "missing": peer.missing, "versions": versions}


def exec_cli(*arguments: str) -> None:
    """Become the peer's own command line, run by this interpreter's environment."""
    tool = Path(sys.executable).with_name(arguments[0])
    os.execv(str(tool), [str(tool), *arguments[1:]])
