"""Tasks: which one is slow, which one fails, and how."""

from __future__ import annotations

from streaq.telemetry.names import (
    EXCEPTION,
    KIND,
    QUEUE,
    REASON,
    STATUS,
    TASK,
    TASK_DURATION,
    TASK_END_TO_END,
    TASK_QUEUE_WAIT,
    TASKS_ENQUEUED,
    TASKS_FAILED,
    TASKS_FINISHED,
    TASKS_REFUSED,
    TASKS_RETRIED,
    TASKS_RUNNING,
    TASKS_STARTED,
)
from tools.dashboards import promql, theme
from tools.dashboards.layout import Section, dashboard
from tools.dashboards.links import traces_of
from tools.dashboards.panels import Column, Panel, Query, bars, graph, heatmap, table
from tools.dashboards.theme import Json

PER = (QUEUE, TASK)
STARTED = promql.rate(TASKS_STARTED, PER)
FINISHED = promql.rate(TASKS_FINISHED, PER)
FAILED = promql.rate(TASKS_FINISHED, PER, where={STATUS: "failed"})
RETRIED = promql.rate(TASKS_RETRIED, PER)
TRACES = traces_of(queue="${__field.labels.queue}", task="${__field.labels.task}")
NONE = "None in this time range"


def build() -> Json:
    """The dashboard as Grafana reads it."""
    return dashboard(
        "tasks",
        "streaQ / Tasks",
        "Which task is slow, which one fails, and how.",
        [
            Section("", [_table()]),
            Section("How many", _rates()),
            Section("How long", _durations()),
            Section("What goes wrong", _trouble()),
        ],
        ids=200,
    )


def _table() -> Panel:
    return table(
        "All tasks",
        "One line per task; click a heading to sort. Red failures: look for the exception below. "
        "A high p95 beside a low p50: some inputs are slow, open their traces from the task's "
        "name.",
        PER,
        [
            Column("Starts/s", STARTED, "ops", decimals=2),
            Column("Running", promql.gauge(TASKS_RUNNING, PER), "short", decimals=0),
            Column("Run p50", f"{promql.quantile(0.5, TASK_DURATION, PER)} >= 0", "s"),
            Column("Run p95", f"{promql.quantile(0.95, TASK_DURATION, PER)} >= 0", "s"),
            Column(
                "Wait p95",
                f"{promql.quantile(0.95, TASK_QUEUE_WAIT, PER)} >= 0",
                "s",
                theme.AGE,
            ),
            Column("End to end p95", f"{promql.quantile(0.95, TASK_END_TO_END, PER)} >= 0", "s"),
            Column(
                "Failed",
                promql.ratio(FAILED, FINISHED),
                "percentunit",
                theme.FAILURES,
                decimals=1,
            ),
            Column(
                "Retried",
                promql.ratio(RETRIED, STARTED),
                "percentunit",
                theme.RETRIES,
                decimals=1,
            ),
        ],
        sort="Starts/s",
        height=12,
        links={
            TASK: [traces_of(queue="${__data.fields.queue}", task="${__data.fields.task}")],
        },
    )


def _rates() -> list[Panel]:
    return [
        graph(
            "Starts by task",
            "Attempts started a second. A task that drops to zero while it is still enqueued "
            "waits for workers that know it: check what the workers were deployed with.",
            [Query(promql.rate(TASKS_STARTED, (TASK,)), "{{task}}")],
            "ops",
            width=8,
            stacked=True,
            links=[TRACES],
        ),
        graph(
            "Enqueued by kind",
            "Where work comes from: at once, delayed, by a schedule, or after another task. A "
            "kind that explodes names the producer to look at.",
            [Query(promql.rate(TASKS_ENQUEUED, (KIND,)), "{{kind}}")],
            "ops",
            width=8,
            stacked=True,
        ),
        graph(
            "Ended by status",
            "How tasks end, a second. Red growing: see the exceptions below. Orange: tasks "
            "expire before a worker takes them, so the queue is late.",
            [Query(promql.rate(TASKS_FINISHED, (STATUS,)), "{{status}}")],
            "ops",
            width=8,
            stacked=True,
            colors=_status_colors("success", "failed", "aborted", "expired"),
        ),
    ]


