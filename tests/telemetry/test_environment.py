"""Variables that OpenTelemetry reads at its import, and raises for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HOOKS = """
from streaq.telemetry import Telemetry, hooks_for
from streaq.telemetry.environment import ignored
from opentelemetry import propagate
import os
for _ in range(2):
    assert hooks_for(True, queue="shop", client_id="w")
print(*sorted(propagate.get_global_textmap().fields), len(ignored()))
print(*(name for name in sorted(os.environ) if name.startswith("OTEL_")))
"""
OTLP = """
from streaq.telemetry.otlp import configure_otlp
from streaq.types import StreaqError
try:
    configure_otlp()
except StreaqError as e:
    print(e)
"""
W3C = "baggage traceparent tracestate"


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it where nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("OTEL_PROPAGATORS", "tracecontext,b3", "Propagator b3 not found."),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-4", "it is a whole number, 0 or more."),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc", "it is a whole number, 0 or more."),
    ],
)
def test_a_setting_that_opentelemetry_cannot_use_is_ignored(
    name: str, value: str, why: str
) -> None:
    said = python(HOOKS, **{name: value})
    assert said.stdout.splitlines() == [f"{W3C} 1", name], "and it is still there for others"
    [line] = said.stderr.splitlines()
    assert line.startswith(f"{name}={value!r}: {why}")
    assert line.endswith(" OpenTelemetry goes on without it.")
    with_otlp = python(OTLP, **{name: value})
    assert with_otlp.stdout.startswith(f"{name}={value!r}: {why}"), "asked for, it is an error"
    assert with_otlp.stdout.count("\n") == 1


def test_one_that_it_can_use_is_used() -> None:
    said = python(HOOKS, OTEL_PROPAGATORS="baggage", OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="5")
    assert said.stdout.splitlines()[0] == "baggage 0"
    assert said.stderr == ""
