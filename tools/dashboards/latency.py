"""The front page: is any queue late, which, since when, and why."""

from __future__ import annotations

from streaq.telemetry.names import (
    PRIORITY,
    QUEUE,
    QUEUE_BLOCKED,
    QUEUE_DEPTH,
    QUEUE_ENQUEUED,
    QUEUE_FINISHED,
    QUEUE_OLDEST_DUE,
    QUEUE_RUNNING,
    QUEUE_SCHEDULED,
    QUEUE_WORKERS,
    STATUS,
    TASK,
    TASK_END_TO_END,
    TASK_QUEUE_WAIT,
    TASKS_FINISHED,
    TASKS_RETRIED,
    TASKS_RUNNING,
    TASKS_STARTED,
    WORKER_CONCURRENCY,
)
from tools.dashboards import promql, theme
from tools.dashboards.layout import Section, dashboard
from tools.dashboards.links import to_dashboard, traces_of
from tools.dashboards.panels import Column, Panel, Query, graph, heatmap, stat, table
from tools.dashboards.theme import Json

LATE = (QUEUE, PRIORITY)
OBJECTIVE = f"{theme.WAIT_OBJECTIVE_S:g} s"
TARGET = f"{theme.WAIT_TARGET:.0%}"

AGE = promql.or_zero(promql.age(QUEUE_OLDEST_DUE, LATE), promql.gauge(QUEUE_DEPTH, LATE))
DEPTH = promql.gauge(QUEUE_DEPTH, (QUEUE,))
COMPLETION = promql.rate(QUEUE_FINISHED, (QUEUE,))
CONCURRENCY = promql.gauge(WORKER_CONCURRENCY, (QUEUE,))
RUNNING = promql.or_zero(promql.mean(TASKS_RUNNING, (QUEUE,), free=(PRIORITY, TASK)), CONCURRENCY)
SATURATION = f"{RUNNING} / ({CONCURRENCY} > 0)"
DRAIN = f"clamp_max(({DEPTH} > 0) / {promql.or_zero(COMPLETION, DEPTH)}, 3600) or 0 * {DEPTH}"

QUEUE_LINKS = [
    to_dashboard("tasks", queue="${__field.labels.queue}"),
    traces_of(queue="${__field.labels.queue}"),
]


def build() -> Json:
    """The dashboard as Grafana reads it."""
    return dashboard(
        "latency",
        "streaQ / Queue latency",
        "Is any queue late, which, since when, and why. Read it from the top left.",
        [
            Section("", [*_tiles(), _age(), _which()]),
            Section("How long tasks wait", _waiting()),
            Section("What comes in, what goes out", _flow()),
            Section("Who works", _capacity()),
            Section("How it ends, and the objective", _outcomes()),
        ],
        ids=100,
    )


def _tiles() -> list[Panel]:
    return [
        stat(
            "Oldest due task",
            "How long the task that waits longest has been due. Red means that a queue is late: "
            "the table below says which, and the graph since when.",
            Query(f"max({AGE})"),
            "s",
            theme.AGE,
            decimals=1,
        ),
        stat(
            "Queue wait p95",
            "19 of 20 attempts started sooner than this after they were due; intended delay is "
            "not counted. When it rises while saturation is low, look at Redis and the event "
            "loop on the Workers dashboard.",
            Query(promql.quantile(0.95, TASK_QUEUE_WAIT), exemplar=True),
            "s",
            theme.AGE,
            no_value="No starts",
        ),
        stat(
            "Time to drain",
            "How long the tasks that wait now will take at the present rate of completion. When "
            "it grows, more comes in than goes out: add workers, or find what floods the queue.",
            Query(f"max({DRAIN})"),
            "s",
            theme.DRAIN,
        ),
        stat(
            "Saturation",
            "Running attempts over the attempts that all workers can run at once, of the fullest "
            "queue. Red with a growing depth: add workers or concurrency. Low while tasks are "
            "late: workers are stuck or not connected.",
            Query(f"max({SATURATION})"),
            "percentunit",
            theme.SATURATION,
            no_value="No workers",
            no_color=theme.BAD,
            decimals=0,
        ),
        stat(
            "Workers alive",
            "Workers that keep their health record in Redis, of the queue with the fewest. At "
            "zero nothing will run: start workers, or see why they cannot reach Redis.",
            Query(f"min({promql.gauge(QUEUE_WORKERS, (QUEUE,))})"),
            "none",
            theme.WORKERS,
        ),
        stat(
            "Error budget left",
            f"Of the {1 - theme.WAIT_TARGET:.0%} of attempts that may wait longer than "
            f"{OBJECTIVE}, the share not yet used up in the time range shown. Below zero the "
            "objective is missed (-100 % stands for worse): stop what can wait, add workers. "
            "A task that still waits is counted once it has started.",
            Query(_budget()),
            "percentunit",
            theme.BUDGET,
            no_value="No starts",
            decimals=0,
        ),
    ]


