"""Cron: did every schedule run, will it, and how late."""

from __future__ import annotations

from streaq.telemetry.names import (
    CRON_LAST_SUCCESS,
    CRON_MISSED,
    CRON_NEXT_RUN,
    KIND,
    QUEUE,
    SCHEDULE_LAG,
    TASK,
    TASKS_ENQUEUED,
)
from tools.dashboards import promql, theme
from tools.dashboards.layout import Section, dashboard
from tools.dashboards.links import traces_of
from tools.dashboards.panels import Column, Panel, Query, graph, heatmap, stat, table
from tools.dashboards.theme import Json

PER = (QUEUE, TASK)
SINCE = promql.age(CRON_LAST_SUCCESS, PER)
UNTIL = promql.ahead(CRON_NEXT_RUN, PER)
MISSED = promql.gained(CRON_MISSED, promql.RANGE)
LAG = f"({promql.quantile(0.95, SCHEDULE_LAG, PER)} >= 0) and {promql.gauge(CRON_NEXT_RUN, PER)}"
TRACES = traces_of(queue="${__field.labels.queue}", task="${__field.labels.task}")
OVERDUE = theme.limits(5, 300)


def build() -> Json:
    """The dashboard as Grafana reads it."""
    return dashboard(
        "cron",
        "streaQ / Cron",
        "Did every schedule run, will it, and how late.",
        [
            Section("", [*_tiles(), _table()]),
            Section("Over time", [*_schedules(), *_lateness()]),
        ],
        ids=400,
    )


def _tiles() -> list[Panel]:
    return [
        stat(
            "Schedules",
            "Schedules with a next firing. Fewer than the code has: a worker with them is not "
            "running.",
            Query(f"count({promql.gauge(CRON_NEXT_RUN, PER)})"),
            "none",
            theme.neutral(),
            no_value="None",
            spark=False,
        ),
        stat(
            "Next firing in",
            "Time until the next firing of any schedule. Long below zero: nobody fires the "
            "schedules, see that a worker is alive.",
            Query(f"min({UNTIL})"),
            "s",
            theme.neutral(),
            no_value="None",
            spark=False,
        ),
        stat(
            "Overdue",
            "Longest time by which a schedule's next firing is in the past. Red: workers are "
            "gone, or their scheduler is blocked.",
            Query(f"max(clamp_min(-({UNTIL}), 0))"),
            "s",
            OVERDUE,
            no_value="None",
        ),
        stat(
            "Missed firings",
            "Firings in the time range shown that passed with no worker alive and were not run. "
            "Decide for each task whether to run it by hand.",
            Query(f"sum({MISSED})"),
            "none",
            theme.limits(1, 1),
            decimals=0,
            no_value="None",
        ),
        stat(
            "Lateness p95",
            "19 of 20 scheduled tasks and firings were moved to their queue within this time of "
            "being due. Red: workers are too busy to schedule, or Redis is slow.",
            Query(promql.quantile(0.95, SCHEDULE_LAG), exemplar=True),
            "s",
            theme.CRON_LAG,
            no_value="None due",
        ),
        stat(
            "Longest since success",
            "Time since the schedule that has gone longest without a success had one. Compare "
            "with its period in the table; longer means that it fails or does not run.",
            Query(f"max({SINCE})"),
            "s",
            theme.neutral(),
            no_value="None yet",
        ),
    ]


def _table() -> Panel:
    return table(
        "All schedules",
        "One line per schedule. Next run below zero: it is not being fired. Last success older "
        "than its period: it fails, open its traces from the task's name.",
        PER,
        [
            Column("Next run in", UNTIL, "s", decimals=0),
            Column("Last success", SINCE, "s", decimals=0),
            Column("Missed", MISSED, "short", theme.limits(1, 1), decimals=0),
            Column("Lateness p95", LAG, "s", theme.CRON_LAG),
        ],
        sort="Next run in",
        descending=False,
        links={
            TASK: [traces_of(queue="${__data.fields.queue}", task="${__data.fields.task}")],
        },
    )


def _schedules() -> list[Panel]:
    return [
        graph(
            "Since last success",
            "A saw whose teeth are as wide as the schedule's period is healthy. A tooth that "
            "keeps climbing is a schedule that fails or does not run.",
            [Query(SINCE, "{{task}}")],
            "s",
            links=[TRACES],
            no_value="No success yet",
        ),
        graph(
            "Until next run",
            "Falls to zero and jumps to the next firing. Below zero the firing is overdue: see "
            "that a worker is alive and its loop is not blocked.",
            [Query(UNTIL, "{{task}}")],
            "s",
            minimum=None,
            no_value="No schedules",
        ),
    ]


def _lateness() -> list[Panel]:
    return [
        graph(
            "Lateness of scheduled tasks",
            "From being due to being moved to the queue, for delayed tasks and schedules. When "
            "it rises, workers are too busy to schedule or Redis is slow.",
            [
                Query(promql.quantile(q, SCHEDULE_LAG), f"p{round(q * 100)}", exemplar=True)
                for q in (0.5, 0.95, 0.99)
            ],
            "s",
            width=8,
            no_value="None due",
        ),
        heatmap(
            "Lateness, all of it",
            "Every scheduled task by how late it was. A stripe at one moment is a burst that was "
            "due at once: spread the schedules.",
            Query(promql.rate(SCHEDULE_LAG, ("le",), "bucket"), "{{le}}", exemplar=True),
            width=8,
        ),
        graph(
            "Firings",
            "Tasks put into the queue by schedules, a second. A gap is time without a worker: "
            "compare with Missed.",
            [Query(promql.rate(TASKS_ENQUEUED, (TASK,), where={KIND: "cron"}), "{{task}}")],
            "ops",
            width=8,
            links=[TRACES],
            no_value="No firings",
        ),
        graph(
            "Missed in the last hour",
            "Firings that passed with no worker alive and were not run. Decide for each whether "
            "to run it by hand, and keep at least one worker up.",
            [Query(promql.gained(CRON_MISSED, "1h"), "{{task}}")],
            "short",
            width=24,
            height=6,
            soft_maximum=5,
            decimals=0,
        ),
    ]
