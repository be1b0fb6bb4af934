"""A light span is the SDK's in all that can be seen, whatever is done with it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
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

from streaq.telemetry import light_span
from streaq.telemetry.light_span import LightSpan, Shared, Values
from streaq.telemetry.propagation import Place
from streaq.telemetry.span_maker import SpanMaker

NAME = "process charge"
SHARED: Values = {"messaging.system": "streaq", "streaq.task.name": "charge"}
OWN: Values = {"messaging.message.id": "ab12", "streaq.task.try": 1}
OTHER = SpanContext(0xA1 << 100, 0xB2, is_remote=True, trace_flags=TraceFlags(1))
PARENTS: dict[str, SpanContext | None] = {
    "none": None,
    "sampled": OTHER,
    "not sampled": SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(0)),
    "random": SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(3)),
    "here": SpanContext(5, 6, is_remote=False, trace_flags=TraceFlags(1)),
    "with state": SpanContext(5, 6, True, TraceFlags(1), TraceState([("a", "b")])),
}


class Numbered(RandomIdGenerator):
    """Ids in order, so that two providers make the same ones."""

    def __init__(self) -> None:
        self._next = 0

    def generate_span_id(self) -> int:
        self._next += 1
        return self._next

    def generate_trace_id(self) -> int:
        self._next += 1
        return self._next << 64 | self._next


class Seen(SpanProcessor):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.said.append(("start", span.name))
        span.set_attribute("by.processor", "yes")

    def _on_ending(self, span: Span) -> None:
        self.said.append(("ending", span.name))

    def on_end(self, span: ReadableSpan) -> None:
        self.said.append(("end", span.name))


class Bench:
    """A provider, and a maker of its spans."""

    def __init__(self, *, light: bool = True, see: bool = False, **provider: Any) -> None:
        self.exporter = InMemorySpanExporter()
        provider.setdefault("id_generator", Numbered())
        provider.setdefault("sampler", DEFAULT_ON)
        provider.setdefault("resource", Resource({"service.name": "shop"}))
        self.provider = TracerProvider(shutdown_on_exit=False, **provider)
        self.seen = Seen()
        if see:
            self.provider.add_span_processor(self.seen)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("streaq", "1.0")
        self.maker = SpanMaker(self.tracer, SpanKind.CONSUMER)
        self._light = light

    def start(
        self, parent: SpanContext | None = None, links: Sequence[Link] = (), start_ns: int = 5
    ) -> trace.Span:
        context = Context()
        links = [
            Link(link.context, link.attributes) for link in links
        ]  # the SDK cuts those it gets
        if parent is not None:
            context = trace.set_span_in_context(NonRecordingSpan(parent), context)
        if self._light:
            return self.maker.start(NAME, Place(context, links), Shared(SHARED), {**OWN}, start_ns)
        return self.tracer.start_span(
            NAME, context, SpanKind.CONSUMER, {**SHARED, **OWN}, links, start_ns
        )

    def run(self, act: Callable[[trace.Span], object], **start: Any) -> list[dict[str, Any]]:
        """All that can be seen of a span that was acted on and ended, while it ran and after."""
        span = self.start(**start)
        act(span)
        found = [] if not isinstance(span, ReadableSpan) else [as_data(span)]
        recording = [span.is_recording()]
        span.end(9)
        recording.append(span.is_recording())
        found += map(as_data, self.exporter.get_finished_spans())
        context = span.get_span_context()
        return [*found, {"recording": recording, "context": tuple(context)}]


def as_data(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    otlp = "" if span.end_time is None else encode_spans([span]).SerializeToString().hex()
    return {
        **json.loads(span.to_json()),
        "attributes": dict(span.attributes or {}),
        "links": [(tuple(link.context), dict(link.attributes or {})) for link in span.links],
        "events": [(event.name, sorted(event.attributes or {})) for event in span.events],
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "parent": span.parent and tuple(span.parent),
        "status": (span.status.status_code, span.status.description),
        "scope": span.instrumentation_scope,
        "otlp": otlp if not span.events else "",  # events have times of their own
    }


def same(
    act: Callable[[trace.Span], object], *, provider: Mapping[str, Any] = {}, **start: Any
) -> None:
    ours = Bench(**provider).run(act, **start)
    assert ours == Bench(light=False, **provider).run(act, **start)


def leave_alone(_: trace.Span) -> None:
    pass


def refuse(span: trace.Span) -> None:
    span.record_exception(KeyError("sku"))
    span.set_status(Status(StatusCode.ERROR, "no"))


def overfill(span: trace.Span) -> None:
    for i in range(200):
        span.set_attribute(f"a{i}", i)
        span.add_event(f"e{i}")
        span.add_link(OTHER)


ACTS: dict[str, Callable[[trace.Span], object]] = {
    "nothing": leave_alone,
    "attribute": lambda span: span.set_attribute("order.id", 7),
    "attributes": lambda span: span.set_attributes({"a": [1, 2], "streaq.task.try": 2}),
    "bad attribute": lambda span: span.set_attribute("bad", object()),  # pyright: ignore[reportArgumentType]
    "event": lambda span: span.add_event("paid", {"cents": 5}),
    "link": lambda span: span.add_link(OTHER, {"why": "this"}),
    "name": lambda span: span.update_name("another"),
    "ok": lambda span: span.set_status(StatusCode.OK),
    "failure": refuse,
    "too much": overfill,
    "ended twice": lambda span: span.end(8),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_what_is_done_to_it(act: Callable[[trace.Span], object]) -> None:
    same(act)
    same(act, links=[Link(OTHER, {"streaq.link": "producer"})])


@pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS)
@pytest.mark.parametrize(
    "sampler",
    [
        ALWAYS_ON,
        ALWAYS_OFF,
        DEFAULT_ON,
        DEFAULT_OFF,
        TraceIdRatioBased(0.5),
        ParentBased(ALWAYS_ON),
    ],
    ids=lambda sampler: sampler.get_description()[:24],
)
def test_samplers_and_parents(sampler: Sampler, parent: SpanContext | None) -> None:
    same(leave_alone, provider={"sampler": sampler}, parent=parent)


class Picky(Sampler):
    """Decides as it is told, and adds to the attributes and the state."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        assert (name, kind, dict(attributes)) == (NAME, SpanKind.CONSUMER, {**SHARED, **OWN})
        state = TraceState([("seen", "here")])
        return SamplingResult(self._decision, {**attributes, "sampled.by": "me"}, state)

    def get_description(self) -> str:
        return "Picky"


