"""Where an attempt's span goes: under whom, linked to whom."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from streaq.hooks import Attempt, Enqueue
from streaq.telemetry.light_span import Shared
from streaq.telemetry.propagation import (
    LINK_HEADER,
    Rules,
    headers_of,
    ids,
    link_header,
    parse,
    place,
    traceparent,
)
from streaq.telemetry.span_maker import SpanMaker
from tests.telemetry.events import attempt, enqueue

PRODUCER = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
SIBLING = "00-" + "1" * 32 + "-" + "4" * 16 + "-01"
"""Of an attempt in its producer's trace."""
PREVIOUS = "00-" + "3" * 32 + "-" + "4" * 16 + "-01"
OTHER = "00-" + "5" * 32 + "-" + "6" * 16 + "-01"


def where(e: Attempt, **rules: Any) -> tuple[str, list[tuple[str, str]]]:
    """Parent, and links with their reasons."""
    found = place(e, Rules(**rules))
    parent = trace.get_current_span(found.context).get_span_context()
    links = [(str(li.attributes["streaq.link"]), traceparent(li.context)) for li in found.links]  # type: ignore[index]
    return traceparent(parent), links


def produced(**more: Any) -> Attempt:
    headers = {"traceparent": PRODUCER, **more.pop("extra", {})}
    return attempt(headers=headers, **more)


def test_an_attempt_is_a_child_of_its_producer() -> None:
    assert where(produced()) == (PRODUCER, [])


def test_without_headers_it_is_a_root() -> None:
    assert where(attempt()) == ("", [])
    assert where(attempt(headers={"traceparent": "rubbish"})) == ("", [])


def test_a_retry_is_a_sibling_linked_to_the_attempt_before() -> None:
    e = produced(kind="retry", previous=SIBLING)
    assert where(e) == (PRODUCER, [("previous_attempt", SIBLING)])


def test_a_retry_that_waits_for_long_begins_a_trace_of_its_own() -> None:
    e = produced(kind="retry", previous=SIBLING, retry_delay_ms=60_001)
    links = [("producer", PRODUCER), ("previous_attempt", SIBLING)]
    assert where(e) == ("", links)
    assert where(e._replace(retry_delay_ms=60_000)) == (PRODUCER, links[1:])
    assert where(e, link_after_ms=100_000) == (PRODUCER, links[1:])


def test_the_tries_after_such_a_retry_go_on_with_its_trace() -> None:
    e = produced(kind="retry", previous=PREVIOUS, retry_delay_ms=1_000)
    links = [("producer", PRODUCER), ("previous_attempt", PREVIOUS)]
    assert where(e) == (PREVIOUS, links)
    assert where(e._replace(retry_delay_ms=60_001)) == ("", links)


def test_a_retry_without_producer_that_waits_for_long() -> None:
    e = attempt(kind="retry", previous=PREVIOUS, retry_delay_ms=60_001)
    assert where(e) == ("", [("previous_attempt", PREVIOUS)])


def test_a_retry_of_a_task_without_producer_stays_in_its_trace() -> None:
    e = attempt(kind="retry", previous=PREVIOUS)
    assert where(e) == (PREVIOUS, [("previous_attempt", PREVIOUS)])


def test_a_dependent_links_to_what_it_waited_for() -> None:
    e = produced(kind="dependent", links=(PREVIOUS, OTHER, "", "rubbish"))
    assert where(e) == (PRODUCER, [("dependency", PREVIOUS), ("dependency", OTHER)])


