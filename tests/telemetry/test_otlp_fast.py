"""The fast encoder says the same as the SDK's own."""

from __future__ import annotations

from typing import Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from streaq.hooks import Complaints
from streaq.telemetry import otlp_fast
from streaq.telemetry.otlp_fast import FastSpanExporter, encode, encode_span

REMOTE = SpanContext(0xA1 << 100, 0xB2, is_remote=True, trace_flags=TraceFlags(1))
STATEFUL = SpanContext(1 << 127, 1 << 63, True, TraceFlags(1), TraceState([("a", "b")]))


class Bench:
    """Makes spans, with what a test asks for."""

    def __init__(self, **provider: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**provider)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("streaq", "1.0")

    def span(self, parent: SpanContext | None = None, **options: Any) -> ReadableSpan:
        context = trace.set_span_in_context(NonRecordingSpan(parent)) if parent else None
        span = self.tracer.start_span(options.pop("name", "process t"), context, **options)
        span.end()
        return self.exporter.get_finished_spans()[-1]


def read(spans: list[ReadableSpan]) -> list[dict[str, Any]]:
    """What a collector reads, of both encoders."""
    from google.protobuf.json_format import MessageToDict

    return [
        MessageToDict(ExportTraceServiceRequest.FromString(raw))
        for raw in (encode(spans), encode_spans(spans).SerializeToString())
    ]


def same(*spans: ReadableSpan) -> None:
    ours, theirs = read(list(spans))
    assert ours == theirs


PLAIN: dict[str, dict[str, Any]] = {
    "bare": {},
    "long name": {"name": "é" * 100, "kind": SpanKind.CONSUMER},
    "remote parent": {"parent": REMOTE, "kind": SpanKind.PRODUCER},
    "parent here": {"parent": SpanContext(5, 6, is_remote=False, trace_flags=TraceFlags(1))},
    "texts": {"attributes": {"s": "text", "empty": "", "long": "x" * 200, "b": "ü€𝄞"}},
    "truths": {"attributes": {"one": 1, "true": True, "false": False, "zero": 0}},
    "numbers": {
        "attributes": {"minus": -1, "big": 2**62, "small": -(2**62), "127": 127, "128": 128}
    },
    "links": {"links": [Link(REMOTE, {"streaq.link": "producer"}), Link(REMOTE)]},
}
OTHER: dict[str, dict[str, Any]] = {
    "float": {"attributes": {"float": 1.5}},
    "half a character": {"attributes": {"file": "caf\udce9", "good": 1}},
    "huge number": {"attributes": {"huge": 2**63, "low": -(2**63) - 1, "good": 1}},
    "edges": {"attributes": {"most": 2**63 - 1, "least": -(2**63)}},
    "list": {"attributes": {"list": ["a", "b"]}},
    "link with a float": {"links": [Link(REMOTE, {"weight": 0.5})]},
    "parent with state": {"parent": STATEFUL},
}
ALL = {**PLAIN, **OTHER}


