"""Starts the spans of attempts: light ones, where the SDK is one that is known.

What a span has inside is the SDK's business. Two are therefore made by the SDK itself, which nobody
gets to see, and compared: what they have in common is copied to ours, and if anything differs
between them but what is known here, the SDK makes all the others as well.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, DEFAULT_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from streaq.telemetry.light_span import Identity, LightSpan, Shared, Values

if TYPE_CHECKING:
    from opentelemetry.trace import SpanKind, Tracer

    from streaq.telemetry.propagation import Place

_OF_EACH: Final = frozenset(
    ("_name", "_context", "_parent", "_start_time", "_attributes", "_events", "_links", "_lock")
)
"""What spans differ in."""
_TRACERS: Final = frozenset(("_resource", "_sampler", "_span_processor"))
"""What the tracer knows as well."""
_MOST_LINKS: Final = 16
_FEWEST_ATTRIBUTES: Final = 64
"""A limit from here on leaves room for ours."""
_SAMPLED, _RANDOM = 1, 2
_FLAGS: Final = tuple(TraceFlags(bits) for bits in range(4))


class SpanMaker:
    """Starts the spans of one kind.

    :param tracer: of any provider; only those of the SDK itself get light spans.
    """

    def __init__(self, tracer: Tracer, kind: SpanKind) -> None:
        self._tracer: Any = tracer
        self._kind = kind
        self._inside = _learn(tracer, kind)

    def start(
        self, name: str, where: Place, shared: Shared, own: Values, start_ns: int | None = None
    ) -> trace.Span:
        """What ``tracer.start_span`` does; ``own`` is the span's from now on.

        :param start_ns: nanoseconds since the epoch; now, if not given.
        """
        tracer, inside = self._tracer, self._inside
        if (
            inside is None
            or len(where.links) > _MOST_LINKS
            or not getattr(tracer, "_is_enabled", _yes)()
        ):
            attributes = {**shared, **own}
            span: trace.Span = tracer.start_span(
                name, where.context, self._kind, attributes, where.links, start_ns
            )
            return span
        if inside["_resource"] is not tracer.resource:  # some is found out later
            self._inside = inside = {**inside, "_resource": tracer.resource}
        return self._start_light(inside, name, where, shared, own, start_ns)

    def _start_light(
        self,
        inside: Mapping[str, Any],
        name: str,
        where: Place,
        shared: Shared,
        own: Values,
        start_ns: int | None,
    ) -> trace.Span:
        tracer, ids = self._tracer, self._tracer.id_generator
        above = trace.get_current_span(where.context).get_span_context()
        parent = above if above.is_valid else None
        trace_id: int = ids.generate_trace_id() if parent is None else parent.trace_id
        changed: Mapping[str, Any] | None = None
        if tracer.sampler is DEFAULT_ON and (parent is None or parent.trace_flags & _SAMPLED):
            # What it would say; asking it takes as long as all the rest.
            flags, is_recorded = _SAMPLED, True
            state = None if parent is None else parent.trace_state
        else:
            given = {**shared, **own}
            result: Any = tracer.sampler.should_sample(
                where.context, trace_id, name, self._kind, given, where.links
            )
            flags = _SAMPLED if result.decision.is_sampled() else 0
            is_recorded, state = result.decision.is_recording(), result.trace_state
            if result.attributes != given:
                changed = result.attributes
        flags |= _random(ids, parent)
        context = SpanContext(trace_id, ids.generate_span_id(), False, _FLAGS[flags], state)
        if not is_recorded:
            return NonRecordingSpan(context)
        began = time_ns() if start_ns is None else start_ns
        identity = Identity(context, parent, where.links)
        if changed is None:
            span = LightSpan(inside, name, identity, shared, own, began)
        else:
            span = LightSpan(inside, name, identity, Shared({}), {}, began)
            span.set_attributes(changed)
        tracer.span_processor.on_start(span, parent_context=where.context)
        return span


def counts_itself() -> bool:
    """Whether the SDK keeps metrics of its own work, which what is made here would not be in."""
    told = os.environ.get("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "")
    return told.strip().lower() == "true"


def _learn(tracer: Any, kind: SpanKind) -> Mapping[str, Any] | None:
    """What spans of this tracer have in common inside; None when they are not to be made here."""
    if type(tracer) is not SdkTracer or counts_itself():
        return None
    probe: Any = copy.copy(tracer)
    probe.sampler, probe.span_processor = ALWAYS_ON, SpanProcessor()  # which tells nobody
    one, other = _look_inside(probe, kind), _look_inside(probe, kind)
    common: dict[str, Any] = {
        name: value
        for name, value in one.items()
        if name not in _OF_EACH and other.get(name, one) is value
    }
    everything = _OF_EACH.union(common)
    is_known = everything.issuperset(one) and everything.issuperset(other)
    if not (is_known and _TRACERS.issubset(common) and _has_room(common.get("_limits"))):
        return None
    common.update(_sampler=tracer.sampler, _span_processor=tracer.span_processor)
    return common


def _look_inside(tracer: Any, kind: SpanKind) -> dict[str, Any]:
    span: Any = tracer.start_span("probe", Context(), kind)
    return dict(span.__dict__)


def _has_room(limits: Any) -> bool:
    """Whether none of our attributes and links is too long or too many."""
    lengths = (limits.max_attribute_length, limits.max_span_attribute_length)
    counts = (
        (limits.max_span_attributes, _FEWEST_ATTRIBUTES),
        (limits.max_link_attributes, 1),
        (limits.max_links, _MOST_LINKS),
    )
    return all(length is None for length in lengths) and all(
        most is None or most >= fewest for most, fewest in counts
    )


def _random(ids: Any, parent: SpanContext | None) -> int:
    """The flag of a trace id that is random; only an SDK that knows it hands it on."""
    tells = getattr(ids, "is_trace_id_random", None)
    if tells is None:
        return 0
    if parent is not None:
        return parent.trace_flags & _RANDOM
    return _RANDOM if tells() else 0


def _yes() -> bool:
    return True
