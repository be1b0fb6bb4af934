"""The SDK as the standard variables say."""

from __future__ import annotations

import builtins
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from streaq import Worker
from streaq.telemetry import Telemetry, otlp
from streaq.telemetry.otlp import Otlp, configure_otlp, is_wanted
from streaq.types import StreaqError

HTTP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture(autouse=True)
def providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is set as the process' providers, without setting it for the tests that follow."""
    seen: list[Any] = []
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(trace, "set_tracer_provider", seen.append)
    monkeypatch.setattr(metrics, "set_meter_provider", seen.append)
    yield seen
    for provider in seen:
        provider.shutdown()


def exporter_of(provider: Any) -> Any:
    [processor] = provider._active_span_processor._span_processors
    return processor.span_exporter


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        (HTTP, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_SERVICE_NAME": "shop"}, False),
    ],
)
def test_when_it_is_wanted(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) is wanted


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, HttpExporter),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, HttpExporter),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, GrpcExporter),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            HttpExporter,
        ),
        ({"OTEL_TRACES_EXPORTER": "console"}, ConsoleSpanExporter),
    ],
)
def test_the_exporter(environ: dict[str, str], kind: type, providers: list[Any]) -> None:
    configured = configure_otlp(environ)
    assert isinstance(exporter_of(configured.tracer_provider), kind)
    assert providers == [configured.tracer_provider]
    assert configured.meter_provider is None


def test_none_is_none(providers: list[Any]) -> None:
    assert configure_otlp({"OTEL_TRACES_EXPORTER": "none"}) == Otlp(None, None)
    assert providers == []


def test_the_applications_own_provider_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, providers: list[Any]
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    assert configure_otlp(HTTP) == Otlp(None, None)
    assert providers == []


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "streaq"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=store,x=y"}, "store"),
    ],
)
def test_the_service_name(
    environ: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    provider = configure_otlp(environ).tracer_provider
    assert provider is not None
    assert provider.resource.attributes["service.name"] == name


def test_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    provider = configure_otlp({}).tracer_provider
    assert provider is not None
    assert "AlwaysOff" in provider.sampler.get_description()


def test_metrics_go_too_when_asked_for(providers: list[Any]) -> None:
    configured = configure_otlp({"OTEL_METRICS_EXPORTER": "otlp"})
    assert configured.meter_provider in providers
    worker: Worker[Any] = Worker()
    configured.apply(worker)
    assert isinstance(worker.telemetry, Telemetry)
    assert worker.telemetry.meter_provider is configured.meter_provider
    off: Worker[Any] = Worker(telemetry=False)
    configured.apply(off)
    assert off.telemetry is False


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({"OTEL_METRICS_EXPORTER": "statsd"}, "statsd"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http/json"),
    ],
)
def test_what_cannot_be_is_said(environ: dict[str, str], word: str) -> None:
    with pytest.raises(StreaqError, match=word):
        configure_otlp(environ)


def test_a_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_exporters(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "streaq.telemetry.otlp_fast", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_exporters)
    with pytest.raises(StreaqError, match=r"pip install 'streaq\[otlp\]'"):
        configure_otlp({})


def test_a_collector_that_is_away_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    configured = configure_otlp(HTTP)
    assert configured.tracer_provider is not None
    exporter = exporter_of(configured.tracer_provider)
    go = threading.Event()
    exporter.export = lambda spans: go.wait(20)
    configured.tracer_provider.get_tracer("t").start_span("s").end()
    began = time.monotonic()
    configured.shutdown(timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert "no collector?" in caplog.text
    go.set()


def test_what_is_left_is_sent() -> None:
    configured = configure_otlp(HTTP)
    assert configured.tracer_provider is not None
    sent: list[str] = []
    exporter = exporter_of(configured.tracer_provider)
    exporter.export = lambda spans: sent.extend(span.name for span in spans)
    configured.tracer_provider.get_tracer("t").start_span("s").end()
    configured.shutdown()
    assert sent == ["s"]


def test_shutting_down_with_nothing_to_shut_down() -> None:
    Otlp(None, None).shutdown()
    assert otlp.MISSING
