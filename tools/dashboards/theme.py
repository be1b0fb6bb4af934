"""Colours and limits: one meaning, one colour, on every dashboard.

Green is fine, yellow deserves a look, red deserves an action; where an alert exists, red starts
where the alert does.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from streaq.telemetry.names import TASK_BUCKETS

Json: TypeAlias = dict[str, Any]

OK = "green"
WARN = "yellow"
BAD = "red"
MISSING = "#5a6069"
"""Of a number that there is none of now."""

WAIT_OBJECTIVE_S = 10.0
"""An attempt should start within this many seconds of being due (a bucket of the histogram)."""
WAIT_TARGET = 0.99
"""Share of the attempts that should."""

if WAIT_OBJECTIVE_S not in TASK_BUCKETS:
    raise ValueError("WAIT_OBJECTIVE_S must be a bucket of the wait histogram")


def _steps(*steps: tuple[str, float | None]) -> Json:
    return {
        "mode": "absolute",
        "steps": [{"color": color, "value": value} for color, value in steps],
    }


def limits(warn: float, bad: float) -> Json:
    """Green below ``warn``, yellow from there, red from ``bad``; for values that should be low."""
    return _steps((OK, None), (WARN, warn), (BAD, bad))


def floors(warn: float, ok: float) -> Json:
    """Red below ``warn``, yellow from there, green from ``ok``; for values that should be high."""
    return _steps((BAD, None), (WARN, warn), (OK, ok))


def at_least(ok: float) -> Json:
    """Red below ``ok``, green from there."""
    return _steps((BAD, None), (OK, ok))


def only_bad(thresholds: Json) -> Json:
    """The same limits without green, for tables: only the cells that need a look are coloured."""
    steps = [
        {**step, "color": "transparent"} if step["color"] == OK else step
        for step in thresholds["steps"]
    ]
    return {**thresholds, "steps": steps}


def neutral() -> Json:
    """For values that are neither good nor bad."""
    return _steps(("blue", None))


AGE = limits(WAIT_OBJECTIVE_S / 2, WAIT_OBJECTIVE_S)
DRAIN = limits(60, 300)
SATURATION = limits(0.8, 0.95)
FAILURES = limits(0.02, 0.1)
RETRIES = limits(0.2, 0.5)
BUDGET = floors(0.0, 0.25)
WORKERS = at_least(1)
ANY = limits(1, 10)
LOOP_LAG = limits(0.1, 1.0)
OLDEST_RUNNING = limits(600, 3600)
REDIS_CALL = limits(0.01, 0.1)
CRON_LAG = limits(5, 30)

SERIES = {
    "p50": "super-light-blue",
    "p95": "blue",
    "p99": "dark-purple",
    "arrival": "blue",
    "completion": "green",
    "success": "green",
    "failed": "red",
    "aborted": "purple",
    "expired": "dark-orange",
    "retried": "yellow",
    "returned": "light-blue",
    "objective": "dark-red",
    "concurrency": "#8e8e8e",
}
"""Series whose name has a meaning keep one colour everywhere."""
