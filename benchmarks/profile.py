"""The budget of one no-op task in microseconds, by room, for the product and for the bare loop
beside it.

`python -m benchmarks.profile` drains a queue twice for each: once undisturbed for the rate and the
processor time, once with a sampling profiler in the worker for the shares. The shares of the second
split the processor time of the first. What Redis spends is its own processor time; the scripts'
part of it is what `INFO commandstats` says of EVALSHA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import entrants, venvs
from benchmarks.entrants import Entrant
from benchmarks.figures import RESULTS, Book
from benchmarks.rounds import otlp_sink
from benchmarks.stage import Stage

# Walking outwards from the innermost frame, the first that matches names the room.
ROOMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "user call (and the meter)",
        ("/adapters/_common.py", "/adapters/streaq_peer.py", "floor.py:noop"),
    ),
    ("serialising", ("/pickle.py", "/streaq/wire.py", "/streaq/wire/")),
    (
        "hooks and telemetry",
        ("/streaq/hooks.py", "/streaq/events.py", "/streaq/telemetry/", "/opentelemetry/"),
    ),
    ("client (redis-py, hiredis)", ("/redis/", "/hiredis/")),
    ("broker: arguments and replies", ("/streaq/broker/",)),
    ("engine: claim, run, classify, settle", ("/streaq/engine/", "/streaq/", "floor.py:")),
    ("scheduling (event loop, anyio)", ("/asyncio/", "/anyio/", "/uvloop/", "/trio/", "/sniffio/")),
)
OTHER = "other"


@dataclass
class Budget:
    """Microseconds a task: in all by the clock, by the worker's processor time and by Redis's."""

    entrant: str
    rate: float
    wall_us: float
    worker_us: float
    rooms: dict[str, float] = field(default_factory=dict[str, float])
    redis_us: float = 0
    script_us: float = 0
    calls: dict[str, float] = field(default_factory=dict[str, float])


def measure(entrant: Entrant, n: int, otlp_url: str = "") -> Budget:
    """Drain n no-ops undisturbed, then n more under the sampler, and split the time by room."""
    with Stage(entrant, otlp_url=otlp_url) as stage:
        stage.client("enqueue", "--n", n)
        before, calls = stage.server.counters(), stage.server.calls()
        stage.start_workers()
        cpu = stage.worker_cpu_s()
        tally = stage.wait_count(n)
        worker_us = (stage.worker_cpu_s() - cpu) / n * 1e6
        spent = stage.server.counters().since(before)
        after = stage.server.calls()
    budget = Budget(entrant.name, tally.rate, 1e6 / tally.rate, worker_us)
    budget.redis_us = spent.cpu_s / n * 1e6
    budget.script_us = spent.script_us / n
    budget.calls = {name: (count - calls.get(name, 0)) / n for name, count in sorted(after.items())}
    budget.calls = {name: share for name, share in budget.calls.items() if share > 0.001}
    shares = rooms(sample(entrant, n, otlp_url))
    budget.rooms = {room: share * worker_us for room, share in shares.items()}
    return budget


def sample(entrant: Entrant, n: int, otlp_url: str = "") -> dict[str, int]:
    with Stage(entrant, sample=True, otlp_url=otlp_url) as stage:
        stage.client("enqueue", "--n", n)
        stage.start_workers()
        stage.wait_count(n)
        return stage.stacks()


def rooms(stacks: Mapping[str, int]) -> dict[str, float]:
    """The share of each room among the sampled stacks."""
    found: dict[str, int] = {}
    for stack, times in stacks.items():
        room = room_of(stack.split(";"))
        found[room] = found.get(room, 0) + times
    total = sum(found.values()) or 1
    order = [name for name, _ in ROOMS] + [OTHER]
    return {name: found[name] / total for name in order if name in found}


def room_of(frames: Sequence[str]) -> str:
    for frame in frames:
        for room, marks in ROOMS:
            if any(mark in frame for mark in marks):
                return room
    return OTHER


def hottest(stacks: Mapping[str, int], most: int = 25) -> list[tuple[float, str]]:
    """The functions in which most samples fell, with their share."""
    found: dict[str, int] = {}
    for stack, times in stacks.items():
        frame = "/".join(stack.split(";", 1)[0].rsplit("/", 3)[-2:])
        found[frame] = found.get(frame, 0) + times
    total = sum(found.values()) or 1
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return [(times / total, frame) for frame, times in ordered[:most]]


def table(budgets: Sequence[Budget]) -> str:
    """The budgets side by side as Markdown."""
    lines = ["| us a task | " + " | ".join(b.entrant for b in budgets) + " |"]
    lines.append("| --- " * (len(budgets) + 1) + "|")
    shown = [name for name, _ in ROOMS] + [OTHER]
    lines += [
        row(f"worker: {room}", [b.rooms.get(room, 0) for b in budgets])
        for room in shown
        if room != OTHER or any(room in b.rooms for b in budgets)
    ]
    lines.append(row("**worker, processor time**", [b.worker_us for b in budgets]))
    lines.append(row("Redis: scripts", [b.script_us for b in budgets]))
    lines.append(row("Redis: everything else", [max(b.redis_us - b.script_us, 0) for b in budgets]))
    lines.append(row("**Redis, processor time**", [b.redis_us for b in budgets]))
    lines.append(row("**by the clock (1 / rate)**", [b.wall_us for b in budgets]))
    lines.append("| tasks a second | " + " | ".join(f"{b.rate:,.0f}" for b in budgets) + " |")
    return "\n".join(lines)


def row(title: str, values: Sequence[float]) -> str:
    return f"| {title} | " + " | ".join(f"{value:.1f}" for value in values) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parse.add_argument("--only", default="ours,floor", help="entrants, by comma")
    parse.add_argument("--n", type=int, default=100_000, help="tasks in a drain")
    parse.add_argument("--hot", action="store_true", help="also list the hottest functions")
    parse.add_argument("--save", action="store_true", help="keep the budget, for the report")
    parse.add_argument("--results", type=Path, default=RESULTS, help="the file to keep it in")
    args = parse.parse_args(arguments)
    try:
        who = [entrants.BY_NAME[name] for name in args.only.split(",")]
    except KeyError as unknown:
        parse.error(f"unknown entrant {unknown}; known: {', '.join(entrants.BY_NAME)}")
    with otlp_sink(wanted=any(entrant.traced for entrant in who)) as url:
        budgets = [one(entrant, args.n, url, hot=args.hot) for entrant in who]
    print(table(budgets))
    for budget in budgets:
        shown = ", ".join(f"{name} {share:.3g}" for name, share in budget.calls.items())
        print(f"{budget.entrant}: Redis calls a task (those made by scripts count too): {shown}")
    if args.save:
        book = Book.load(args.results)
        book.extra["budget"] = [asdict(budget) for budget in budgets]
        book.save()
        print("kept; `python -m benchmarks --report` puts it on the page", file=sys.stderr)
    return 0


def one(entrant: Entrant, n: int, otlp_url: str, *, hot: bool) -> Budget:
    venvs.ensure(entrant.environment)
    if hot:
        for share, frame in hottest(sample(entrant, n, otlp_url)):
            print(f"{share:6.1%}  {frame}", file=sys.stderr)
    return measure(entrant, n, otlp_url)


if __name__ == "__main__":
    sys.exit(main())
