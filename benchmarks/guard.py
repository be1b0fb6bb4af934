"""Counts what one task costs where the machine's mood plays no part, and compares with
`guard.json`.

Counted for a silent no-op at concurrency 32 on plain asyncio, without telemetry. From enqueue to
settled: Redis commands (those inside scripts too), script calls, bytes to and from Redis. In the
worker: Python function and C calls, and bytecode instructions, kept per Python version. Each is the
difference between a long and a short drain, so that starting and stopping cancel out.

`python -m benchmarks.guard` compares and exits 1 when a figure grew by more than 15 %; `--update`
writes the figures of today into `guard.json`, to be committed with the change that explains them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from benchmarks.server import Server

FIGURES = Path(__file__).resolve().parent / "guard.json"
TOLERANCE = 0.15
SHORT, LONG = 256, 1024
CONCURRENCY = 32


class Counter:
    """Counts function calls, and with `opcodes` bytecode instructions, of the thread it is started
    in.
    """

    def __init__(self, *, opcodes: bool) -> None:
        self.calls = 0
        self.opcodes = 0
        self._opcodes = opcodes

    def __enter__(self) -> Self:
        if self._opcodes:
            sys.settrace(self._trace)
        else:
            sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _profile(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            self.calls += 1

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.opcodes += 1
        return self._trace


async def drain(url: str, n: int, counter: Counter) -> None:
    """Enqueue n no-ops, then count what a worker does until the queue is empty."""
    from streaq import Worker

    worker = Worker(
        redis_url=url,
        concurrency=CONCURRENCY,
        queue_name="guard",
        telemetry=False,
        handle_signals=False,
    )

    @worker.task(silent=True)
    async def noop() -> None:
        nonlocal ran
        ran += 1

    ran = 0
    async with worker:
        await worker.enqueue_many([noop.enqueue() for _ in range(n)])
    worker.burst = True
    with counter:
        await worker.run_async()
    if ran != n:
        raise RuntimeError(f"{ran} tasks ran where {n} were enqueued")


def one(n: int, *, opcodes: bool) -> dict[str, float]:
    """The totals of one drain on a server of its own."""
    with Server() as server:
        counter = Counter(opcodes=opcodes)
        asyncio.run(drain(server.url, 1, Counter(opcodes=False)))  # imports, scripts, first use
        server.reset()
        before, calls = server.counters(), server.calls()
        asyncio.run(drain(server.url, n, counter))
        spent, after = server.counters().since(before), server.calls()
    scripts = sum(after.get(name, 0) - calls.get(name, 0) for name in ("evalsha", "eval", "fcall"))
    return {
        "redis_commands": spent.commands,
        "script_calls": scripts,
        "redis_bytes": spent.bytes_in + spent.bytes_out,
        "opcodes" if opcodes else "calls": counter.opcodes if opcodes else counter.calls,
    }


def per_task(*, opcodes: bool) -> dict[str, float]:
    short, long = one(SHORT, opcodes=opcodes), one(LONG, opcodes=opcodes)
    return {name: (long[name] - short[name]) / (LONG - SHORT) for name in long}


def measure() -> dict[str, Any]:
    """The figures of one task as they are now."""
    counted = per_task(opcodes=False)
    version = "{}.{}".format(*platform.python_version_tuple()[:2])
    python = {"calls": counted.pop("calls"), "opcodes": per_task(opcodes=True)["opcodes"]}
    rounded = {name: round(value, 3) for name, value in counted.items()}
    return {**rounded, "python": {version: {k: round(v, 1) for k, v in python.items()}}}


def compare(now: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """One line for each figure that grew by more than the tolerance; none when all is well.

    A Python version that has no figures yet is not judged.
    """
    pairs = [(name, value, kept.get(name)) for name, value in now.items() if name != "python"]
    for version, figures in now["python"].items():
        known = kept.get("python", {}).get(version, {})
        pairs += [
            (f"{name} on {version}", value, known.get(name)) for name, value in figures.items()
        ]
    return [
        f"{name}: {value:g} a task, {value / before - 1:+.0%} against {before:g}"
        for name, value, before in pairs
        if before and value > before * (1 + TOLERANCE)
    ]


def check() -> list[str]:
    """Measure and compare with the figures in the repository; what grew too much, one line each."""
    return compare(measure(), json.loads(FIGURES.read_text()))


def main(arguments: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parse.add_argument("--update", action="store_true", help="keep the figures of today")
    args = parse.parse_args(arguments)
    now = measure()
    print(json.dumps(now, indent=1))
    if args.update or not FIGURES.exists():
        kept: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        now["python"] = {**kept.get("python", {}), **now["python"]}
        FIGURES.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    grown = compare(now, json.loads(FIGURES.read_text()))
    for line in grown:
        print(f"grew too much: {line}", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
