"""Spans from hand-made events: names, kinds, attributes, status. Every edge end to end is in
``test_trace_edges``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streaq.hooks import Attempt, Complaints, Dispatcher, Ending, Enqueue, Publish
from streaq.telemetry import names, propagation
from streaq.telemetry.propagation import LINK_HEADER, Rules, parse, traceparent
from streaq.telemetry.scope import ScopeHook
from streaq.telemetry.tracing import Tracing, TracingHook
from streaq.types import StreaqCancelled, StreaqRetry
from tests.support import instructions
from tests.telemetry.events import attempt, ending, enqueue, raised

KNOWN = {attribute.name for attribute in names.ATTRIBUTES}
SPAN_ATTRIBUTES = {span.name.split()[0]: set(span.attributes) for span in names.SPANS}


def is_unsampled(text: str) -> bool:
    context = parse(text)
    return context is not None and not context.trace_flags.sampled


class Bench:
    """The tracing hooks over an in-memory exporter."""

    def __init__(self, rules: Rules | None = None, sampler: Any = None, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.hook = TracingHook(
            Tracing(self.provider),
            rules or Rules(),
            queue="shop",
            client_id="w1",
            server_address=("redis.test", 6379),
            **options,
        )
        self.dispatcher = Dispatcher([self.hook, ScopeHook(self.hook, None)])

    @staticmethod
    def call(*tasks: Enqueue) -> Publish:
        return Publish("shop", "w1", tasks)

    def publish(self, *tasks: Enqueue) -> None:
        dispatcher = self.dispatcher
        with dispatcher.around(dispatcher.around_publish, self.call(*tasks)):
            for task in tasks:
                dispatcher.emit(dispatcher.on_enqueue, task)

    def run(self, a: Attempt, *, body: Any = None, **end: Any) -> Ending:
        dispatcher = self.dispatcher
        with dispatcher.around(dispatcher.around_attempt, a):
            if body is not None:
                body()
            a.mark.end = ending(a, **end)
        assert a.mark.end is not None
        return a.mark.end

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        spans = self.exporter.get_finished_spans()
        for span in spans:
            if span.kind is not SpanKind.INTERNAL:
                assert set(span.attributes or {}) <= SPAN_ATTRIBUTES[span.name.split()[0]]
        return spans

    def only(self) -> ReadableSpan:
        [span] = self.spans
        return span


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_one_task_sent(bench: Bench) -> None:
    task = enqueue()
    bench.publish(task)
    span = bench.only()
    assert (span.name, span.kind, span.parent) == ("send charge", SpanKind.PRODUCER, None)
    assert dict(span.attributes or {}) == {
        "messaging.system": "streaq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "shop",
        "messaging.client.id": "w1",
        "messaging.message.id": "id-1",
        "server.address": "redis.test",
        "server.port": 6379,
        "streaq.task.name": "charge",
        "streaq.task.priority": "normal",
        "streaq.task.kind": "immediate",
    }
    assert span.status.status_code is StatusCode.UNSET
    context = span.context
    assert context is not None
    assert task.headers == {"traceparent": traceparent(context)}


def test_a_send_is_a_child_of_the_callers_span(bench: Bench) -> None:
    with bench.tracer.start_as_current_span("request") as request:
        bench.publish(enqueue())
    [send, _] = bench.spans
    assert send.parent is not None
    assert send.parent.span_id == request.get_span_context().span_id


def test_a_batch_is_one_span_with_its_count(bench: Bench) -> None:
    tasks = [enqueue(task_id=str(i)) for i in range(3)]
    bench.publish(*tasks)
    span = bench.only()
    assert span.name == "send charge"
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in span.attributes
    assert len({task.headers["traceparent"] for task in tasks}) == 1


def test_a_batch_of_several_names_is_called_after_the_queue(bench: Bench) -> None:
    bench.publish(enqueue("a"), enqueue("b"))
    assert bench.only().name == "send shop"


def test_a_batch_says_what_its_tasks_have_in_common(bench: Bench) -> None:
    bench.publish(enqueue(), enqueue())
    bench.publish(enqueue(), enqueue(priority="low"))
    bench.publish(enqueue(), enqueue(kind="delayed"))
    bench.publish(enqueue("a"), enqueue("b"))
    said = [
        {
            name.rpartition(".")[2]: value
            for name, value in (span.attributes or {}).items()
            if "task" in name
        }
        for span in bench.spans
    ]
    assert said == [
        {"name": "charge", "priority": "normal", "kind": "immediate"},
        {"name": "charge", "kind": "immediate"},
        {"name": "charge", "priority": "normal"},
        {"priority": "normal", "kind": "immediate"},
    ]


def test_a_sampler_knows_the_task_of_a_batch() -> None:
    class NotThese(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            attributes = kwargs.get("attributes") or args[4]
            is_theirs = attributes.get("streaq.task.name") == "chatty"
            return SamplingResult(Decision.DROP if is_theirs else Decision.RECORD_AND_SAMPLE)

        def get_description(self) -> str:
            return "not these"

    bench = Bench(sampler=NotThese())
    bench.publish(enqueue("chatty"), enqueue("chatty"))
    bench.publish(enqueue("charge"), enqueue("charge"))
    assert bench.only().name == "send charge"


def test_create_spans_are_opt_in() -> None:
    bench = Bench(create_spans=True)
    tasks = [enqueue(task_id=str(i)) for i in range(2)]
    bench.publish(*tasks)
    first, second, send = bench.spans
    assert [s.name for s in bench.spans] == ["create charge", "create charge", "send charge"]
    for span, task in ((first, tasks[0]), (second, tasks[1])):
        assert span.parent is not None
        assert send.context is not None
        assert span.context is not None
        assert span.parent.span_id == send.context.span_id
        assert span.attributes is not None
        assert span.attributes["messaging.message.id"] == task.task_id
        assert set(span.attributes) == SPAN_ATTRIBUTES["create"], "no more is documented"
        assert f"{span.context.span_id:016x}" in task.headers["traceparent"]


def test_a_single_task_has_no_create_span() -> None:
    bench = Bench(create_spans=True)
    bench.publish(enqueue())
    assert bench.only().name == "send charge"


def test_a_big_batch_and_a_long_delay_ask_for_links() -> None:
    bench = Bench(Rules(link_batches_over=2))
    small, big = [enqueue(), enqueue()], [enqueue() for _ in range(3)]
    late = enqueue(delay_ms=61_000)
    bench.publish(*small)
    bench.publish(*big)
    bench.publish(late)
    assert all(LINK_HEADER not in task.headers for task in small)
    assert all(task.headers[LINK_HEADER] == "batch" for task in big)
    assert late.headers[LINK_HEADER] == "delay"


def test_nobody_sends_a_cron_jobs_task(bench: Bench) -> None:
    task = enqueue(kind="cron", fired_ms=1_000)
    bench.publish(task)
    assert bench.spans == ()
    assert task.headers == {}


def test_an_enqueue_that_fails_is_an_error(bench: Bench) -> None:
    dispatcher = bench.dispatcher
    with (
        pytest.raises(ConnectionError),
        dispatcher.around(dispatcher.around_publish, bench.call(enqueue())),
    ):
        raise ConnectionError("no route")
    span = bench.only()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ConnectionError"
    assert not trace.get_current_span().get_span_context().is_valid


class Raising(TextMapPropagator):
    """A propagator with a defect, after one that works, as a user may have set it up."""

    def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
        TraceContextTextMapPropagator().inject(carrier, context)
        raise ValueError("no header")

    def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
        raise ValueError("no context")

    @property
    def fields(self) -> set[str]:
        return set()


@pytest.fixture
def raising() -> Iterator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Raising())
    yield
    propagate.set_global_textmap(before)


@pytest.mark.parametrize("create_spans", [True, False])
def test_a_propagator_that_raises_leaves_no_span_current(
    create_spans: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baggage with half a character: the standard propagator cannot quote it."""
    monkeypatch.setattr(propagation, "_complaints", Complaints())
    bench = Bench(create_spans=create_spans)
    tasks = [enqueue(task_id=str(i)) for i in range(2)]
    token = otel_context.attach(baggage.set_baggage("file", "caf\udce9"))
    try:
        bench.publish(*tasks)
        assert not trace.get_current_span().get_span_context().is_valid
    finally:
        otel_context.detach(token)
    *created, send = bench.spans
    assert send.name == "send charge"
    assert bench.dispatcher.errors == 0
    parents = created or [send, send]
    for task, parent in zip(tasks, parents, strict=True):
        assert parent.context is not None
        assert task.headers == {"traceparent": traceparent(parent.context)}
    [line] = [record for record in caplog.records if record.name == "streaq"]
    assert "propagator" in line.getMessage()


