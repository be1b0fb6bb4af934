"""For users' tests: what their tasks told, without a backend, whatever the environment says of
exporting and sampling.

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

import inspect
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast
from weakref import WeakKeyDictionary

import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import CollectorRegistry
from structlog.testing import LogCapture
from structlog.typing import EventDict

from streaq.telemetry import names
from streaq.telemetry.config import Telemetry
from streaq.telemetry.context import current_fields
from streaq.telemetry.logging_setup import extra_of
from streaq.telemetry.names_spans import INSTRUMENTATION


class Captured:
    """Spans, metrics and log lines of the workers that got ``telemetry``, and what is logged
    inside of tasks.

    :param telemetry: settings to start from; its registry, tracer provider and logger are
        replaced.
    """

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        with _without_settings():
            self.tracer_provider = TracerProvider(sampler=ALWAYS_ON)
            """For spans of your own: ``seen.tracer_provider.get_tracer("shop")``."""
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.registry = CollectorRegistry()
        self._capture = LogCapture()
        self.telemetry = replace(
            telemetry or Telemetry(),
            registry=self.registry,
            tracer_provider=self.tracer_provider,
            logger=_logger_of(self._capture),
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

    def metric(self, name: str, /, **labels: str) -> float:
        """A metric's value, summed over all series that have these labels; 0 when there is none.

        :param name: of a series, such as ``streaq_tasks_finished_total`` or
            ``streaq_task_duration_seconds_count``.
        :raises ValueError: there is no such metric, label, or value of a label whose values are
            known; or it is read from Redis, and served but not captured.
        """
        samples = [
            sample
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        ]
        if name.startswith("streaq_") or not samples:
            _check(name, labels, is_there=bool(samples))
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    @property
    def logs(self) -> list[dict[str, Any]]:
        """All log lines as fields, with ``event`` and ``log_level``: those of the workers, and
        those that any code wrote inside of a task.
        """
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
    def listening(self) -> Generator[None]:
        """Take in what others than streaq tell meanwhile; ``capture_telemetry`` does this."""
        handler = _Handler(self._capture.entries)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            with _listen_to_structlog(self._capture.entries), _listen_to_spans(self._exporter):
                yield
        finally:
            root.removeHandler(handler)


@contextmanager
def capture_telemetry(telemetry: Telemetry | None = None) -> Generator[Captured]:
    """Capture what workers tell; all spans have been exported when it ends.

    Lines that your own code logs inside of a task are captured as well, through structlog or the
    standard library, as far as the level of the logger lets them through. Spans of your own are
    captured when they are made with ``seen.tracer_provider``, or with the process' own provider
    if an SDK's was set (``opentelemetry.trace.set_tracer_provider``) before this is entered.

    :param telemetry: settings to start from.

    Example::

        with capture_telemetry() as seen:
            worker.telemetry = seen.telemetry
            run(worker)
        assert seen.log("charging", task="charge")["amount"] == 3
    """
    captured = Captured(telemetry)
    try:
        with captured.listening():
            yield captured
    finally:
        captured.tracer_provider.shutdown()


def _logger_of(capture: LogCapture) -> Any:
    """A logger of which the application's structlog configuration decides nothing."""
    return structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        context_class=dict,
    ).bind()


@contextmanager
def _without_settings() -> Generator[None]:
    """Nothing of the environment is for the provider of a test: it may disable the SDK, sample
    nothing, or cut attributes.
    """
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OTEL_")}
    try:
        yield
    finally:
        os.environ.update(kept)


# ----------------------------------------------------------------------------- metrics


def _check(name: str, labels: dict[str, str], *, is_there: bool) -> None:
    """Refuse to answer 0 for what can't be anything else."""
    metrics = {series: metric for metric in names.METRICS for series in metric.series}
    metric = metrics.get(name)
    if metric is None:
        if is_there:
            return  # one of the user's own
        histograms = {metric.name: metric.series for metric in names.METRICS}
        known = histograms.get(name) or get_close_matches(name, metrics) or ("streaq_tasks_...",)
        raise ValueError(f"There is no metric {name!r}; did you mean {' or '.join(known)}?")
    if metric.scope == "queue" and not is_there:
        raise ValueError(f"{name} is read from Redis when it is served; it is not captured.")
    has = (*metric.labels, "le") if name.endswith("_bucket") else metric.labels
    for label, value in labels.items():
        if label not in has:
            raise ValueError(f"{name} has no label {label!r}; it has {', '.join(has)}.")
        values = names.LABEL_VALUES.get(label)
        if values and value not in values:
            raise ValueError(f"{label}={value!r} is never counted; it is {' or '.join(values)}.")


