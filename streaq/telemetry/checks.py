"""What the settings of ``Telemetry`` may be; so that a slip is told where it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import NamedTuple

from streaq.types import StreaqError


class Rule(NamedTuple):
    """What a setting may be, in words and as a test."""

    allowed: str
    holds: Callable[[object], bool]


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _is_way(value: object) -> bool:
    return value in ("child", "link")


def _at_least(least: int) -> Rule:
    def holds(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return Rule(f"a whole number, {least} or more", holds)


def _is_duration(value: object) -> bool:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return False
    return math.isfinite(seconds) and seconds >= 0


def _has(*methods: str) -> Callable[[object], bool]:
    """None, or an object with these methods: providers and loggers are wrapped in many ways."""

    def holds(value: object) -> bool:
        return value is None or all(callable(getattr(value, name, None)) for name in methods)

    return holds


_SWITCH = Rule("True or False", _is_switch)
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("traces", "metrics", "logs", "create_spans"), _SWITCH),
    **dict.fromkeys(("log_args", "log_results", "log_errors"), _SWITCH),
    **dict.fromkeys(("max_task_names", "max_exception_names", "log_limit"), _at_least(1)),
    "propagation": Rule("'child' or 'link'", _is_way),
    "link_after": Rule("seconds or a timedelta, 0 or more", _is_duration),
    "link_batches_over": _at_least(0),
    "registry": Rule("a prometheus_client CollectorRegistry", _has("register", "collect")),
    "tracer_provider": Rule("an OpenTelemetry TracerProvider", _has("get_tracer")),
    "meter_provider": Rule("an OpenTelemetry MeterProvider", _has("get_meter")),
    "logger": Rule("a structlog logger", _has("debug", "info", "warning", "error")),
}


def check_settings(settings: Mapping[str, object]) -> None:
    """Check every setting that there is a rule for.

    :raises StreaqError: naming the setting, and what it may be.
    """
    for name, rule in _RULES.items():
        value = settings[name]
        if not rule.holds(value):
            raise StreaqError(f"Telemetry({name}={value!r}): it is {rule.allowed}.")


def check_telemetry(given: object, settings: type) -> None:
    """Check a worker's ``telemetry``, which may have been set since the worker was made.

    :raises StreaqError: it is neither a bool nor settings.
    """
    if not isinstance(given, (bool, settings)):
        raise StreaqError(f"telemetry={given!r}: it is True, False or a {settings.__name__}.")