@pytest.mark.usefixtures("raising")
def test_an_attempt_has_its_span_whatever_a_propagator_raises(bench: Bench) -> None:
    task = enqueue()
    bench.publish(task)
    a = attempt(headers={**task.headers, "tracestate": "vendor=x"})
    bench.run(a)
    send, process = bench.spans
    assert process.parent is not None
    assert send.context is not None
    assert process.parent.span_id == send.context.span_id
    assert process.parent.trace_state.get("vendor") == "x"


def test_an_attempt(bench: Bench) -> None:
    a = attempt(started_ms=1_000_250)
    bench.run(a)
    span = bench.only()
    assert (span.name, span.kind) == ("process charge", SpanKind.CONSUMER)
    assert dict(span.attributes or {}) == {
        "messaging.system": "streaq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "shop",
        "messaging.client.id": "w1",
        "messaging.consumer.group.name": "workers",
        "messaging.message.id": "id-1",
        "server.address": "redis.test",
        "server.port": 6379,
        "streaq.task.name": "charge",
        "streaq.task.priority": "normal",
        "streaq.task.kind": "immediate",
        "streaq.task.try": 1,
        "streaq.task.max_tries": 3,
        "streaq.task.queue_wait_ms": 250,
        "streaq.task.outcome": "success",
        "streaq.task.reason": "ok",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.context is not None
    assert a.mark.trace == traceparent(span.context)


def test_a_socket_has_no_port_and_no_limit_no_attribute() -> None:
    bench = Bench()
    hook = TracingHook(
        Tracing(bench.provider), Rules(), queue="q", client_id="w", server_address=("/run/s", 0)
    )
    bench.dispatcher = Dispatcher([hook, ScopeHook(hook, None)])
    bench.run(attempt(max_tries=None))
    attributes = bench.only().attributes or {}
    assert attributes["server.address"] == "/run/s"
    assert not {"server.port", "streaq.task.max_tries"} & set(attributes)


def test_the_body_runs_inside_the_span_and_its_baggage(bench: Bench) -> None:
    seen: list[Any] = []
    a = attempt(headers={"baggage": "tenant=acme"})

    def body() -> None:
        with bench.tracer.start_as_current_span("query"):
            seen.append(baggage.get_baggage("tenant"))

    bench.run(a, body=body)
    query, process = bench.spans
    assert seen == ["acme"]
    assert query.parent is not None
    assert process.context is not None
    assert query.parent.span_id == process.context.span_id
    assert not trace.get_current_span().get_span_context().is_valid, "and it is left again"


def test_failure_for_good_is_an_error_with_its_exception(bench: Bench) -> None:
    bench.run(attempt(), status="failed", reason="error", error=raised(KeyError("sku")))
    span = bench.only()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "KeyError"
    [event] = span.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "KeyError"
    assert "local-secret" not in str(event.attributes["exception.stacktrace"])


def test_an_exception_that_cannot_be_printed_is_an_error_all_the_same(bench: Bench) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise TypeError("not a word")

    bench.run(attempt(), status="failed", reason="error", error=raised(Unspeakable()))
    span = bench.only()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "(it has no text: its __str__ raised)"
    assert span.attributes is not None
    assert span.attributes["error.type"] == "Unspeakable"
    [event] = span.events
    assert event.attributes is not None
    assert str(event.attributes["exception.type"]).endswith("Unspeakable")


def test_a_retry_is_no_error_but_carries_the_exception(bench: Bench) -> None:
    bench.run(attempt(), status="retried", reason="asked", error=StreaqRetry("later"))
    span = bench.only()
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["exception"]
    assert span.attributes is not None
    assert "error.type" not in span.attributes
    assert span.attributes["streaq.task.outcome"] == "retried"


def test_an_abort_is_no_error(bench: Bench) -> None:
    bench.run(attempt(), status="aborted", reason="user", error=StreaqCancelled("stop"))
    span = bench.only()
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["error.type"] == "StreaqCancelled"


@pytest.mark.parametrize("reason", names.REFUSALS)
def test_a_refusal_is_a_span_of_no_length(bench: Bench, reason: str) -> None:
    a = attempt(started_ms=0, try_number=0, refused_ms=1_000_700)
    bench.hook.on_refuse(ending(a, "refused", reason, ValueError("no")))
    span = bench.only()
    assert span.attributes is not None
    assert span.attributes["streaq.task.queue_wait_ms"] == 700
    assert (span.name, span.kind) == ("process charge", SpanKind.CONSUMER)
    assert span.start_time == span.end_time
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == reason
    assert span.attributes["streaq.task.reason"] == reason
    assert a.mark.trace != ""


def test_an_abort_before_the_start_has_a_span_and_a_later_one_no_second(bench: Bench) -> None:
    bench.hook.on_abort(ending(attempt(started_ms=0), "aborted", "user"))
    assert bench.only().attributes["streaq.task.outcome"] == "aborted"  # type: ignore[index]
    bench.exporter.clear()
    bench.run(attempt(), status="aborted", reason="user")
    bench.hook.on_abort(ending(attempt(), "aborted", "user"))
    assert len(bench.spans) == 1


def test_sampling_is_decided_with_the_attributes_at_hand() -> None:
    seen: dict[str, Any] = {}

    class Asking(type(ALWAYS_OFF)):  # type: ignore[misc]
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            seen.update(kwargs.get("attributes") or args[4])
            return super().should_sample(*args, **kwargs)

    bench = Bench(sampler=Asking(ALWAYS_OFF._decision))
    task = enqueue()
    bench.publish(task)
    assert is_unsampled(task.headers["traceparent"]), "and passed on"
    a = attempt(headers=task.headers)
    bench.run(a)
    assert is_unsampled(a.mark.trace)
    assert bench.spans == ()
    at_start = {attribute.name for attribute in names.ATTRIBUTES if attribute.at_start}
    assert seen.keys() <= at_start
    assert seen["streaq.task.queue_wait_ms"] == 250


def test_nothing_happens_without_an_sdk() -> None:
    bench = Bench()
    hook = TracingHook(Tracing(), Rules(), queue="q", client_id="w")
    bench.dispatcher = Dispatcher([hook, ScopeHook(hook, None)])
    task, a = enqueue(), attempt()
    bench.publish(task)
    bench.run(a)
    hook.on_refuse(ending(attempt(started_ms=0), "refused", "expired"))
    assert task.headers == {}
    assert a.mark.trace == ""


def test_an_sdk_set_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("streaq.telemetry.tracing.time.monotonic", lambda: now)
    tracing = Tracing()
    assert tracing.tracer() is None
    bench = Bench()
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: bench.provider)
    assert tracing.tracer() is None, "asked ten times a second at most"
    now += 0.1
    assert tracing.tracer() is not None


def test_a_no_op_provider_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", NoOpTracerProvider)
    assert Tracing().tracer() is None


def test_without_an_sdk_it_costs_next_to_nothing() -> None:
    hook = TracingHook(Tracing(), Rules(), queue="q", client_id="w")
    a = attempt()
    assert hook.open_attempt(a) is None  # and has looked for one
    assert instructions(lambda: hook.open_attempt(a)) <= 60, "38 with Python 3.11"


def test_known_attributes_are_those_of_the_spans() -> None:
    assert set().union(*SPAN_ATTRIBUTES.values()) <= KNOWN