# ---------------------------------------------------------------- what others than streaq tell


class _Handler(logging.Handler):
    """Keeps what is logged inside of tasks through the standard library."""

    def __init__(self, entries: list[Any]) -> None:
        super().__init__()
        self._entries = entries

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        try:
            self._keep(record)
        except Exception:  # noqa: BLE001 - a message and arguments that do not go together
            self.handleError(record)

    def _keep(self, record: logging.LogRecord) -> None:
        fields = current_fields()
        if not fields or record.name.partition(".")[0] == "streaq" or _is_echo(self._entries):
            return
        fields.update(extra_of(record))
        if isinstance(record.msg, dict) and hasattr(record, "_logger"):  # of structlog's
            fields.update(cast("dict[str, Any]", record.msg))
        else:
            fields["event"] = record.getMessage()
        fields.update(log_level=record.levelname.lower(), logger=record.name)
        self._entries.append(fields)


class _Keep:
    """A processor that keeps what is logged inside of tasks through structlog, before others
    make a text of it.
    """

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    def __call__(self, logger: Any, level: str, fields: EventDict) -> EventDict:
        """Keep a line; it goes on as it is."""
        if current_fields() and _lets_through(logger, level, fields):
            bound = structlog.contextvars.get_contextvars()
            entry = {**bound, **_formatted(fields), "log_level": level}
            if isinstance(logger, logging.Logger):
                entry["logger"] = logger.name
            self.entries.append(entry)
        return fields


def _lets_through(logger: Any, level: str, fields: EventDict) -> bool:
    """Whether a logger of the standard library, which filters later, will write the line."""
    if not isinstance(logger, logging.Logger):
        return True
    try:
        structlog.stdlib.filter_by_level(logger, level, fields)
    except structlog.DropEvent:
        return False
    except KeyError:  # a method of the user's own, which is no level
        return True
    return True


def _formatted(fields: EventDict) -> EventDict:
    """With the arguments of ``log.info("charging %s", order)`` in the event."""
    try:
        return structlog.stdlib.PositionalArgumentsFormatter()(None, "", dict(fields))
    except Exception:  # noqa: BLE001 - arguments that do not go together: their logger says so
        return fields


def _is_echo(entries: list[Any]) -> bool:
    """Whether structlog is handing on a line that was kept for these entries."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_proxy_to_logger":
            processors = getattr(frame.f_locals.get("self"), "_processors", ())
            return any(isinstance(p, _Keep) and p.entries is entries for p in processors)
        frame = frame.f_back
    return False


@contextmanager
def _listen_to_structlog(entries: list[Any]) -> Generator[None]:
    """Keep what is logged inside of tasks through structlog; it is written as before."""
    configured: Any = structlog.get_config()["processors"]
    keep = _Keep(entries)
    if not isinstance(configured, list):
        structlog.configure(processors=(keep, *configured))
        try:
            yield
        finally:
            structlog.configure(processors=configured)
        return
    # In place, because loggers that were used already keep this list.
    heard = cast("list[Any]", configured)
    heard.insert(0, keep)
    try:
        yield
    finally:
        if keep in heard:
            heard.remove(keep)


class _Forward(SpanProcessor):
    """Hands the spans of the process' own provider to those who listen now; a provider can't be
    rid of a processor.
    """

    def __init__(self) -> None:
        self.listeners: list[InMemorySpanExporter] = []

    def on_end(self, span: ReadableSpan) -> None:
        """Hand on a span that streaq has not made."""
        scope = span.instrumentation_scope
        if scope is None or scope.name != INSTRUMENTATION:
            for listener in self.listeners:
                listener.export([span])


_FORWARDS: WeakKeyDictionary[TracerProvider, _Forward] = WeakKeyDictionary()


@contextmanager
def _listen_to_spans(exporter: InMemorySpanExporter) -> Generator[None]:
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        yield
        return
    forward = _FORWARDS.get(provider)
    if forward is None:
        forward = _FORWARDS[provider] = _Forward()
        provider.add_span_processor(forward)
    forward.listeners.append(exporter)
    try:
        yield
    finally:
        forward.listeners.remove(exporter)
