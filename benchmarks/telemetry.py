"""What telemetry costs, beside streaq 7.2.0 as it comes, and what memory it keeps.

`python -m benchmarks.telemetry` drains 20,000 no-ops in each way of `WAYS`, round after round, then
200,000 through one worker with everything on. `make bench` does it before the tables are written.

A rate is of whole processes, from the start of the first task to the end of the last: with all
that the worker, its exporter and its log file take of the machine meanwhile, and Redis beside them.
Not in it are the imports before the first task, and the spans that are still queued at the last
one's end (a run in which one never arrives is thrown out). The processor time a task is that of the
worker from when it is let go until its last span has arrived: the libraries that it loads as it is
entered, 0.3 s once in a process, are in it. Memory is compared at rest: after so many tasks, and
all their spans.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import venvs
from benchmarks.bars import N, Verdict, plain
from benchmarks.entrants import OURS, UPSTREAM, Entrant
from benchmarks.figures import RESULTS, Book, Cell
from benchmarks.measures import drained
from benchmarks.rounds import otlp_sink, say
from benchmarks.stage import RunError, Stage

COST, MEMORY = "telemetry-cost", "telemetry-memory"
OFF, QUIET, LOGGED, FULL, PEER = "off", "quiet", "default", "full", "peer"
EARLY, MANY = 20_000, 200_000
SPANS_S = 60
SILENCE_S = 6
"""Longer than the SDK's exporter keeps a span that could go."""

OURS_SCRIPT = "adapters/ours.py"
WAYS: dict[str, Entrant] = {
    OFF: Entrant("telemetry-off", "telemetry off", OURS, OURS_SCRIPT, 26_000),
    QUIET: Entrant(
        "telemetry-quiet",
        "default settings, no SDK, no log handler",
        OURS,
        OURS_SCRIPT,
        22_000,
        {"telemetry": QUIET},
    ),
    LOGGED: Entrant(
        "telemetry-logged",
        "metrics, and logs to a file",
        OURS,
        OURS_SCRIPT,
        10_000,
        {"telemetry": LOGGED},
    ),
    FULL: Entrant(
        "telemetry-full",
        "everything, every span exported",
        OURS,
        OURS_SCRIPT,
        6_000,
        {"telemetry": FULL},
        traced=True,
    ),
    PEER: Entrant(
        "telemetry-peer",
        "streaq 7.2.0 as it comes",
        UPSTREAM,
        "adapters/streaq_peer.py",
        1_300,
        {"loud": True},
    ),
}


def drain(entrant: Entrant, n: int, otlp_url: str) -> dict[str, float]:
    """Tasks a second from the first start to the last end; every span has arrived when it ends.

    Raises RunError when a span is missing a minute later.
    """
    with Stage(entrant, otlp_url=otlp_url) as stage:
        stage.client("enqueue", "--n", n, "--mode", "batch")
        if entrant.traced:
            new_spans(otlp_url)  # those of the client
        _, tally, cpu = drained(stage, n, 1)
        if entrant.traced:
            drained_s = stage.worker_cpu_s()
            wait_for_spans(otlp_url, n)
            cpu += stage.worker_cpu_s() - drained_s
        return {"rate": tally.rate, "worker_us": cpu / n * 1e6}


def memory(
    entrant: Entrant, otlp_url: str, early: int = EARLY, many: int = MANY
) -> dict[str, float]:
    """The worker's resident memory after the first `early` tasks and after all `many`, each time
    when nothing is left to do: under load it goes up and down, which could hide that it grows.
    """
    with Stage(entrant, otlp_url=otlp_url) as stage:
        stage.start_workers()

        def after(more: int, total: int) -> float:
            stage.client("enqueue", "--n", more, "--mode", "batch", "--chunk", 10_000)
            stage.wait_count(total)
            wait_for_spans(otlp_url, more)
            wait_for_silence(otlp_url)
            return stage.worker_rss_mb()

        return {"early_mb": after(early, early), "late_mb": after(many - early, many)}


def new_spans(otlp_url: str) -> int:
    """How many spans the receiver got since it was asked last."""
    with urllib.request.urlopen(otlp_url, timeout=60) as answer:
        return int(answer.read())


def wait_for_spans(otlp_url: str, wanted: int) -> None:
    got, deadline = 0, time.monotonic() + SPANS_S
    while (got := got + new_spans(otlp_url)) < wanted:
        if time.monotonic() > deadline:
            raise RunError(f"{got} of {wanted} spans were exported")
        time.sleep(0.1)


def wait_for_silence(otlp_url: str) -> None:
    """Until no span comes any more: those of the client's are counted among the first."""
    deadline, quiet_since = time.monotonic() + SPANS_S, time.monotonic()
    while (now := time.monotonic()) - quiet_since < SILENCE_S:
        if now > deadline:
            raise RunError("there is no end of spans")
        if new_spans(otlp_url):
            quiet_since = now
        time.sleep(0.1)


