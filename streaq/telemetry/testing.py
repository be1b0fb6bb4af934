"""For users' tests: what their tasks told, without a backend.

Example::

    def test_charge() -> None:
        with capture_telemetry() as seen:
            worker = make_worker(telemetry=seen.telemetry)
            run(worker)                       # however your tests run tasks
        assert seen.span("process charge").attributes["streaq.task.outcome"] == "success"
        assert seen.metric("streaq_tasks_finished_total", task="charge", status="success") == 1
        assert seen.log("task.finished")["task"] == "charge"
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from structlog.testing import LogCapture

from streaq.telemetry.config import Telemetry


class Captured:
    """Spans, metrics and log lines of the workers that got ``telemetry``.

    :param telemetry: settings to start from; its registry, tracer provider and logger are
        replaced.
    """

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.registry = CollectorRegistry()
        self._capture = LogCapture()
        self.telemetry = replace(
            telemetry or Telemetry(),
            registry=self.registry,
            tracer_provider=self.tracer_provider,
            logger=structlog.wrap_logger(None, processors=[self._capture]).bind(),
        )
        """Pass it on: ``Worker(telemetry=seen.telemetry)``."""

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """All spans that have ended, in the order of their ends."""
        return self._exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        """The one span of this name.

        :raises AssertionError: there is none, or more than one.
        """
        found = [span for span in self.spans if span.name == name]
        names = ", ".join(span.name for span in self.spans) or "none"
        if len(found) != 1:
            raise AssertionError(f"{len(found)} spans are called {name!r}; seen: {names}")
        return found[0]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, summed over all series that have these labels; 0 when there is none.

        :param name: of a series, such as ``streaq_tasks_finished_total`` or
            ``streaq_task_duration_seconds_count``.
        """
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @property
    def logs(self) -> list[dict[str, Any]]:
        """All log lines as fields, with ``event`` and ``log_level``."""
        return [dict(entry) for entry in self._capture.entries]

    def log(self, event: str, **fields: object) -> dict[str, Any]:
        """The one log line of this event that has these fields.

        :raises AssertionError: there is none, or more than one.
        """
        found = [
            entry
            for entry in self.logs
            if entry["event"] == event and fields.items() <= entry.items()
        ]
        events = ", ".join(entry["event"] for entry in self.logs) or "none"
        if len(found) != 1:
            raise AssertionError(f"{len(found)} lines are {event!r}; seen: {events}")
        return found[0]

    def clear(self) -> None:
        """Forget spans and log lines. Metrics go on counting."""
        self._exporter.clear()
        self._capture.entries.clear()


@contextmanager
def capture_telemetry(telemetry: Telemetry | None = None) -> Generator[Captured]:
    """Capture what workers tell; all spans have been exported when it ends.

    :param telemetry: settings to start from.
    """
    captured = Captured(telemetry)
    try:
        yield captured
    finally:
        captured.tracer_provider.shutdown()