@pytest.mark.parametrize("decision", Decision)
def test_a_sampler_of_ones_own(decision: Decision) -> None:
    # The probes must not reach it, or its assertion would fail.
    same(leave_alone, provider={"sampler": Picky(decision)})


def test_a_resource_that_is_found_out_later() -> None:
    bench = Bench()
    bench.start().end()
    later = Resource({"service.name": "late"})
    bench.tracer.resource = later
    bench.start().end()
    found = [span.resource for span in bench.exporter.get_finished_spans()]
    assert [dict(r.attributes)["service.name"] for r in found] == ["shop", "late"]


def test_processors_are_told_and_may_write() -> None:
    ours, theirs = Bench(see=True), Bench(see=True, light=False)
    assert ours.run(leave_alone) == theirs.run(leave_alone)
    assert ours.seen.said == theirs.seen.said == [("start", NAME), ("ending", NAME), ("end", NAME)]


def test_an_ended_one_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    span = bench.start()
    span.end(9)
    [before] = map(as_data, bench.exporter.get_finished_spans())
    with caplog.at_level(logging.WARNING):
        assert isinstance(span, LightSpan)
        span.note({"late": "yes"})
        span.set_attribute("late", "yes")
        span.add_event("late")
        span.set_status(StatusCode.ERROR)
        span.end(10)
    assert [as_data(s) for s in bench.exporter.get_finished_spans()] == [before]
    assert len(caplog.records) == 5


