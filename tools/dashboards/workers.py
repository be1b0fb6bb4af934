"""Workers: are they alive, busy, blocked, and how does Redis treat them."""

from __future__ import annotations

from streaq.telemetry.names import (
    BUILD_INFO,
    EVENT_LOOP_LAG,
    OPERATION,
    PRIORITY,
    PYTHON,
    QUEUE,
    QUEUE_RUNNING,
    QUEUE_WORKERS,
    REDIS_CALL_DURATION,
    REDIS_ERRORS,
    TASK,
    TASKS_FENCED,
    TASKS_RECLAIMED,
    TASKS_RUNNING,
    VERSION,
    WORKER_CONCURRENCY,
    WORKER_OLDEST_RUNNING,
)
from tools.dashboards import promql, theme
from tools.dashboards.layout import Section, dashboard
from tools.dashboards.links import traces_of
from tools.dashboards.panels import Panel, Query, bars, graph, heatmap, stat
from tools.dashboards.theme import Json

INSTANCE = "instance"
OLDEST = promql.age(WORKER_OLDEST_RUNNING, (INSTANCE,))
ALL_CONCURRENCY = promql.gauge(WORKER_CONCURRENCY, ())
ALL_RUNNING = promql.or_zero(promql.gauge(TASKS_RUNNING, ()), ALL_CONCURRENCY)
NONE = "None in this time range"


def build() -> Json:
    """The dashboard as Grafana reads it."""
    return dashboard(
        "workers",
        "streaQ / Workers",
        "Are the workers alive, busy or blocked, and how does Redis treat them.",
        [
            Section("", [*_tiles(), *_load()]),
            Section("Work done twice, or taken over", _leases()),
            Section("Redis", _redis()),
            Section("Processes", _processes()),
        ],
        ids=300,
    )


def _tiles() -> list[Panel]:
    return [
        stat(
            "Workers",
            "Workers that keep their health record in Redis, over all queues. Fewer than you "
            "deployed: see the logs of those that are missing.",
            Query(promql.gauge(QUEUE_WORKERS, ())),
            "none",
            theme.WORKERS,
        ),
        stat(
            "Running attempts",
            "Attempts running now, over all workers. Zero while tasks wait: workers are stuck, "
            "see loop lag and Redis errors.",
            Query(ALL_RUNNING),
            "none",
            theme.neutral(),
        ),
        stat(
            "Concurrency",
            "Attempts that all workers together can run at once. Lower than you deployed: some "
            "workers are not scraped or not up.",
            Query(ALL_CONCURRENCY),
            "none",
            theme.at_least(1),
        ),
        stat(
            "Oldest running attempt",
            "How long the longest attempt has been running. Longer than the task ever takes: it "
            "hangs; find its trace, abort it, and give the task a timeout.",
            Query(promql.age(WORKER_OLDEST_RUNNING, ())),
            "s",
            theme.OLDEST_RUNNING,
            no_value="Idle",
            no_color=theme.OK,
        ),
        stat(
            "Event loop lag",
            "Longest time any worker's loop was late for its beat in the last minute. Red: a "
            "task blocks the loop; `loop.blocked` in the logs names the line.",
            Query(promql.gauge(EVENT_LOOP_LAG, ())),
            "s",
            theme.LOOP_LAG,
        ),
        stat(
            "Redis errors",
            "Calls to Redis that failed in the last five minutes. Any: see which operation below, "
            "and whether Redis restarted or ran out of memory.",
            Query(f"{promql.events(REDIS_ERRORS, (), '5m')} or vector(0)"),
            "none",
            theme.ANY,
            decimals=0,
        ),
    ]


def _load() -> list[Panel]:
    return [
        graph(
            "Running against concurrency",
            "Attempts running, and the most that could. Flat at the dashed line: saturated, add "
            "workers. Far below it while the queue is late: something blocks the workers.",
            [
                Query(ALL_RUNNING, "running"),
                Query(ALL_CONCURRENCY, "concurrency"),
            ],
            "none",
            width=8,
            height=9,
            dashed=["concurrency"],
            colors={"running": "blue"},
        ),
        graph(
            "Oldest running attempt by worker",
            "How long each worker's longest attempt has been running. A straight climb is one "
            "attempt that does not end: find it in the traces, and give its task a timeout.",
            [Query(OLDEST, "{{instance}}")],
            "s",
            width=8,
            height=9,
            links=[traces_of(queue="${queue:pipe}")],
            no_value="Idle",
        ),
        graph(
            "Event loop lag by worker",
            "How late each worker's loop was for its beat. Spikes: sync or CPU-bound code runs "
            "on the loop; make it a sync task (a thread) or move it to a process.",
            [Query(promql.gauge(EVENT_LOOP_LAG, (INSTANCE,)), "{{instance}}")],
            "s",
            width=8,
            height=9,
            thresholds=theme.LOOP_LAG,
        ),
    ]


