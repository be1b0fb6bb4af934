"""How each figure is taken: one function for each kind of run, on a stage of its own."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.entrants import Entrant
from benchmarks.server import Counters
from benchmarks.stage import RunError, Stage, Tally


class Metrics(dict[str, float]):
    """What one run gave; `cap` says where it was asked for less than its row names, and why."""

    cap: str = ""


@dataclass(frozen=True)
class Setup:
    """What one run is asked to do; `n` is scaled to the entrant, the rest is the same for all."""

    n: int
    span_s: float = 60
    queued: int = 1_000_000
    scheduled: int = 100_000
    patience_s: float = 30
    otlp_url: str = ""


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]


def drain(
    task: str,
    *,
    processes: int = 1,
    concurrency: int = 32,
    size: int = 0,
    ideal: float | None = None,
    options: Mapping[str, object] | None = None,
    per: int = 1,
) -> Callable[[Entrant, Setup], Metrics]:
    """Enqueue first, then start the workers and time from the first task's start to the last one's
    end.
    """

    def measure(entrant: Entrant, setup: Setup) -> Metrics:
        more = dict(options or {})
        with Stage(entrant, more, concurrency=concurrency, otlp_url=setup.otlp_url) as stage:
            stage.client(
                "enqueue", "--task", task, "--n", setup.n, "--size", size, "--mode", "batch"
            )
            before, tally, cpu = drained(stage, setup.n * per, processes)
            spent = stage.server.counters().since(before)
            metrics = Metrics(
                rate=tally.rate,
                commands=spent.commands / tally.count,
                reads=spent.reads / tally.count,
                bytes=(spent.bytes_in + spent.bytes_out) / tally.count,
                redis_us=spent.cpu_s / tally.count * 1e6,
                worker_us=cpu / tally.count * 1e6,
                rss_mb=stage.worker_rss_mb() / processes,
            )
        if ideal:
            metrics["fraction"] = tally.rate / ideal
        return metrics

    return measure


def drained(stage: Stage, n: int, processes: int) -> tuple[Counters, Tally, float]:
    """Let the workers drain n tasks; give the counters before, the tally and the processor time."""
    before = stage.server.counters()
    stage.start_workers(processes)
    cpu = stage.worker_cpu_s()
    tally = stage.wait_count(n)
    return before, tally, stage.worker_cpu_s() - cpu


def enqueue(mode: str) -> Callable[[Entrant, Setup], Metrics]:
    def measure(entrant: Entrant, setup: Setup) -> Metrics:
        with Stage(entrant, otlp_url=setup.otlp_url) as stage:
            before = stage.server.counters()
            told = stage.client("enqueue", "--n", setup.n, "--mode", mode)
            spent = stage.server.counters().since(before)
            return Metrics(
                rate=told["n"] / told["seconds"],
                commands=spent.commands / setup.n,
                reads=spent.reads / setup.n,
                bytes_in=spent.bytes_in / setup.n,
            )

    return measure


def latency(entrant: Entrant, setup: Setup) -> Metrics:
    with Stage(entrant, {"waits": True}, otlp_url=setup.otlp_url) as stage:
        stage.start_workers()
        told = stage.client("latency", "--n", setup.n)
    return Metrics(
        start_p50=statistics.median(told["start_ms"]),
        start_p99=percentile(told["start_ms"], 0.99),
        result_p50=statistics.median(told["result_ms"]),
        result_p99=percentile(told["result_ms"], 0.99),
    )


def lateness(entrant: Entrant, setup: Setup) -> Metrics:
    with Stage(entrant, {"delay": True}, otlp_url=setup.otlp_url) as stage:
        stage.start_workers(companion=entrant.family == "taskiq")
        stage.client("lateness", "--n", setup.n, "--span", setup.span_s)
        late = [ns / 1e6 for ns in stage.wait_samples(setup.n, setup.span_s + 90)]
    off = [abs(ms) for ms in late]  # too early is as wrong as too late
    return Metrics(
        p50=statistics.median(off),
        p99=percentile(off, 0.99),
        earliest=min(late),
        latest=max(late),
    )


def abort(entrant: Entrant, setup: Setup) -> Metrics:
    with Stage(entrant) as stage:
        stage.start_workers()
        asked = stage.client("abort", "--n", setup.n)["asked_ns"]
        seen = stage.wait_samples(len(asked), 10)
    delays = [(after - before) / 1e6 for before, after in zip(asked, sorted(seen), strict=True)]
    return Metrics(p50=statistics.median(delays), max=max(delays))


def waiters(entrant: Entrant, setup: Setup) -> Metrics:
    with Stage(entrant, {"waits": True}) as stage:
        stage.start_workers()
        try:
            told = stage.client("waiters", "--n", setup.n, timeout=setup.patience_s * 4)
        except RunError as error:
            if "Too many open files" not in str(error):
                raise
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise RunError(
                f"cannot: {setup.n:,} waiters take more connections than the {most:,} files that a "
                "process may have open here"
            ) from error
        received = stage.server.info()["total_connections_received"]
        return Metrics(
            seconds=told["seconds"],
            rate=setup.n / told["seconds"],
            rss_mb=told["rss_mb"],
            connections=float(received),
        )


def backlog(entrant: Entrant, setup: Setup) -> Metrics:
    """The drain rate with a million tasks waiting against the rate on a queue with nothing else in
    it. A peer that enqueues slowly gets as many as it manages in the time, and is said to.
    """
    with Stage(entrant, otlp_url=setup.otlp_url) as stage:
        told = stage.client("enqueue", "--n", setup.n, "--mode", "batch")
        stage.start_workers()
        empty = stage.wait_count(setup.n).rate
        stage.stop_workers()
        given, cap = within(setup, told["n"] / told["seconds"])
        stage.server.reset()
        base = stage.server.counters().memory
        fill(stage, given)
        memory = stage.server.counters().memory - base
        stage.start_workers()
        full = stage.wait_count(min(setup.n, given.queued), exact=False).rate
    metrics = Metrics(
        ratio=full / empty,
        rate_empty=empty,
        rate_full=full,
        bytes_per_task=memory / (given.queued + given.scheduled),
    )
    metrics.cap = cap
    return metrics


def within(setup: Setup, rate: float) -> tuple[Setup, str]:
    """The backlog that can be enqueued at this rate within the patience, and what is to be said
    where that is not all of it.
    """
    needed = (setup.queued + setup.scheduled) / rate
    share = setup.patience_s / needed
    if share >= 1:
        return setup, ""
    given = replace(setup, queued=int(setup.queued * share), scheduled=int(setup.scheduled * share))
    return given, (
        f"only {given.queued:,} wait and {given.scheduled:,} are scheduled: "
        f"to enqueue them all takes {needed / 60:.1f} min at its rate"
    )


def fill(stage: Stage, given: Setup) -> None:
    # One by one, which is how some peers schedule, takes longer than the batch did.
    limit = given.patience_s * 5
    chunk = ("--chunk", 10_000)
    stage.client("enqueue", "--n", given.queued, *chunk, timeout=limit)
    stage.client("enqueue", "--n", given.scheduled, "--delay", 86_400, *chunk, timeout=limit)