def test_a_thread_that_writes_while_it_ends_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync task that was given up goes on in its thread, and may be in the middle of it."""
    bench = Bench()
    span = bench.start()
    assert isinstance(span, LightSpan)
    ends = threading.Thread(target=lambda: (span.note({"outcome": "failed"}), span.end(9)))
    make = light_span.BoundedAttributes

    def make_while_it_ends(*args: Any, **options: Any) -> Any:
        ends.start()
        ends.join(0.05)
        return make(*args, **options)

    monkeypatch.setattr(light_span, "BoundedAttributes", make_while_it_ends)
    span.set_attribute("from.thread", 1)
    ends.join()
    [ended] = bench.exporter.get_finished_spans()
    assert dict(ended.attributes or {}) == {**SHARED, **OWN, "from.thread": 1, "outcome": "failed"}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_it_has_nothing_else_that_the_sdks_has_not(copied: Callable[[Any], Any]) -> None:
    span = Bench().start()
    with pytest.raises(AttributeError, match="no attribute 'made_up'"):
        span.made_up  # type: ignore[attr-defined] # noqa: B018
    with contextlib.suppress(TypeError):  # a lock cannot be copied, here as there
        assert copied(span).get_span_context() == span.get_span_context()


def test_notes_are_attributes_before_and_after_the_first_other_one() -> None:
    bench = Bench()
    span = bench.start()
    assert isinstance(span, LightSpan)
    span.note({"a": 1})
    assert span.is_plain
    span.set_attribute("b", 2)
    assert not span.is_plain
    span.note({"c": 3})
    span.end()
    [ended] = bench.exporter.get_finished_spans()
    assert dict(ended.attributes or {}) == {**SHARED, **OWN, "a": 1, "b": 2, "c": 3}


def test_no_span_is_made_that_anybody_sees() -> None:
    bench = Bench(see=True)
    SpanMaker(bench.tracer, SpanKind.CONSUMER)
    assert bench.seen.said == []


def test_many_links_are_for_the_sdk_to_count() -> None:
    links = [Link(OTHER, {"n": i}) for i in range(130)]
    same(leave_alone, links=links)
    assert type(Bench().start(links=links)) is not LightSpan
    assert type(Bench().start(links=links[:16])) is LightSpan


@pytest.mark.parametrize(
    "limits",
    [{"max_span_attributes": 3}, {"max_span_attribute_length": 4}, {"max_attribute_length": 4},
     {"max_attribute_length": 4, "max_span_attribute_length": SpanLimits.UNSET}, {"max_links": 0},
     {"max_links": 1}, {"max_link_attributes": 0}],
    ids=str,
)  # fmt: skip
def test_tight_limits_are_for_the_sdk_to_keep(limits: dict[str, int]) -> None:
    provider = {"span_limits": SpanLimits(**limits)}
    assert type(Bench(**provider).start()) is not LightSpan
    links = [Link(OTHER, {"streaq.link": "producer"}), Link(OTHER)]
    same(leave_alone, provider=provider, links=links)


def test_an_sdk_that_counts_its_spans_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    assert type(Bench().start()) is not LightSpan


def test_a_tracer_that_is_not_the_sdks_is_asked() -> None:
    class Own(SdkTracer):
        pass

    bench = Bench()
    bench.tracer.__class__ = Own
    span = SpanMaker(bench.tracer, SpanKind.CONSUMER).start(
        NAME, Place(Context(), ()), Shared(SHARED), {**OWN}
    )
    assert type(span) is not LightSpan


@pytest.mark.parametrize("difference", ["new", "of each"])
def test_an_sdk_whose_spans_have_more_inside_makes_them(
    monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    """A field that all share is copied; one that differs is not understood."""
    start = Span.start

    def and_more(self: Any, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        self._more = object() if difference == "of each" else None

    monkeypatch.setattr(Span, "start", and_more)
    span = Bench().start()
    assert (type(span) is LightSpan) == (difference == "new")
    assert hasattr(span, "_more")
