"""Sends traces (and, if asked, metrics) to a collector, as the standard ``OTEL_*`` variables say.

``streaq run`` calls ``configure_otlp`` in every worker process before the worker starts; the
exporters come from the ``otlp`` extra.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import metrics, trace

from streaq.telemetry.config import Telemetry
from streaq.telemetry.environment import (
    BATCH_SIZE,
    QUEUE_SIZE,
    check_numbers,
    check_sampler,
    ignored,
)
from streaq.types import StreaqError
from streaq.wire import one_line

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from streaq.worker import Worker

T = TypeVar("T")

logger = logging.getLogger("streaq")

DEFAULT_SERVICE = "streaq"
SHUTDOWN_S = 5.0
GRPC, HTTP = "grpc", "http/protobuf"
TRACES, METRICS = "TRACES", "METRICS"
OTLP, CONSOLE, NONE, PROMETHEUS = "otlp", "console", "none", "prometheus"
SERVED = (
    "OTEL_METRICS_EXPORTER=prometheus: streaq serves /metrics by itself, where --metrics-port says."
)
DEFAULT_BATCH = 512
APPLICATIONS_OWN = (
    "The application has set up OpenTelemetry itself, which is left alone: --otlp changes nothing, "
    "nor do OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER, unless the application reads them."
)
MISSING = "Sending OTLP needs the 'otlp' extra: pip install 'streaq[otlp]'."

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_WANTED_BY = (
    *_ENDPOINTS,
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
)


def is_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment says where telemetry is to go, so that ``--otlp`` need not be."""
    environ = os.environ if environ is None else environ
    return any(environ.get(name) for name in _WANTED_BY)


