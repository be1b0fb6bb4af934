"""How one trace reaches from the enqueueing process to the attempt, or a new one is linked to it.

The producer writes W3C headers, and says in one header of our own when its tasks are to start
traces of their own; the consumer reads both and finds the parent under which the attempt goes.

Who enqueues decides, since it knows its rules, and its batches. A consumer decides for itself in
what only it knows, such as the delay of a retry, and where the producer has not said anything:
one that is not ours, which writes a ``traceparent`` alone. So that this can be told apart, tasks
with an intended delay always have the header, even for a "no"; the others, which are nearly all,
need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streaq.hooks import Attempt, Complaints, Enqueue
from streaq.telemetry.names_spans import (
    LINK_DEPENDENCY,
    LINK_PREVIOUS,
    LINK_PRODUCER,
    LINK_REASON,
    LINK_SCHEDULE,
)

Propagation: TypeAlias = Literal["child", "link"]

LINK_HEADER = "streaq-link"
"""Says why the task starts a trace of its own (``schedule``, ``delay``, ``batch``), that each of
its attempts does (``always``), or that in spite of its delay it does not (``no``)."""
BY_SCHEDULE, BY_DELAY, BY_BATCH, BY_SETTING = "schedule", "delay", "batch", "always"
NOT_LINKED = "no"

_TRACEPARENT_PARTS = 4
_NO_SPAN = trace.INVALID_SPAN
_W3C = TraceContextTextMapPropagator()
_complaints = Complaints()


class Rules(NamedTuple):
    """When an attempt is a child of its producer's span, and when a trace of its own.

    :param link_after_ms: an intended delay longer than this starts a trace of its own.
    :param link_batches_over: so does a batch of more tasks than this.
    """

    propagation: Propagation = "child"
    link_after_ms: int = 60_000
    link_batches_over: int = 100


class Place(NamedTuple):
    """Where an attempt's span goes."""

    context: Context
    links: Sequence[Link]


def headers_of(context: Context) -> dict[str, str]:
    """The W3C headers (traceparent, tracestate, baggage) that carry this context."""
    headers: dict[str, str] = {}
    try:
        propagate.inject(headers, context)
    except Exception:  # noqa: BLE001 - propagators are the application's, and so is the baggage
        _complaints.tell("a propagator raised at an enqueue; the trace goes along without the rest")
        _W3C.inject(headers, context)
    return headers


def _context_of(headers: Mapping[str, str]) -> Context:
    try:
        return propagate.extract(headers, Context())
    except Exception:  # noqa: BLE001 - propagators are the application's
        _complaints.tell("a propagator raised at an attempt; the trace goes on without the rest")
        return _W3C.extract(headers, Context())


def link_header(e: Enqueue, batch: int, rules: Rules) -> str:
    """What is to be said of this task in ``LINK_HEADER``; empty when nothing need be."""
    if e.kind == "cron":
        return BY_SCHEDULE
    if rules.propagation == "link":
        return BY_SETTING
    if e.delay_ms > rules.link_after_ms:
        return BY_DELAY
    if batch > rules.link_batches_over:
        return BY_BATCH
    return NOT_LINKED if e.delay_ms > 0 else ""


def place(e: Attempt, rules: Rules) -> Place:
    """Parent and links of an attempt.

    An attempt that is not to be a child of its producer's span links to it, and goes under the
    attempt before it, if there was one: the tries of one firing make one trace. But one that was
    to wait for long begins the next trace.

    What matters most comes last: a span keeps the last links when there are too many (128).
    """
    waited = e.kind == "retry" and e.retry_delay_ms > rules.link_after_ms
    previous = parse(e.previous) if e.previous else None
    is_alone = rules.propagation == "link" or e.headers.get(LINK_HEADER) == BY_SETTING
    reason = _reason(e) if waited or is_alone or _is_linked(e, rules, previous) else ""
    context, producer, links = _beginning(tuple(e.headers.items()), reason)
    if not (e.previous or e.links):
        return Place(context, links)
    found = (parse(text) for text in e.links)
    links = [*(_link(other, LINK_DEPENDENCY) for other in found if other is not None), *links]
    if previous is not None:
        links.append(_link(previous, LINK_PREVIOUS))
        if not (producer or waited or is_alone):
            context = trace.set_span_in_context(NonRecordingSpan(previous), context)
    return Place(context, links)


@lru_cache(maxsize=256)
def _beginning(
    headers: tuple[tuple[str, str], ...], reason: str
) -> tuple[Context, bool, Sequence[Link]]:
    """What the headers say, which the tasks of one call have in common: the context to begin in,
    whether the producer's span is the parent there, and with a ``reason`` the link to it instead.
    """
    context = _context_of(dict(headers)) if headers else Context()
    producer = trace.get_current_span(context).get_span_context()
    if not reason:
        return context, producer.is_valid, ()
    links = (_link(producer, reason),) if producer.is_valid else ()
    return trace.set_span_in_context(_NO_SPAN, context), False, links


def _is_linked(e: Attempt, rules: Rules, previous: SpanContext | None) -> bool:
    said = e.headers.get(LINK_HEADER)
    if e.kind == "cron" or said not in (None, NOT_LINKED):
        return True
    if previous is not None and _has_left(previous, tuple(e.headers.items())):
        return True
    if said == NOT_LINKED:
        return False
    return e.kind == "delayed" and e.due_ms - e.created_ms > rules.link_after_ms


def _has_left(previous: SpanContext, headers: tuple[tuple[str, str], ...]) -> bool:
    """Whether the attempt before began a trace of its own: the next one goes on with that."""
    context, sent, _ = _beginning(headers, "")
    producer = trace.get_current_span(context).get_span_context()
    return sent and producer.trace_id != previous.trace_id


def _reason(e: Attempt) -> str:
    scheduled = e.kind == "cron" or e.headers.get(LINK_HEADER) == BY_SCHEDULE
    return LINK_SCHEDULE if scheduled else LINK_PRODUCER


def _link(context: SpanContext, reason: str) -> Link:
    return Link(context, {LINK_REASON: reason})


def traceparent(context: SpanContext) -> str:
    """A span context as a traceparent, its tracestate behind a comma if it has one; empty when it
    is not valid.
    """
    if not context.is_valid:
        return ""
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return f"{text},{context.trace_state.to_header()}" if context.trace_state else text


def parse(text: str) -> SpanContext | None:
    """What ``traceparent`` wrote as a span context; None when it is empty or not one."""
    text, _, state = text.partition(",")
    parts = text.split("-")
    if len(parts) != _TRACEPARENT_PARTS:
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:])
    except ValueError:
        return None
    trace_state = TraceState.from_header([state]) if state else None
    context = SpanContext(trace_id, span_id, True, TraceFlags(flags), trace_state)
    return context if context.is_valid else None


def ids(text: str) -> tuple[str, str]:
    """Trace id and span id of a traceparent; two empty strings when it is empty."""
    return (text[3:35], text[36:52]) if text else ("", "")