@pytest.mark.parametrize(("dependencies", "most"), [(127, 128), (128, 128), (200, 128), (5, 2)])
def test_what_came_before_outlives_a_wide_fan_in(dependencies: int, most: int) -> None:
    """A span keeps the last of its links when there are too many."""
    many = tuple(f"00-{'7' * 32}-{i:016x}-01" for i in range(1, dependencies + 1))
    previous = {"kind": "retry", "previous": PREVIOUS, "links": many}
    for e, reason in (
        (produced(**previous, extra={LINK_HEADER: "batch"}), "producer"),
        (produced(**previous, extra={LINK_HEADER: "schedule"}), "schedule"),
    ):
        tracer = TracerProvider(span_limits=SpanLimits(max_links=most)).get_tracer("test")
        found = place(e, Rules())
        span: Any = SpanMaker(tracer, SpanKind.CONSUMER).start("process t", found, Shared({}), {})
        kept = [(li.attributes["streaq.link"], traceparent(li.context)) for li in span.links]
        assert kept[-2:] == [(reason, PRODUCER), ("previous_attempt", PREVIOUS)]
        assert len(kept) == min(dependencies + 2, most)
        assert {reason for reason, _ in kept[:-2]} <= {"dependency"}


def test_each_firing_of_a_schedule_is_a_trace_of_its_own() -> None:
    assert where(produced(kind="cron")) == ("", [("schedule", PRODUCER)])
    assert where(attempt(kind="cron")) == ("", [])


def test_the_tries_of_a_firing_make_one_trace() -> None:
    e = produced(kind="retry", previous=PREVIOUS, extra={LINK_HEADER: "schedule"})
    assert where(e) == (PREVIOUS, [("schedule", PRODUCER), ("previous_attempt", PREVIOUS)])


@pytest.mark.parametrize("why", ["delay", "batch"])
def test_the_producer_can_ask_for_a_trace_of_its_own(why: str) -> None:
    assert where(produced(extra={LINK_HEADER: why})) == ("", [("producer", PRODUCER)])


def test_a_long_delay_is_seen_even_if_a_foreign_producer_did_not_say_so() -> None:
    e = produced(kind="delayed", created_ms=0, due_ms=60_001, started_ms=60_002)
    assert where(e) == ("", [("producer", PRODUCER)])
    assert where(e._replace(due_ms=60_000)) == (PRODUCER, [])
    assert where(e, link_after_ms=100_000) == (PRODUCER, [])


def test_the_producer_decides_about_the_delay_it_intended() -> None:
    """A worker's ``link_after`` is for those that did not say."""
    late = {"kind": "delayed", "created_ms": 0, "due_ms": 60_001, "started_ms": 60_002}
    e = produced(**late, extra=decided(enqueue(kind="delayed", delay_ms=60_001), 100_000))
    assert where(e) == (PRODUCER, [])
    assert where(e, link_after_ms=10) == (PRODUCER, [])
    assert where(e, propagation="link") == ("", [("producer", PRODUCER)])
    soon = {"kind": "delayed", "created_ms": 0, "due_ms": 20_000, "started_ms": 20_000}
    e = produced(**soon, extra=decided(enqueue(kind="delayed", delay_ms=20_000), 60_000))
    assert where(e, link_after_ms=10_000) == (PRODUCER, [])
    e = produced(**soon, extra=decided(enqueue(kind="delayed", delay_ms=20_000), 10_000))
    assert where(e) == ("", [("producer", PRODUCER)])


def decided(e: Enqueue, link_after_ms: int) -> dict[str, str]:
    """What the producer writes about it."""
    said = link_header(e, 1, Rules(link_after_ms=link_after_ms))
    assert said
    return {LINK_HEADER: said}


def test_its_word_about_the_delay_is_none_about_retries() -> None:
    e = produced(kind="retry", previous=SIBLING, retry_delay_ms=60_001, extra={LINK_HEADER: "no"})
    links = [("producer", PRODUCER), ("previous_attempt", SIBLING)]
    assert where(e) == ("", links)
    e = produced(kind="retry", previous=PREVIOUS, extra={LINK_HEADER: "no"})
    assert where(e)[0] == PREVIOUS
    assert where(produced(kind="cron", extra={LINK_HEADER: "no"}))[1] == [("schedule", PRODUCER)]