def _age() -> Panel:
    return graph(
        "Age of the oldest due task",
        "Per queue and priority, how long the task that waits longest has been due; 0 when none "
        f"waits. Above {OBJECTIVE} (the red line) the queue is late. A straight climb means that "
        "nothing is started at all; a saw that creeps up means too few workers.",
        [Query(AGE, "{{queue}} / {{priority}}")],
        "s",
        width=14,
        height=10,
        thresholds=theme.AGE,
        links=QUEUE_LINKS,
    )


def _which() -> Panel:
    wait = promql.quantile(0.95, TASK_QUEUE_WAIT, LATE)
    return table(
        "Which queue is late",
        "Every queue and priority, the latest first. A queue that is late with nothing running "
        "is stuck; one that is late with everything running is overloaded. The queue's name "
        "leads to its tasks and traces.",
        LATE,
        [
            Column("Oldest due", AGE, "s", theme.AGE, decimals=1),
            Column("Wait p95", f"{wait} >= 0", "s", theme.AGE),
            Column("Waiting", promql.gauge(QUEUE_DEPTH, LATE), "short", decimals=0),
            Column("Running", promql.gauge(QUEUE_RUNNING, LATE), "short", decimals=0),
        ],
        sort="Oldest due",
        width=10,
        height=10,
        links={
            QUEUE: [
                to_dashboard("tasks", queue="${__data.fields.queue}"),
                traces_of(queue="${__data.fields.queue}"),
            ]
        },
    )


def _waiting() -> list[Panel]:
    return [
        graph(
            "Queue wait",
            "Time from being due to being started. When p99 leaves p50, a few tasks are stuck "
            "behind long ones: give them a priority or workers of their own. Dots are traces: "
            "click one.",
            _percentiles(TASK_QUEUE_WAIT),
            "s",
        ),
        heatmap(
            "Queue wait, all of it",
            "Every started attempt by how long it had waited. A second band above the first is "
            "a priority or a task that waits longer than the others: pick it with the filters "
            "above.",
            Query(promql.rate(TASK_QUEUE_WAIT, ("le",), "bucket"), "{{le}}", exemplar=True),
        ),
        graph(
            "End to end",
            "Time from being due to the task's end, retries included: what the one who waits "
            "for the result sees. High while queue wait is low: the task itself is slow or "
            "retries, see the Tasks dashboard.",
            _percentiles(TASK_END_TO_END),
            "s",
        ),
        graph(
            "Queue wait p95 by priority",
            "Which priority waits. The lowest may wait long when the others are busy; when the "
            "highest waits, workers are too few.",
            [
                Query(
                    promql.quantile(0.95, TASK_QUEUE_WAIT, LATE),
                    "{{queue}} / {{priority}}",
                    exemplar=True,
                )
            ],
            "s",
            links=QUEUE_LINKS,
        ),
    ]


def _flow() -> list[Panel]:
    return [
        graph(
            "Arrival against completion",
            "Tasks a second that come in and that end. Arrival above completion fills the "
            "queue: find the producer on the Tasks dashboard, or add workers.",
            [
                Query(promql.rate(QUEUE_ENQUEUED, ()), "arrival"),
                Query(promql.rate(QUEUE_FINISHED, ()), "completion"),
            ],
            "ops",
        ),
        graph(
            "Tasks waiting",
            "Tasks that are due and wait for a worker. Growth matters, size does not: a big "
            "queue that drains is healthy. When it grows, compare arrival and completion.",
            [Query(promql.gauge(QUEUE_DEPTH, LATE), "{{queue}} / {{priority}}")],
            "short",
            stacked=True,
            links=QUEUE_LINKS,
        ),
        graph(
            "Time to drain by queue",
            "How long what waits now will take at the present rate of completion; one "
            "hour stands for more and for never. When it climbs, the queue is losing: add workers.",
            [Query(DRAIN, "{{queue}}")],
            "s",
            width=8,
            thresholds=theme.DRAIN,
            links=QUEUE_LINKS,
        ),
        graph(
            "Scheduled",
            "Tasks with a due time still to come, retries included. A cliff is a burst about to "
            "be due; a steady climb may be retries, see the Tasks dashboard.",
            [Query(promql.gauge(QUEUE_SCHEDULED, LATE), "{{queue}} / {{priority}}")],
            "short",
            width=8,
            stacked=True,
        ),
        graph(
            "Blocked",
            "Tasks that wait for other tasks to end. When it only grows, what they wait for does "
            "not finish: `streaq explain ID` names it.",
            [Query(promql.gauge(QUEUE_BLOCKED, LATE), "{{queue}} / {{priority}}")],
            "short",
            width=8,
            stacked=True,
        ),
    ]