def _leases() -> list[Panel]:
    return [
        graph(
            "Reclaimed",
            "Attempts taken over from a worker that stopped renewing its lease. After a crash "
            "this is right; without one, a blocked loop or a lost network is the cause.",
            [Query(promql.events(TASKS_RECLAIMED, (QUEUE, TASK)), "{{queue}}: {{task}}")],
            "short",
            width=8,
            bars=True,
            stacked=True,
            decimals=0,
            no_value=NONE,
        ),
        graph(
            "Fenced",
            "Settles refused because another worker had taken the task over: work done twice. "
            "Raise idle_timeout above the longest time the loop is blocked, or unblock it.",
            [Query(promql.events(TASKS_FENCED, (QUEUE, TASK)), "{{queue}}: {{task}}")],
            "short",
            width=8,
            bars=True,
            stacked=True,
            decimals=0,
            no_value=NONE,
        ),
        graph(
            "Leases held",
            "Tasks that live workers run, as Redis has it. Above the number of running attempts "
            "for long: a worker that Prometheus does not scrape.",
            [Query(promql.gauge(QUEUE_RUNNING, (QUEUE, PRIORITY)), "{{queue}} / {{priority}}")],
            "short",
            width=8,
            stacked=True,
        ),
    ]


def _redis() -> list[Panel]:
    return [
        graph(
            "Redis call time p99",
            "By operation; waiting for work is not counted. When all rise together Redis or the "
            "network is slow: look for slow commands, swapping, or a big save.",
            [
                Query(
                    promql.quantile(0.99, REDIS_CALL_DURATION, (OPERATION,)),
                    "{{operation}}",
                    exemplar=True,
                )
            ],
            "s",
            width=8,
            thresholds=theme.REDIS_CALL,
        ),
        graph(
            "Redis calls",
            "Calls a second by operation. Many more than tasks a second: batches are small, "
            "which is right when idle and worth a look under load.",
            [Query(promql.rate(REDIS_CALL_DURATION, (OPERATION,), "count"), "{{operation}}")],
            "ops",
            width=8,
            stacked=True,
        ),
        graph(
            "Redis errors by operation",
            "Calls that failed. Workers go on trying by themselves; when it lasts, check that "
            "Redis is up, has memory left, and accepts their password.",
            [Query(promql.events(REDIS_ERRORS, (OPERATION,)), "{{operation}}")],
            "short",
            width=8,
            bars=True,
            stacked=True,
            decimals=0,
            no_value=NONE,
        ),
        heatmap(
            "Redis call time, all of it",
            "Every call by how long it took. A second band far above the first is a slow "
            "command or a stall: compare its times with Redis' own slow log.",
            Query(promql.rate(REDIS_CALL_DURATION, ("le",), "bucket"), "{{le}}", exemplar=True),
        ),
        graph(
            "Scraped targets",
            "1 for every target that Prometheus reaches. 0 means that the numbers on these "
            "dashboards miss that process: see whether it runs.",
            [Query(promql.ours(f"{promql.UP}{{{promql.TARGET}}}", "job"), "{{instance}}")],
            "none",
            maximum=1,
            decimals=0,
        ),
    ]


def _processes() -> list[Panel]:
    return [
        graph(
            "CPU",
            "Share of one core that each process uses. At 100 % a Python process can do no more: "
            "add workers, not concurrency.",
            [
                Query(
                    promql.ours(f"rate({promql.PROCESS_CPU}{{{promql.TARGET}}}[{promql.RATE}])"),
                    "{{instance}}",
                )
            ],
            "percentunit",
            width=9,
        ),
        graph(
            "Memory",
            "Resident memory of each process. A climb that never levels off is a leak, most "
            "often in a task: compare with the tasks that ran.",
            [
                Query(
                    promql.ours(f"{promql.PROCESS_MEMORY}{{{promql.TARGET}}}"),
                    "{{instance}}",
                )
            ],
            "bytes",
            width=9,
        ),
        bars(
            "Versions",
            "Scraped processes by streaq and Python version. Two versions are right during a "
            "deploy; afterwards an old one did not restart.",
            Query(
                f"count by ({VERSION}, {PYTHON}) ({promql.select(BUILD_INFO)})",
                "{{version}} on {{python}}",
            ),
            "none",
            theme.neutral(),
            width=6,
        ),
    ]