def test_a_producer_alone_can_have_all_attempts_linked() -> None:
    extra = {LINK_HEADER: link_header(enqueue(), 1, Rules("link"))}
    assert where(produced(extra=extra)) == ("", [("producer", PRODUCER)])
    e = produced(kind="retry", previous=PREVIOUS, extra=extra)
    expected = [("producer", PRODUCER), ("previous_attempt", PREVIOUS)]
    assert where(e) == ("", expected), "as with a worker's own propagation='link'"


def test_waiting_long_for_others_is_no_intended_delay() -> None:
    e = produced(kind="dependent", created_ms=0, due_ms=999_999)
    assert where(e)[0] == PRODUCER


def test_propagation_link_makes_roots_of_all() -> None:
    assert where(produced(), propagation="link") == ("", [("producer", PRODUCER)])
    e = produced(kind="retry", previous=PREVIOUS)
    expected = [("producer", PRODUCER), ("previous_attempt", PREVIOUS)]
    assert where(e, propagation="link") == ("", expected)


@pytest.mark.parametrize("propagation", ["child", "link"])
def test_baggage_comes_along(propagation: Any) -> None:
    e = produced(extra={"baggage": "tenant=acme"})
    found = place(e, Rules(propagation))
    assert baggage.get_baggage("tenant", found.context) == "acme"


def test_tracestate_comes_along() -> None:
    e = produced(extra={"tracestate": "vendor=x"})
    context = trace.get_current_span(place(e, Rules()).context).get_span_context()
    assert context.trace_state.get("vendor") == "x"


def test_what_makes_a_producer_ask_for_links() -> None:
    rules = Rules(link_after_ms=60_000, link_batches_over=100)
    assert link_header(enqueue(), 1, rules) == ""
    assert link_header(enqueue(), 100, rules) == ""
    assert link_header(enqueue(), 101, rules) == "batch"
    assert link_header(enqueue(delay_ms=60_000), 1, rules) == "no"
    assert link_header(enqueue(delay_ms=60_000), 101, rules) == "batch"
    assert link_header(enqueue(delay_ms=60_001), 1, rules) == "delay"
    assert link_header(enqueue(kind="cron"), 1, rules) == "schedule"
    rules = Rules("link")
    assert link_header(enqueue(), 1, rules) == "always"
    assert link_header(enqueue(delay_ms=60_001), 101, rules) == "always"
    assert link_header(enqueue(kind="cron"), 1, rules) == "schedule"


def test_headers_carry_the_span_and_the_baggage() -> None:
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))
    context = baggage.set_baggage("tenant", "acme", trace.set_span_in_context(span))
    assert headers_of(context) == {
        "traceparent": f"00-{1:032x}-{2:016x}-01",
        "baggage": "tenant=acme",
    }


@pytest.mark.parametrize(
    "text",
    ["", "00-1-2", "00-zz-11-01", "00-" + "0" * 32 + "-" + "2" * 16 + "-01", "a-b-c-d-e"],
)
def test_rubbish_is_no_span(text: str) -> None:
    assert parse(text) is None


def test_traceparents_go_round() -> None:
    context = parse(PRODUCER)
    assert context is not None
    assert context.is_remote
    assert traceparent(context) == PRODUCER
    assert ids(PRODUCER) == ("1" * 32, "2" * 16)
    assert ids("") == ("", "")
    assert traceparent(trace.INVALID_SPAN_CONTEXT) == ""


def test_a_tracestate_goes_round_behind_the_traceparent() -> None:
    text = f"{PRODUCER},ot=th:8,vendor=a-b"
    context = parse(text)
    assert context is not None
    assert dict(context.trace_state) == {"ot": "th:8", "vendor": "a-b"}
    assert traceparent(context) == text
    assert ids(text) == ("1" * 32, "2" * 16)
    assert parse(f"{PRODUCER},") == parse(PRODUCER)


def test_a_retry_hands_the_tracestate_of_its_firing_on() -> None:
    found = place(attempt(kind="retry", previous=f"{PRODUCER},ot=th:8"), Rules())
    parent = trace.get_current_span(found.context).get_span_context()
    assert dict(parent.trace_state) == {"ot": "th:8"}
