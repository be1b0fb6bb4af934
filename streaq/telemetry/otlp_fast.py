"""Spans as OTLP, encoded in a third of the time that the SDK's own encoder takes.

A worker that exports every span spends as much on encoding as on the tasks. Nearly all of its spans
are alike: plain attributes, most of them the same each time, perhaps a link. Those are put together
here, from parts that are kept; for any other span, and for everything around spans, the SDK's
encoder is asked. A span that it cannot encode either is left out, so that the others get there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from streaq.hooks import Complaints
from streaq.telemetry.light_span import LightSpan, Shared
from streaq.telemetry.span_maker import counts_itself

if TYPE_CHECKING:
    from opentelemetry.trace import Link

# Protobuf tags: field number and wire type. Names are those of opentelemetry-proto's trace.proto.
_RESOURCE_SPANS = b"\x0a"
_SCOPE_SPANS = _SPANS = b"\x12"
_TRACE_ID, _SPAN_ID = b"\x0a\x10", b"\x12\x08"  # with their lengths
_PARENT_ID, _NAME, _KIND = b"\x22\x08", b"\x2a", b"\x30"
_TIMES = struct.Struct("<cQcQ")
_ATTRIBUTES, _LINKS, _LINK_ATTRIBUTES = b"\x4a", b"\x6a", b"\x22"
_NO_STATUS = b"\x7a\x00"
_SPAN_FLAGS, _LINK_FLAGS = b"\x85\x01", b"\x35"
_HERE, _REMOTE = struct.pack("<I", 0x100), struct.pack("<I", 0x300)
_KINDS = {kind: _KIND + bytes([kind.value + 1]) for kind in SpanKind}
_ONE_BYTE = 0x80
"""Numbers below this are one byte as a varint."""
_SHORT = 24
"""Longer texts are ids, of which every span has its own."""
_PLAIN = frozenset((str, int, bool))
_NO_ONE = SpanContext(1, 1, is_remote=False)
_complaints = Complaints()


class FastSpanExporter(OTLPSpanExporter):
    """The SDK's exporter over HTTP, with this encoder."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; the SDK does it itself when it is made otherwise inside, when it counts
        what it exports, and when it is to refuse a batch for its size.
        """
        try:
            return self._deliver(spans)
        except Exception:  # noqa: BLE001 - as the SDK has it: the answer tells that it failed
            _complaints.tell("a batch of spans could not be exported")
            return SpanExportResult.FAILURE

    def _deliver(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        client: Any = getattr(self, "_client", None)
        if client is None or getattr(self, "_shutdown", True) or counts_itself():
            return super().export(spans)
        raw = encode(spans)
        if 0 < getattr(self, "_max_request_size", 0) < len(raw):
            return super().export(spans)
        is_sent = bool(raw) and client.export(raw).success
        return SpanExportResult.SUCCESS if is_sent else SpanExportResult.FAILURE


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """A whole ``ExportTraceServiceRequest``; empty when none of them could be encoded."""
    groups: dict[tuple[int, int], list[ReadableSpan]] = {}
    for span in spans:
        groups.setdefault((id(span.resource), id(span.instrumentation_scope)), []).append(span)
    return b"".join(map(_encode_group, groups.values()))


def _encode_group(spans: Sequence[ReadableSpan]) -> bytes:
    """Spans of one resource and scope, around which goes what the SDK says of those two."""
    inner = b"".join(filter(None, map(_encode_field, spans)))
    if not inner:
        return b""
    bare = ReadableSpan(
        "",
        _NO_ONE,
        resource=spans[0].resource,
        instrumentation_scope=spans[0].instrumentation_scope,
    )
    [around] = encode_spans([bare]).resource_spans
    [scope] = around.scope_spans
    scope.ClearField("spans")
    around.ClearField("scope_spans")
    scoped = _field(_SCOPE_SPANS, scope.SerializeToString() + inner)
    return _field(_RESOURCE_SPANS, around.SerializeToString() + scoped)


def _encode_field(span: ReadableSpan) -> bytes | None:
    """One span of a scope; None, after a line in the log, when nothing can encode it."""
    try:
        return _field(_SPANS, encode_span(span))
    except Exception:  # noqa: BLE001 - users' spans may hold anything
        _complaints.tell("a span could not be encoded and is left out; the others are sent")
        return None


def encode_span(span: ReadableSpan) -> bytes:
    """One span.

    :raises Exception: it has something that the SDK cannot encode either.
    """
    try:
        plain = _encode_plain(span)
    except Exception:  # noqa: BLE001 - whatever is odd about it, the SDK knows or says it
        # Half a character, or a number of more than 64 bits: the SDK leaves the attribute out.
        plain = None
    return plain or _encode_otherwise(span)


def _encode_plain(span: ReadableSpan) -> bytes | None:
    """None when it has more than is written here."""
    context = span.get_span_context()
    if context is None or context.trace_state:
        return None
    if isinstance(span, LightSpan) and span.is_plain:
        attributes, links = _shared(span.shared) + _attributes(_ATTRIBUTES, span.own), span.linked
    elif _is_plain(span):
        attributes, links = _attributes(_ATTRIBUTES, span.attributes or {}), span.links
    else:
        return None
    parent = span.parent
    parts = [
        _TRACE_ID, context.trace_id.to_bytes(16, "big"),
        _SPAN_ID, context.span_id.to_bytes(8, "big"),
        _PARENT_ID + parent.span_id.to_bytes(8, "big") if parent is not None else b"",
        _name(span.name), _KINDS[span.kind],
        _TIMES.pack(b"\x39", span.start_time, b"\x41", span.end_time),
        attributes,
    ]  # fmt: skip
    parts += map(_link, links)
    parts += (_NO_STATUS, _SPAN_FLAGS, _flags(parent))
    return b"".join(parts)


def _encode_otherwise(span: ReadableSpan) -> bytes:
    [around] = encode_spans([span]).resource_spans
    return around.scope_spans[0].spans[0].SerializeToString()


def _is_plain(span: ReadableSpan) -> bool:
    """Whether it has nothing but what is written here."""
    mappings = (span.attributes or {}, *(link.attributes or {} for link in span.links))
    return (
        span.status.status_code is StatusCode.UNSET
        and not (span.events or span.dropped_attributes)
        and not (span.dropped_events or span.dropped_links)
        and all(map(_are_plain, mappings))
        and not any(link.dropped_attributes for link in span.links)
    )


def _are_plain(attributes: Mapping[str, Any]) -> bool:
    return _PLAIN.issuperset(map(type, attributes.values()))


@lru_cache(maxsize=256)
def _link(link: Link) -> bytes:
    """The tasks of a batch have the same one."""
    context = link.context
    return _field(
        _LINKS,
        b"".join((
            _TRACE_ID, context.trace_id.to_bytes(16, "big"),
            _SPAN_ID, context.span_id.to_bytes(8, "big"),
            _attributes(_LINK_ATTRIBUTES, link.attributes or {}), _LINK_FLAGS, _flags(context),
        )),
    )  # fmt: skip


def _flags(context: SpanContext | None) -> bytes:
    return _REMOTE if context is not None and context.is_remote else _HERE


def _shared(attributes: Shared) -> bytes:
    if not attributes.encoded:
        attributes.encoded = _attributes(_ATTRIBUTES, attributes)
    return attributes.encoded


def _attributes(tag: bytes, attributes: Mapping[str, Any]) -> bytes:
    pairs: Iterable[tuple[str, Any]] = attributes.items()
    return b"".join([
        _repeated(tag, name, value)
        if isinstance(value, int) or len(value) <= _SHORT
        else _attribute(tag, name, value)
        for name, value in pairs
    ])  # fmt: skip


def _attribute(tag: bytes, name: str, value: str | int) -> bytes:
    if isinstance(value, str):
        told = _field(b"\x0a", value.encode())
    elif isinstance(value, bool):
        told = b"\x10" + bytes([value])
    else:
        told = b"\x18" + _varint(int.from_bytes(value.to_bytes(8, "little", signed=True), "little"))
    return _field(tag, _key(name) + _field(b"\x12", told))


_repeated = lru_cache(maxsize=4096, typed=True)(_attribute)


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return _field(b"\x0a", name.encode())


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return _field(_NAME, name.encode())


def _field(tag: bytes, content: bytes) -> bytes:
    length = len(content)
    return tag + (bytes([length]) if length < _ONE_BYTE else _varint(length)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _ONE_BYTE:
        out.append(value & 0x7F | _ONE_BYTE)
        value >>= 7
    out.append(value)
    return bytes(out)
