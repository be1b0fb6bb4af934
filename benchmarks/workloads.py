"""The rows of the table: what is measured, in which unit, and with how many tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
class Workload:
    """One row of the table.

    `factor` turns an entrant's no-op rate into a first guess of its rate here; `least` and `most`
    bound the number of tasks in a run; `needs` names the features without which a peer's cell says
    n/a. `once` marks long ones that run in the first round only; `per` is how many tasks one
    enqueued item makes. `better` says which way is good.
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
    extra: Mapping[str, str] = field(default_factory=dict[str, str])


WORKLOADS: tuple[Workload, ...] = (
    Workload("drain", "no-op drain, 1 worker", "rate", "tasks/s", drain("noop")),
    Workload(
        "drain2",
        "no-op drain, 2 workers",
        "rate",
        "tasks/s",
        drain("noop", processes=2),
        factor=1.5,
    ),
    Workload("batch", "enqueue, batch", "rate", "tasks/s", enqueue("batch"), factor=4),
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
        extra={
            "result_p50": "idle: enqueue to result, p50",
            "start_p99": "p99",
            "result_p99": "p99",
        },
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
        "nap",
        "10 ms awaiting task, concurrency 100",
        "rate",
        "tasks/s",
        drain("nap", concurrency=100, ideal=10_000),
        ceiling=9_000,
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
        "waiters",
        "10,000 results awaited in one process",
        "seconds",
        "s",
        waiters,
        better="less",
        fixed=10_000,
        needs=(RESULTS,),
        once=True,
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
        extra={"p99": "p99"},
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
        extra={
            "ratio": "share of its own rate when nothing else waits",
            "bytes_per_task": "Redis memory per waiting task, bytes",
        },
    ),
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}