def _durations() -> list[Panel]:
    return [
        graph(
            "Run time p95 by task",
            "19 of 20 attempts took less than this. A step up is a deploy or a slow dependency: "
            "click a dot for the trace of a slow attempt.",
            [Query(promql.quantile(0.95, TASK_DURATION, (TASK,)), "{{task}}", exemplar=True)],
            "s",
            links=[TRACES],
        ),
        graph(
            "Run time p95 by status",
            "Failures that are slower than successes are timeouts: look at what the task calls. "
            "Returned are attempts handed back at shutdown: long ones need a longer grace "
            "period.",
            [Query(promql.quantile(0.95, TASK_DURATION, (STATUS,)), "{{status}}", exemplar=True)],
            "s",
            colors=_status_colors("success", "failed", "aborted", "retried", "returned"),
        ),
        bars(
            "Slowest tasks",
            "The seven tasks with the highest p95 run time. Give the slow ones workers or a "
            "priority of their own, so that short ones do not wait behind them.",
            Query(f"topk(7, {promql.quantile(0.95, TASK_DURATION, (TASK,))} >= 0)", "{{task}}"),
            "s",
            theme.neutral(),
            links=[TRACES],
        ),
        heatmap(
            "Run time, all of it",
            "Every attempt by how long it ran. Two bands are two kinds of work under one name: "
            "pick the task with the filter above, and think of splitting it.",
            Query(promql.rate(TASK_DURATION, ("le",), "bucket"), "{{le}}", exemplar=True),
            width=8,
        ),
        graph(
            "End to end p95 by task",
            "From being due to the end, retries included. Far above the run time: the task waits "
            "or retries, see the Queue latency dashboard.",
            [Query(promql.quantile(0.95, TASK_END_TO_END, (TASK,)), "{{task}}", exemplar=True)],
            "s",
            width=8,
            links=[TRACES],
        ),
    ]


def _trouble() -> list[Panel]:
    return [
        graph(
            "Failed by exception",
            "Tasks that failed for good, by exception class. A new name after a deploy is that "
            "deploy; a burst of connection errors is a dependency. Click for the traces.",
            [Query(promql.events(TASKS_FAILED, (TASK, EXCEPTION)), "{{task}}: {{exception}}")],
            "short",
            bars=True,
            stacked=True,
            decimals=0,
            links=[TRACES],
            no_value=NONE,
        ),
        graph(
            "Retries by reason",
            "Attempts that will be tried again: asked for by the task, or after a timeout. Many "
            "timeouts: raise the limit or find what hangs.",
            [Query(promql.events(TASKS_RETRIED, (TASK, REASON)), "{{task}}: {{reason}}")],
            "short",
            bars=True,
            stacked=True,
            decimals=0,
            links=[TRACES],
            no_value=NONE,
        ),
        graph(
            "Refused by reason",
            "Tasks ended without running: expired, unknown here, undecodable, out of tries, a "
            "unique clash, a late cron firing, or a failed dependency. Unknown or undecodable "
            "after a deploy: producer and worker differ.",
            [Query(promql.events(TASKS_REFUSED, (TASK, REASON)), "{{task}}: {{reason}}")],
            "short",
            bars=True,
            stacked=True,
            decimals=0,
            no_value=NONE,
        ),
        graph(
            "Aborted by task",
            "Tasks that someone aborted. When nobody did, look in the logs for task.aborted.",
            [Query(promql.events(TASKS_FINISHED, (TASK,), where={STATUS: "aborted"}), "{{task}}")],
            "short",
            bars=True,
            stacked=True,
            decimals=0,
            no_value=NONE,
        ),
    ]


def _status_colors(*statuses: str) -> dict[str, str]:
    return {status: theme.SERIES[status] for status in statuses}
