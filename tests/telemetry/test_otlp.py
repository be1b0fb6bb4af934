"""The SDK as the standard variables say."""

from __future__ import annotations

import builtins
import re
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
from streaq.telemetry.otlp_fast import FastSpanExporter
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


def exporters_of(provider: Any) -> list[Any]:
    return [each.span_exporter for each in provider._active_span_processor._span_processors]


def exporter_of(provider: Any) -> Any:
    [exporter] = exporters_of(provider)
    return exporter


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


@pytest.mark.parametrize(("lenient", "level"), [(False, "WARNING"), (True, "INFO")])
def test_that_nothing_is_changed_for_the_application_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lenient: bool, level: str
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    with caplog.at_level("INFO", "streaq"):
        configure_otlp(HTTP, lenient=lenient)
    [record] = caplog.records
    assert record.levelname == level
    assert "--otlp changes nothing" in record.message


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
    for none in (False, Telemetry(metrics=False)):
        off: Worker[Any] = Worker(telemetry=none)
        configured.apply(off)
        assert off.telemetry is none


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({"OTEL_METRICS_EXPORTER": "statsd"}, "statsd"),
        ({"OTEL_TRACES_EXPORTER": "console,zipkin"}, "OTEL_TRACES_EXPORTER='zipkin'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTLP_PROTOCOL='http/json'"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http"}, "OTLP_TRACES_PROTOCOL='http'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_BSP_MAX_QUEUE_SIZE='0': it is a whole"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-1"}, "OTEL_BSP_SCHEDULE_DELAY='-1'"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "abc"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE='abc'"),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "11"},
            "BATCH_SIZE='11': it is at most OTEL_BSP_MAX_QUEUE_SIZE, 10",
        ),
        ({"OTEL_SPAN_EVENT_COUNT_LIMIT": "-4"}, "OTEL_SPAN_EVENT_COUNT_LIMIT='-4'"),
        ({"OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER='some': it is one of always_on,"),
        ({"OTEL_TRACES_SAMPLER": "always_off "}, "OTEL_TRACES_SAMPLER='always_off '"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "x"},
            "OTEL_TRACES_SAMPLER_ARG='x': it is a number from 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "ParentBased_TraceIdRatio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG='2'",
        ),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}, "OTEL_EXPORTER_OTLP_TIMEOUT='nan'"),
        (
            {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "0"},
            "OTEL_METRIC_EXPORT_INTERVAL='0': it is a number, more than 0",
        ),
    ],
)
def test_what_cannot_be_is_said(
    environ: dict[str, str], word: str, providers: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StreaqError, match=re.escape(word)):
        configure_otlp(environ)
    assert providers == [], "nothing is half done"
    wanted = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **environ}
    configure_otlp(wanted, lenient=True)
    [record] = caplog.records
    assert word in record.message
    assert record.message.endswith(
        (" No traces are sent that way.", " No metrics are sent that way.")
    )


def test_what_the_sdk_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("no such\nthing")

    monkeypatch.setattr("opentelemetry.sdk.trace.export.BatchSpanProcessor", refuse)
    with pytest.raises(StreaqError, match="refuses its variables for traces: ValueError") as caught:
        configure_otlp({})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("environ", [{}, {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ""}])
def test_a_queue_smaller_than_the_default_batch_will_do(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    assert configure_otlp({"OTEL_BSP_MAX_QUEUE_SIZE": "10", **environ}).tracer_provider


def test_several_exporters(caplog: pytest.LogCaptureFixture) -> None:
    several = {"OTEL_TRACES_EXPORTER": "otlp, Console,none,otlp"}
    found = exporters_of(configure_otlp(several).tracer_provider)
    assert [type(exporter) for exporter in found] == [FastSpanExporter, ConsoleSpanExporter]
    partly = {"OTEL_TRACES_EXPORTER": "zipkin,console"}
    kept = configure_otlp(partly, lenient=True).tracer_provider
    assert isinstance(exporter_of(kept), ConsoleSpanExporter)
    assert "OTEL_TRACES_EXPORTER='zipkin'" in caplog.text


@pytest.mark.parametrize("lenient", [False, True])
def test_prometheus_needs_no_exporter(lenient: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "streaq"):
        configured = configure_otlp({"OTEL_METRICS_EXPORTER": "prometheus"}, lenient=lenient)
    assert configured.meter_provider is None
    assert (configured.tracer_provider is None) is lenient, "metrics are no wish for traces"
    assert [(each.levelname, each.message) for each in caplog.records] == [("INFO", otlp.SERVED)]


@pytest.mark.parametrize(
    ("environ", "traces"),
    [
        (HTTP, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({"OTEL_METRICS_EXPORTER": "none"}, False),
    ],
)
def test_variables_alone_send_traces_when_they_say_where(
    environ: dict[str, str], traces: bool
) -> None:
    configured = configure_otlp(environ, lenient=True)
    assert (configured.tracer_provider is not None) is traces


def test_a_missing_extra_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without_exporters(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "streaq.telemetry.otlp_fast", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_exporters)
    with pytest.raises(StreaqError, match=r"pip install 'streaq\[otlp\]'"):
        configure_otlp({})
    assert configure_otlp(HTTP, lenient=True) == Otlp(None, None)
    assert "pip install 'streaq[otlp]'" in caplog.text


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
