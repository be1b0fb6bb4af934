"""The ``OTEL_*`` variables: an SDK that loads whatever they say, and what is wrong with them.

OpenTelemetry reads some of them while it is imported, and raises there for a value that it cannot
use. Its specification wants such a setting ignored with a warning; so it is, here, because no
worker is to stop for it, and no line of the user's that imports streaq is to be blamed.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from streaq.types import StreaqError

logger = logging.getLogger("streaq")


class Number(NamedTuple):
    """What a variable may say."""

    least: int = 0
    is_whole: bool = True
    is_more: bool = False
    """Than the least."""

    def allows(self, text: str) -> bool:
        """Whether the text is such a number."""
        value = math.nan
        with suppress(ValueError):
            value = int(text) if self.is_whole else float(text)
        if self.is_more and value == self.least:
            return False
        return self.least <= value < math.inf

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        return f"{kind}, " + (
            f"more than {self.least}" if self.is_more else f"{self.least} or more"
        )


_COUNT, _ANY = Number(1), Number()
_TIME = Number(is_whole=False)
_SOME_TIME = Number(is_whole=False, is_more=True)

LIMITS: Mapping[str, Number] = dict.fromkeys(
    (
        "OTEL_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_SPAN_EVENT_COUNT_LIMIT",
        "OTEL_SPAN_LINK_COUNT_LIMIT",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    ),
    _ANY,
)
QUEUE_SIZE, BATCH_SIZE = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_NUMBERS: Mapping[str, Mapping[str, Number]] = {
    "TRACES": {
        QUEUE_SIZE: _COUNT,
        BATCH_SIZE: _COUNT,
        "OTEL_BSP_SCHEDULE_DELAY": _COUNT,
        "OTEL_BSP_EXPORT_TIMEOUT": _ANY,
        "OTEL_EXPORTER_OTLP_TIMEOUT": _SOME_TIME,
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": _SOME_TIME,
        **LIMITS,
    },
    "METRICS": {
        "OTEL_METRIC_EXPORT_INTERVAL": _SOME_TIME,
        "OTEL_METRIC_EXPORT_TIMEOUT": _TIME,
        "OTEL_EXPORTER_OTLP_TIMEOUT": _SOME_TIME,
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": _SOME_TIME,
    },
}
_SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_READ_AT_IMPORT: Mapping[str, Iterable[str]] = {
    "opentelemetry.propagate": ("OTEL_PROPAGATORS",),
    "opentelemetry.sdk.trace": LIMITS,
}
_ignored: list[str] = []
_untold: list[str] = []


def load_sdk() -> None:
    """Import what reads variables at its import; without them, where it raises.

    ``ignored`` and ``tell_of_ignored`` tell of it, once somebody listens.
    """
    for module, names in _READ_AT_IMPORT.items():
        given = {name: os.environ[name] for name in names if name in os.environ}
        if not given:
            continue
        try:
            import_module(module)
        except Exception as e:  # noqa: BLE001 - it may be any, from whatever a propagator imports
            _import_without(given, module)
            problem = _said(given, e)
            _ignored.append(problem)
            _untold.append(problem)


def _import_without(given: Mapping[str, str], module: str) -> None:
    for name in given:
        del os.environ[name]
    try:
        import_module(module)
    finally:
        os.environ.update(given)


def _said(given: Mapping[str, str], error: Exception) -> str:
    """What is wrong, under the name of the variable it is wrong with."""
    for name, value in given.items():
        if name not in LIMITS or not _allows(LIMITS[name], value):
            why = f"it is {LIMITS[name]}" if name in LIMITS else str(error).rstrip(".")
            return f"{name}={value!r}: {why}."
    return f"{', '.join(given)}: {error}"


def ignored() -> list[str]:
    """Variables that OpenTelemetry was loaded without, and why; one line each."""
    return list(_ignored)


def tell_of_ignored() -> None:
    """Log a warning for each of them, once in a process."""
    while _untold:
        logger.warning("%s OpenTelemetry goes on without it.", _untold.pop())


def check_numbers(signal: str, environ: Mapping[str, str]) -> None:
    """Refuse numbers that the SDK cannot use for this signal.

    :param signal: ``TRACES`` or ``METRICS``.
    :raises StreaqError: naming the variable, and what it may say.
    """
    for name, number in _NUMBERS[signal].items():
        value = environ.get(name, "")
        if not _allows(number, value):
            raise StreaqError(f"{name}={value!r}: it is {number}.")


def check_sampler(environ: Mapping[str, str]) -> None:
    """Refuse a sampler that the SDK does not know: it would sample everything instead.

    :raises StreaqError: naming the variable, and what it may say.
    """
    given = environ.get("OTEL_TRACES_SAMPLER", "")
    # With a blank around it the SDK does not know it either.
    if given.strip() and given.lower() not in _SAMPLERS:
        raise StreaqError(f"OTEL_TRACES_SAMPLER={given!r}: it is one of {', '.join(_SAMPLERS)}.")
    ratio = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if given.lower().endswith("traceidratio") and ratio:
        share = math.nan
        with suppress(ValueError):
            share = float(ratio)
        if not 0 <= share <= 1:
            raise StreaqError(f"OTEL_TRACES_SAMPLER_ARG={ratio!r}: it is a number from 0 to 1.")


def _allows(number: Number, value: str) -> bool:
    """An empty variable is as good as none."""
    return not value.strip() or number.allows(value)