@dataclass(frozen=True)
class Otlp:
    """What was set up. Hand it the worker, and shut it down when the worker has stopped."""

    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None

    def apply(self, worker: Worker[Any]) -> None:
        """Have ``worker`` record metrics for the collector too, if any are to go there."""
        if self.meter_provider is None or not worker.telemetry:
            return
        given = worker.telemetry
        settings = given if isinstance(given, Telemetry) else Telemetry()
        if settings.metrics and settings.meter_provider is None:
            worker.telemetry = replace(settings, meter_provider=self.meter_provider)

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Send what is left and stop; a collector that is away is not waited for any longer.

        :param timeout_s: seconds it may take.
        """
        # In a thread: a provider goes on trying for as long as its exporter does.
        sender = threading.Thread(target=self._shutdown, name="streaq-otlp-shutdown", daemon=True)
        sender.start()
        sender.join(timeout_s)
        if sender.is_alive():
            logger.warning("the last spans were not sent within %.0f s: no collector?", timeout_s)

    def _shutdown(self) -> None:
        for provider in (self.tracer_provider, self.meter_provider):
            if provider is not None:
                provider.shutdown()


def configure_otlp(environ: Mapping[str, str] | None = None, *, lenient: bool = False) -> Otlp:
    """Set up the SDK for this process: service name, resource, sampler, exporters.

    The variables that the SDK and its exporters read themselves (``OTEL_SERVICE_NAME``,
    ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, endpoints, headers,
    certificates, timeouts) all work. Here are read ``OTEL_TRACES_EXPORTER`` (otlp, console, both
    with a comma, or none; otlp by default), ``OTEL_METRICS_EXPORTER`` (the same; none by default,
    since Prometheus scrapes them, which ``prometheus`` says as well) and
    ``OTEL_EXPORTER_OTLP_PROTOCOL`` (grpc or http/protobuf, the default). A provider that the
    application has set already is left alone.

    :param environ: the variables to read here; those of the process by default.
    :param lenient: log what cannot be used as a warning and go on without it, instead of raising:
        nobody asked for traces, and the variables may be meant for another program. Traces are
        only sent if a variable names where.
    :raises StreaqError: the extra is missing, or a variable has a value that cannot be used.

    Example::

        otlp = configure_otlp()
        otlp.apply(worker)
        try:
            worker.run_sync()
        finally:
            otlp.shutdown()
    """
    environ = os.environ if environ is None else environ
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # With variables alone, the application's SDK is what they are meant for.
        level = logging.INFO if lenient else logging.WARNING
        logger.log(level, APPLICATIONS_OWN)
        return Otlp(None, None)
    setup = _Setup(environ, lenient=lenient)
    tracing, meters = setup.tracing(), setup.meters()
    if tracing is not None:
        trace.set_tracer_provider(tracing)
    if meters is not None:
        metrics.set_meter_provider(meters)
    return Otlp(tracing, meters)


class _Setup:
    """Makes the providers that the variables ask for."""

    def __init__(self, environ: Mapping[str, str], *, lenient: bool) -> None:
        self._environ = environ
        self._lenient = lenient
        if ignored() and not lenient:
            raise StreaqError(ignored()[0])

    def tracing(self) -> TracerProvider | None:
        """None when no traces are to be sent."""
        found = self._exporters(TRACES, self._default_for_traces(), _span_exporter)
        if not found:
            return None
        return self._attempt(TRACES, lambda: _tracer_provider(found, self._environ))

    def meters(self) -> MeterProvider | None:
        """None when no metrics are to be sent."""
        found = self._exporters(METRICS, NONE, _metric_exporter)
        if not found:
            return None
        return self._attempt(METRICS, lambda: _meter_provider(found, self._environ))

    def _default_for_traces(self) -> str:
        """A variable about metrics alone is no wish for traces."""
        is_wished = (
            not self._lenient
            or any(self._environ.get(name) for name in _ENDPOINTS)
            or OTLP in _names(METRICS, self._environ, NONE)
        )
        return OTLP if is_wished else NONE

    def _exporters(
        self, signal: str, default: str, make: Callable[[str, Mapping[str, str]], T]
    ) -> list[T]:
        names = _names(signal, self._environ, default)
        if signal == METRICS and PROMETHEUS in names:
            names.remove(PROMETHEUS)
            logger.info(SERVED)
        usable = self._attempt(signal, lambda: _checked(names, signal, self._environ))
        made = [
            self._attempt(signal, lambda name=name: make(name, self._environ))
            for name in usable or ()
        ]
        return [exporter for exporter in made if exporter is not None]

    def _attempt(self, signal: str, make: Callable[[], T]) -> T | None:
        """What ``make`` makes; None, after a warning, when it cannot and need not."""
        try:
            return make()
        except StreaqError as e:
            problem = e
        except Exception as e:  # noqa: BLE001 - whatever an SDK raises is about its variables
            problem = StreaqError(
                f"OpenTelemetry refuses its variables for {signal.lower()}: {one_line(e)}"
            )
        if not self._lenient:
            raise problem
        logger.warning("%s No %s are sent that way.", problem, signal.lower())
        return None


def _checked(names: list[str], signal: str, environ: Mapping[str, str]) -> list[str]:
    """The names again, once the other variables are known to be such as the SDK can use."""
    if names:
        check_numbers(signal, environ)
    if names and signal == TRACES:
        check_sampler(environ)
    return names


def _names(signal: str, environ: Mapping[str, str], default: str) -> list[str]:
    """The exporters that are asked for."""
    given = environ.get(f"OTEL_{signal}_EXPORTER", "").split(",")
    names = dict.fromkeys(name.strip().lower() for name in given if name.strip())
    return [name for name in names or (default,) if name != NONE]


def _resource(environ: Mapping[str, str]) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create({} if named else {SERVICE_NAME: DEFAULT_SERVICE})


def _tracer_provider(
    exporters: Sequence[SpanExporter], environ: Mapping[str, str]
) -> TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=_resource(environ))
    for exporter in exporters:
        processor = BatchSpanProcessor(exporter, max_export_batch_size=_batch_size(environ))
        provider.add_span_processor(processor)
    return provider


def _batch_size(environ: Mapping[str, str]) -> int | None:
    """None leaves it to the SDK, which refuses a queue that is smaller than its default batch."""
    queue, batch = (environ.get(name, "").strip() for name in (QUEUE_SIZE, BATCH_SIZE))
    if queue and batch and int(batch) > int(queue):
        raise StreaqError(f"{BATCH_SIZE}={batch!r}: it is at most {QUEUE_SIZE}, {queue}.")
    return min(int(queue), DEFAULT_BATCH) if queue and not batch else None


def _meter_provider(
    exporters: Sequence[MetricExporter], environ: Mapping[str, str]
) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers = [PeriodicExportingMetricReader(exporter) for exporter in exporters]
    return MeterProvider(metric_readers=readers, resource=_resource(environ))


def _span_exporter(name: str, environ: Mapping[str, str]) -> SpanExporter:
    if name == CONSOLE:
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    protocol = _protocol(TRACES, name, environ)
    try:
        if protocol == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        else:
            from streaq.telemetry.otlp_fast import FastSpanExporter as OTLPSpanExporter
    except ImportError as e:
        raise StreaqError(MISSING) from e
    return OTLPSpanExporter()


def _metric_exporter(name: str, environ: Mapping[str, str]) -> MetricExporter:
    if name == CONSOLE:
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

        return ConsoleMetricExporter()
    protocol = _protocol(METRICS, name, environ)
    try:
        if protocol == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError as e:
        raise StreaqError(MISSING) from e
    return OTLPMetricExporter()


def _protocol(signal: str, exporter: str, environ: Mapping[str, str]) -> str:
    """How to speak to a collector, which is the one exporter left that is known."""
    if exporter != OTLP:
        raise StreaqError(
            f"OTEL_{signal}_EXPORTER={exporter!r}: streaq can send to otlp, console or none."
        )
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        value = environ.get(name, "").strip()
        if value and value not in (GRPC, HTTP):
            raise StreaqError(f"{name}={value!r}: it is {GRPC} or {HTTP}.")
        if value:
            return value
    return HTTP
