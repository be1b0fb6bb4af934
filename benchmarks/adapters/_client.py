"""The client side of every adapter: what a queue implements, and the commands that measure it."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import _common as common


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


def calls_for(args: argparse.Namespace) -> list[tuple]:
    payload = ("x" * args.size,) if args.task == "echo" else ()
    at_ms = int((time.time() + args.delay) * 1000) if args.delay else None
    lanes = common.LANES if args.task == "lanes" else [None]
    task = "noop" if args.task == "lanes" else args.task
    return [(task, payload, at_ms, lanes[i % len(lanes)]) for i in range(args.n)]


async def command_enqueue(peer: AsyncPeer, args: argparse.Namespace) -> dict:
    """Enqueue n tasks and tell how long it took; a few of them warm the connection first."""
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
        held = common.DIR / "held"
        held.unlink(missing_ok=True)
        seen = common.samples_seen()
        handle = await peer.enqueue("hold")
        await until(peer, held.exists)
        await peer.sleep(0.05 + rng.random() * 0.1)
        asked.append(time.time_ns())
        await peer.abort(handle)
        await until(peer, lambda: common.samples_seen() > seen)  # noqa: B023
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
    return {"seconds": done - started, "wait_s": done - enqueued, "rss_mb": common.peak_mb()}


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
