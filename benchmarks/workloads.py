"""The rows of the table: what is measured, in which unit, and with how many tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.entrants import Entrant
from benchmarks.measures import (
    Metrics,
    Setup,
    abort,
    backlog,
    drain,
    enqueue,
    latency,
    lateness,
    waiters,
)

LANES, CHAIN, DELAY, ABORT, RESULTS, SYNC = "lanes", "chain", "delay", "abort", "results", "sync"


@dataclass(frozen=True)
class Row:
    """One line of the tables: a metric of a workload, with its unit and which way is good.

    `share` shows it in per cent; `judged` is False where it only explains another row, so that
    nobody need be ahead in it.
    """

    metric: str
    title: str
    unit: str
    better: str = "less"
    share: bool = False
    judged: bool = True


@dataclass(frozen=True)
class Workload:
    """What is run and timed, and the rows of the tables that come of it.

    `main`, `title`, `unit` and `better` are those of the first row; `more` are further rows, and
    `costs` those of the table of costs. `factor` turns an entrant's no-op rate into a first guess
    of its rate here; `least` and `most` bound the number of tasks in a run; `needs` names the
    features without which a peer's cell says n/a. `once` marks long ones that run in the first
    round only; `per` is how many tasks one enqueued item makes.
    """

    name: str
    title: str
    main: str
    unit: str
    measure: Callable[[Entrant, Setup], Metrics]
    better: str = "more"
    factor: float = 1.0
    ceiling: float = 1e9
    least: int = 200
    most: int = 100_000
    fixed: int | None = None
    needs: tuple[str, ...] = ()
    once: bool = False
    per: int = 1
    more: tuple[Row, ...] = ()
    costs: tuple[Row, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        return (Row(self.main, self.title, self.unit, self.better), *self.more)


COSTS = (
    Row("commands", "Redis commands", "a task"),
    Row("reads", "socket reads at Redis", "a task", judged=False),
    Row("bytes", "bytes to and from Redis", "a task"),
    Row("redis_us", "Redis CPU", "us a task", judged=False),
    Row("worker_us", "worker CPU", "us a task", judged=False),
    Row("rss_mb", "worker memory (RSS)", "MB"),
)

# In the order in which they run: what the project's targets are about comes first, so that a run
# that ends for lack of time has at least that.
WORKLOADS: tuple[Workload, ...] = (
    Workload("drain", "no-op drain, 1 worker", "rate", "tasks/s", drain("noop"), costs=COSTS),
    Workload("batch", "enqueue, batch", "rate", "tasks/s", enqueue("batch"), factor=4),
    Workload(
        "drain2",
        "no-op drain, 2 workers",
        "rate",
        "tasks/s",
        drain("noop", processes=2),
        factor=1.5,
    ),
    Workload(
        "concurrent",
        "enqueue, 100 awaited singly at once",
        "rate",
        "tasks/s",
        enqueue("concurrent"),
        factor=3,
    ),
    Workload(
        "latency",
        "idle: enqueue to start, p50",
        "start_p50",
        "ms",
        latency,
        better="less",
        fixed=100,
        needs=(RESULTS,),
        more=(
            Row("start_p99", "idle: enqueue to start, p99", "ms"),
            Row("result_p50", "idle: enqueue to result, p50", "ms"),
            Row("result_p99", "idle: enqueue to result, p99", "ms"),
        ),
    ),
    Workload(
        "abort",
        "abort seen by the task, p50",
        "p50",
        "ms",
        abort,
        better="less",
        fixed=10,
        needs=(ABORT,),
        more=(Row("max", "abort seen by the task, slowest of 10", "ms"),),
    ),
    Workload(
        "nap",
        "10 ms awaiting task, concurrency 100",
        "rate",
        "tasks/s",
        drain("nap", concurrency=100, ideal=10_000),
        ceiling=9_000,
        more=(
            Row(
                "fraction",
                "10 ms awaiting task: share of the ideal 10,000/s",
                "",
                "more",
                share=True,
                judged=False,
            ),
        ),
    ),
    Workload(
        "nap2",
        "10 ms awaiting task, concurrency 100, 2 workers",
        "rate",
        "tasks/s",
        drain("nap", processes=2, concurrency=100, ideal=20_000),
        factor=1.5,
        ceiling=18_000,
    ),
    Workload(
        "spin",
        "1 ms CPU-bound sync task",
        "rate",
        "tasks/s",
        drain("spin"),
        ceiling=900,
        needs=(SYNC,),
    ),
    Workload(
        "echo1k",
        "1 KiB payload and result",
        "rate",
        "tasks/s",
        drain("echo", size=1024),
        factor=0.8,
        most=50_000,
    ),
    Workload(
        "echo100k",
        "100 KiB payload and result",
        "rate",
        "tasks/s",
        drain("echo", size=102_400),
        factor=0.2,
        most=4_000,
    ),
    Workload(
        "lanes",
        "5 priorities",
        "rate",
        "tasks/s",
        drain("lanes", options={"lanes": True}),
        factor=0.8,
        needs=(LANES,),
    ),
    Workload(
        "chain",
        "chain of 3 (pipeline)",
        "rate",
        "tasks/s",
        drain("chain", options={"chain": True}, per=3),
        factor=0.5,
        most=20_000,
        needs=(CHAIN,),
        per=3,
    ),
    Workload(
        "backlog",
        "no-op drain while 1,000,000 wait and 100,000 are scheduled",
        "rate_full",
        "tasks/s",
        backlog,
        most=50_000,
        needs=(DELAY,),
        once=True,
        more=(
            Row(
                "ratio",
                "backlog: share of the rate on a queue with nothing else",
                "",
                "more",
                share=True,
                judged=False,
            ),
            Row("bytes_per_task", "backlog: Redis memory for a waiting task", "bytes"),
        ),
    ),
    Workload(
        "waiters",
        "10,000 results awaited in one process",
        "seconds",
        "s",
        waiters,
        better="less",
        fixed=10_000,
        needs=(RESULTS,),
        once=True,
        more=(
            Row("rss_mb", "10,000 waiters: memory of their process", "MB"),
            Row("connections", "10,000 waiters: connections to Redis", "", judged=False),
        ),
    ),
    Workload(
        "lateness",
        "1,000 tasks scheduled over a minute: lateness p50",
        "p50",
        "ms",
        lateness,
        better="less",
        fixed=1_000,
        needs=(DELAY,),
        once=True,
        more=(Row("p99", "1,000 tasks scheduled over a minute: lateness p99", "ms"),),
    ),
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}
