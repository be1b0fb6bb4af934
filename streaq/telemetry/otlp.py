"""Sends traces (and, if asked, metrics) to a collector, as the standard ``OTEL_*`` variables say.

``streaq run`` calls ``configure_otlp`` in every worker process before the worker starts; the
exporters come from the ``otlp`` extra.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace

from streaq.telemetry.config import Telemetry
from streaq.types import StreaqError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from streaq.worker import Worker

logger = logging.getLogger("streaq")

DEFAULT_SERVICE = "streaq"
SHUTDOWN_S = 5.0
GRPC, HTTP = "grpc", "http/protobuf"
MISSING = "Sending OTLP needs the 'otlp' extra: pip install 'streaq[otlp]'."

_WANTED_BY = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
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
        if settings.meter_provider is None:
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


def configure_otlp(environ: Mapping[str, str] | None = None) -> Otlp:
    """Set up the SDK for this process: service name, resource, sampler, exporters.

    The variables that the SDK and its exporters read themselves (``OTEL_SERVICE_NAME``,
    ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, endpoints, headers,
    certificates, timeouts) all work. Here are read ``OTEL_TRACES_EXPORTER`` (otlp, console or
    none; otlp by default), ``OTEL_METRICS_EXPORTER`` (the same; none by default, since Prometheus
    scrapes them) and ``OTEL_EXPORTER_OTLP_PROTOCOL`` (grpc or http/protobuf, the default). A
    provider that the application has set already is left alone.

    :param environ: the variables to read here; those of the process by default.
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
    tracing = meters = None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return Otlp(None, None)
    if (exporter := _span_exporter(environ)) is not None:
        tracing = _tracer_provider(exporter, environ)
        trace.set_tracer_provider(tracing)
    if (metric_exporter := _metric_exporter(environ)) is not None:
        meters = _meter_provider(metric_exporter, environ)
        metrics.set_meter_provider(meters)
    return Otlp(tracing, meters)


def _resource(environ: Mapping[str, str]) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create({} if named else {SERVICE_NAME: DEFAULT_SERVICE})


def _tracer_provider(exporter: SpanExporter, environ: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=_resource(environ))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _meter_provider(exporter: MetricExporter, environ: Mapping[str, str]) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(exporter)
    return MeterProvider(metric_readers=[reader], resource=_resource(environ))


def _span_exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    wanted = _wanted(environ, "TRACES", "otlp")
    if wanted == "none":
        return None
    if wanted == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    try:
        if _protocol(environ, "TRACES") == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        else:
            from streaq.telemetry.otlp_fast import FastSpanExporter as OTLPSpanExporter
    except ImportError as e:
        raise StreaqError(MISSING) from e
    return OTLPSpanExporter()


def _metric_exporter(environ: Mapping[str, str]) -> MetricExporter | None:
    wanted = _wanted(environ, "METRICS", "none")
    if wanted == "none":
        return None
    if wanted == "console":
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

        return ConsoleMetricExporter()
    try:
        if _protocol(environ, "METRICS") == GRPC:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError as e:
        raise StreaqError(MISSING) from e
    return OTLPMetricExporter()


def _wanted(environ: Mapping[str, str], signal: str, default: str) -> str:
    name = f"OTEL_{signal}_EXPORTER"
    value = environ.get(name, "").strip() or default
    if value not in ("otlp", "console", "none"):
        raise StreaqError(f"{name}={value!r}: streaq can send to otlp, console or none.")
    return value


def _protocol(environ: Mapping[str, str], signal: str) -> str:
    specific, general = (
        f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    )
    value = environ.get(specific) or environ.get(general) or HTTP
    if value not in (GRPC, HTTP):
        raise StreaqError(f"{general}={value!r}: it is {GRPC} or {HTTP}.")
    return value