@pytest.mark.parametrize("options", ALL.values(), ids=ALL.keys())
def test_it_says_the_same(options: dict[str, Any]) -> None:
    same(Bench().span(**options))


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN.keys())
def test_plain_spans_are_encoded_here(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    span = Bench().span(**options)
    monkeypatch.delattr(otlp_fast, "encode_spans")
    assert encode_span(span)


def test_errors_and_events() -> None:
    bench = Bench()
    span = bench.tracer.start_span("process t")
    span.record_exception(KeyError("sku"))
    span.set_status(Status(StatusCode.ERROR, "no"))
    span.end()
    quiet = bench.tracer.start_span("process t")
    quiet.set_status(Status(StatusCode.OK))
    quiet.end()
    same(*bench.exporter.get_finished_spans())


def test_what_was_dropped_is_counted() -> None:
    limits = SpanLimits(max_span_attributes=1, max_links=1, max_link_attributes=1)
    links = [Link(REMOTE, {"a": 1, "b": 2}), Link(REMOTE)]
    same(Bench(span_limits=limits).span(attributes={"a": 1, "b": 2}, links=links))


def test_resources_and_scopes_stay_apart() -> None:
    one = Bench(resource=Resource.create({"service.name": "shop"}))
    other = Bench(resource=Resource.create({"service.name": "mail"}))
    spans = [one.span(), other.span(), one.span(name="again")]
    one.tracer = one.provider.get_tracer("mine")
    spans.append(one.span(name="mine"))
    ours, theirs = read(spans)
    assert flat(ours) == flat(theirs)
    assert len(flat(ours)) == 4


def flat(message: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted(
        (str(resource["resource"]), str(scope["scope"]), str(span))
        for resource in message["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    )


def read_names(raw: bytes) -> list[str]:
    request = ExportTraceServiceRequest.FromString(raw)
    return [
        span.name
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Client:
    """Stands for the exporter's own, which speaks HTTP."""

    def __init__(self, *, success: bool) -> None:
        self.success = success
        self.sent: list[bytes] = []

    def export(self, raw: bytes) -> Any:
        self.sent.append(raw)
        return self

    def shutdown(self) -> None: ...


def exporter_to(client: Client, **options: Any) -> FastSpanExporter:
    made: Any = FastSpanExporter(endpoint="http://127.0.0.1:1/v1/traces", **options)
    made._client = client
    return cast("FastSpanExporter", made)


def broken(bench: Bench) -> list[ReadableSpan]:
    """A user's own spans, which no encoder takes."""
    named = bench.span(name="caf\udce9")
    failed = bench.tracer.start_span("import")
    failed.set_status(Status(StatusCode.ERROR, "caf\udce9"))
    failed.end()
    listed = bench.span(name=["no", "name"])
    return [named, bench.exporter.get_finished_spans()[-2], listed]


@pytest.mark.parametrize("at", ["first", "between", "last"])
def test_a_span_that_cannot_be_encoded_does_not_take_the_others_along(
    at: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_fast, "_complaints", Complaints())
    bench, client = Bench(), Client(success=True)
    bad = broken(bench)
    good = [bench.span(name="one"), bench.span(name="two", attributes={"float": 1.5})]
    spans = {"first": bad + good, "between": [good[0], *bad, good[1]], "last": good + bad}[at]
    exporter = exporter_to(client)
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert [read_names(raw) for raw in client.sent] == [["one", "two"]] * 2
    lines = [record for record in caplog.records if record.name == "streaq"]
    assert len(lines) == 2, "one for each class of exception, however often it comes"
    assert all("could not be encoded" in line.getMessage() for line in lines)


def test_a_batch_of_nothing_else_sends_nothing() -> None:
    client = Client(success=True)
    assert exporter_to(client).export(broken(Bench())) is SpanExportResult.FAILURE
    assert client.sent == []


def test_a_span_without_a_name_is_sent_as_the_sdk_sends_it() -> None:
    same(Bench().span(name=None))


def test_nothing_that_is_raised_gets_out_of_the_exporter(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_fast, "_complaints", Complaints())
    client: Any = Client(success=True)
    client.export = None
    assert exporter_to(client).export([Bench().span()]) is SpanExportResult.FAILURE
    [line] = [record for record in caplog.records if record.name == "streaq"]
    assert "could not be exported" in line.getMessage()


@pytest.mark.parametrize("success", [True, False])
def test_the_exporter_sends_it(success: bool) -> None:
    exporter: Any = FastSpanExporter(endpoint="http://127.0.0.1:1/v1/traces")
    assert hasattr(exporter, "_client"), "the SDK changed inside: the exporter is slow again"
    exporter._client = client = Client(success=success)
    span = Bench().span()
    expected = SpanExportResult.SUCCESS if success else SpanExportResult.FAILURE
    assert exporter.export([span]) is expected
    assert client.sent == [encode([span])]
    exporter.shutdown()
    assert exporter.export([span]) is SpanExportResult.FAILURE


def test_with_another_sdk_it_does_as_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def export(self: Any, spans: Any) -> SpanExportResult:
        seen.append(len(spans))
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    exporter: Any = FastSpanExporter(endpoint="http://127.0.0.1:1/v1/traces")
    del exporter._client
    assert exporter.export([Bench().span()]) is SpanExportResult.SUCCESS
    assert seen == [1]


def test_a_batch_that_is_too_large_is_refused_as_the_sdk_refuses_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Client(success=True)
    exporter = exporter_to(client, max_request_size=1_000)
    bench = Bench()
    assert exporter.export([bench.span()]) is SpanExportResult.SUCCESS
    long = [bench.span(attributes={"text": "x" * 1_000})]
    assert exporter.export(long) is SpanExportResult.FAILURE
    assert len(client.sent) == 1, "the one before"
    assert "exceeds max_request_size 1000" in caplog.text
    assert exporter_to(client, max_request_size=0).export(long) is SpanExportResult.SUCCESS


def test_an_sdk_that_counts_what_it_exports_counts_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    reader = InMemoryMetricReader()
    client = Client(success=True)
    exporter = exporter_to(client, meter_provider=MeterProvider(metric_readers=[reader]))
    span = Bench().span()
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert read_names(client.sent[0]) == [span.name]
    data: Any = reader.get_metrics_data()
    counted = {
        metric.name: metric.data.data_points[0].value
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name.startswith("otel.sdk.exporter.span")
    }
    assert counted["otel.sdk.exporter.span.exported"] == 1