def _capacity() -> list[Panel]:
    return [
        graph(
            "Saturation by queue",
            "Running attempts over what the workers can run at once. At 100 % every new task "
            "waits for another to end. Low while the queue is late: see Workers alive, and loop "
            "lag on the Workers dashboard.",
            [Query(SATURATION, "{{queue}}")],
            "percentunit",
            thresholds=theme.SATURATION,
            maximum=1,
            decimals=0,
        ),
        graph(
            "Workers alive by queue",
            "Workers that keep their health record in Redis. A step down without a deploy is a "
            "crash: see Reclaimed on the Workers dashboard, and the workers' logs.",
            [Query(promql.gauge(QUEUE_WORKERS, (QUEUE,)), "{{queue}}")],
            "none",
            decimals=0,
        ),
    ]


def _outcomes() -> list[Panel]:
    started = promql.rate(TASKS_STARTED, (QUEUE,))
    finished = promql.rate(TASKS_FINISHED, (QUEUE,))
    failed = promql.rate(TASKS_FINISHED, (QUEUE,), where={STATUS: "failed"})
    retried = promql.rate(TASKS_RETRIED, (QUEUE,))
    return [
        graph(
            "Failure ratio",
            "Failed tasks over all that ended. A jump after a deploy is the deploy; otherwise "
            "see which exception it is on the Tasks dashboard.",
            [Query(promql.ratio(failed, finished), "{{queue}}")],
            "percentunit",
            width=6,
            thresholds=theme.FAILURES,
            links=QUEUE_LINKS,
        ),
        graph(
            "Retry ratio",
            "Attempts that end with another try to come, over attempts started. High means that "
            "workers do the same work again: see Retries by reason on the Tasks dashboard.",
            [Query(promql.ratio(retried, started), "{{queue}}")],
            "percentunit",
            width=6,
            thresholds=theme.RETRIES,
            links=QUEUE_LINKS,
        ),
        graph(
            f"Started within {OBJECTIVE}",
            f"Share of attempts that started within {OBJECTIVE} of being due, against the "
            f"objective of {TARGET}. Below the line the error budget is being spent: see which "
            "priority it is, and whether workers are saturated.",
            [
                Query(f"{_good('rate', LATE)} / {_all('rate', LATE)}", "{{queue}} / {{priority}}"),
                Query(f"vector({theme.WAIT_TARGET})", "objective"),
            ],
            "percentunit",
            width=6,
            minimum=None,
            maximum=1,
            dashed=["objective"],
        ),
        graph(
            "Burn rate of the error budget",
            "How many times faster than allowed the budget is spent: at 1 it lasts exactly its "
            "period, at 14.4 a month's budget is gone in two days and the page goes off. Above "
            "1 for long: add workers or lower the objective.",
            [Query(_burn(), "{{queue}} / {{priority}}")],
            "short",
            width=6,
            thresholds=theme.limits(1, 14.4),
        ),
    ]


def _percentiles(metric: promql.Metric) -> list[Query]:
    return [
        Query(promql.quantile(q, metric), f"p{round(q * 100)}", exemplar=True)
        for q in (0.5, 0.95, 0.99)
    ]


def _good(function: str, by: tuple[str, ...]) -> str:
    fast = promql.within(TASK_QUEUE_WAIT, theme.WAIT_OBJECTIVE_S)
    count = promql.rate if function == "rate" else promql.increase
    return count(TASK_QUEUE_WAIT, by, "bucket", where=fast)


def _all(function: str, by: tuple[str, ...]) -> str:
    count = promql.rate if function == "rate" else promql.increase
    return count(TASK_QUEUE_WAIT, by, "count")


def _burn() -> str:
    slow = f"(1 - {_good('rate', LATE)} / ({_all('rate', LATE)} > 0))"
    return f"{slow} / {1 - theme.WAIT_TARGET:.4g}"


def _budget() -> str:
    good, every = _good("increase", ()), _all("increase", ())
    left = f"1 - (1 - {good} / ({every} > 0)) / {1 - theme.WAIT_TARGET:.4g}"
    return f"clamp_min({left}, -1)"