def measure(book: Book, runs: int, n: int = N, *, ways: Sequence[str] = tuple(WAYS)) -> None:
    """Fill the book's cells of both workloads, from nothing."""
    for environment in dict.fromkeys(WAYS[way].environment for way in ways):
        venvs.ensure(environment)
    cells = {way: book.fresh(COST, WAYS[way].name) for way in ways}
    with otlp_sink(wanted=True) as url:
        for turn in range(runs):
            # Forth and back, so that none always follows the same one.
            for way, cell in list(cells.items())[:: -1 if turn % 2 else 1]:
                take(cell, n, lambda way=way: drain(WAYS[way], n, url))
                book.save()
        if FULL in ways:
            cell = book.fresh(MEMORY, WAYS[FULL].name)
            early, many = round(EARLY * n / N), round(MANY * n / N)
            take(cell, many, lambda: memory(WAYS[FULL], url, early, many))
            book.save()


def take(cell: Cell, n: int, run: Callable[[], Mapping[str, float]]) -> None:
    try:
        metrics = run()
    except RunError as error:
        cell.fail(str(error))
        say(f"{cell.workload} {cell.entrant}: {error}")
        return
    cell.add(n, dict(metrics))
    shown = ", ".join(f"{name} {plain(value)}" for name, value in metrics.items())
    say(f"{cell.workload} {cell.entrant}: {shown}")


# --- the bars ---------------------------------------------------------------------------------


def verdicts(book: Book) -> list[Verdict]:
    """The bars of the telemetry issue; a run that lost a span gives no figure."""
    peer, off = rates(book, PEER), rates(book, OFF)
    return [
        against(
            "metrics and logs to a file, against streaq 7.2.0",
            rates(book, LOGGED), peer, 8, processor(book, LOGGED, PEER),
        ),
        against(
            "everything on and exported, against streaq 7.2.0",
            rates(book, FULL), peer, 5, processor(book, FULL, PEER),
        ),
        over(
            "default settings without an SDK or log lines, over off",
            off, rates(book, QUIET), processor(book, QUIET, OFF),
        ),
        growth(book),
    ]  # fmt: skip


def when(book: Book) -> str:
    """The day of these figures, which are often taken alone."""
    cell = book.get(COST, WAYS[FULL].name)
    return f"Measured {cell.at[:10]}." if cell else ""


def processor(book: Book, one: str, other: str) -> str:
    """What a task takes of the worker's processor."""
    first, second = (book.median(COST, WAYS[way].name, "worker_us") for way in (one, other))
    if not first or not second:
        return ""
    return f"; worker {plain(first)} us of CPU a task against {plain(second)}"


def rates(book: Book, way: str) -> list[float]:
    cell = book.get(COST, WAYS[way].name)
    return cell.samples.get("rate", []) if cell else []


def against(
    title: str, ours: Sequence[float], theirs: Sequence[float], bar: float, more: str = ""
) -> Verdict:
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    if not ratios:
        return Verdict(title, f">= {bar:g} x", "", "", None)
    middle = statistics.median(ratios)
    detail = f"{plain(statistics.median(ours))} against {plain(statistics.median(theirs))}{more}"
    spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
    return Verdict(title, f">= {bar:g} x", f"{middle:.3g} x ({detail})", spread, middle >= bar)


def over(
    title: str, off: Sequence[float], on: Sequence[float], cpu: str = "", bar: float = 10
) -> Verdict:
    """By how many per cent a task takes longer."""
    more = [(a / b - 1) * 100 for a, b in zip(off, on, strict=False)]
    if not more:
        return Verdict(title, f"<= {bar:g} %", "", "", None)
    middle = statistics.median(more)
    detail = f"{plain(statistics.median(on))} against {plain(statistics.median(off))}{cpu}"
    spread = f"{min(more):.3g} to {max(more):.3g}"
    return Verdict(title, f"<= {bar:g} %", f"{middle:.3g} % ({detail})", spread, middle <= bar)


def growth(book: Book, bar: float = 10) -> Verdict:
    title = f"memory after {MANY:,} tasks over that after {EARLY:,}"
    early = book.median(MEMORY, WAYS[FULL].name, "early_mb")
    late = book.median(MEMORY, WAYS[FULL].name, "late_mb")
    if not early or not late:
        return Verdict(title, f"<= {bar:g} %", "", "", None)
    more = (late / early - 1) * 100
    return Verdict(
        title, f"<= {bar:g} %", f"{more:.3g} % ({early:.3g} to {late:.3g} MB)", "", more <= bar
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m benchmarks.telemetry", description=__doc__)
    parse.add_argument("--runs", type=int, default=3, help="rounds of the cost")
    parse.add_argument("--n", type=int, default=N, help="tasks in a drain")
    parse.add_argument("--ways", default=",".join(WAYS), help="by comma: " + ", ".join(WAYS))
    parse.add_argument("--results", type=Path, default=RESULTS, help="file to measure into")
    args = parse.parse_args(arguments)
    book = Book.load(args.results)
    measure(book, args.runs, args.n, ways=args.ways.split(","))
    for v in verdicts(book):
        print(f"{v.word:9} {v.title:60} {v.bar:8} {v.figure:36} {v.spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
