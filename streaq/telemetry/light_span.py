"""The SDK's span, made without what the span of an attempt hardly ever needs.

A worker that records every attempt spends more on the SDK's spans than on the tasks: fifteen
attributes are checked and copied one by one, under a lock, into a bounded mapping, beside bounded
lists of events and links; at its end all is copied once more. Nearly every attempt ends with the
attributes that were given here and two more. So those are kept as they are, and the SDK's own
containers are made when somebody asks for them: from then on it is the SDK's span in all respects.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from time import time_ns
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, Span
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, SpanContext, StatusCode

Values: TypeAlias = dict[str, str | int]


class Shared(Values):
    """Attributes that many spans have in common; ``encoded`` is for whoever writes them down."""

    __slots__ = ("encoded",)

    def __init__(self, values: Values) -> None:
        super().__init__(values)
        self.encoded = b""


class Identity(NamedTuple):
    """Which span it is, and which others it belongs to."""

    context: SpanContext
    parent: SpanContext | None
    links: Sequence[Link]


class LightSpan(Span):
    """A span of the SDK whose containers are made on first use.

    :param inside: what all spans of the tracer have inside, by the SDK's names.
    :param shared: attributes that other spans have as well.
    :param own: the others, which are this span's from now on.
    """

    _end_time: int | None

    def __init__(
        self,
        inside: Mapping[str, Any],
        name: str,
        identity: Identity,
        shared: Shared,
        own: Values,
        start_ns: int,
    ) -> None:
        vars(self).update(inside)
        self._name = name
        self._context, self._parent, self.linked = identity
        self._start_time = start_ns
        self._lock = threading.Lock()
        self.shared = shared
        self.own = own

    def __getattr__(self, name: str) -> Any:
        """One of the SDK's containers, made when it is asked for the first time."""
        if name == "_attributes":
            made = self._make_attributes()
        elif name == "_events":
            made = self._make_list("max_events", ())
        elif name == "_links":
            made = self._make_list("max_links", self.linked)
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        vars(self).update({name: made})
        return made

    def _make_attributes(self) -> Any:
        limits: Any = self._limits
        return BoundedAttributes(
            limits.max_span_attributes,
            {**self.shared, **self.own},
            immutable=self._end_time is not None,
            max_value_len=limits.max_span_attribute_length,
        )

    def _make_list(self, limit: str, values: Sequence[Any]) -> Any:
        bounded: Any = BoundedList
        return bounded.from_seq(getattr(self._limits, limit), values)

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing but what was given here, and no status."""
        made = self.__dict__
        return not (
            "_attributes" in made
            or "_events" in made
            or "_links" in made
            or self._status.status_code is not StatusCode.UNSET
        )

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What is recorded of it."""
        made = self.__dict__.get("_attributes")
        return MappingProxyType({**self.shared, **self.own} if made is None else made)

    @property
    def events(self) -> Sequence[Event]:
        """What happened during it."""
        return tuple(self.__dict__.get("_events", ()))

    @property
    def links(self) -> Sequence[Link]:
        """The spans that it is related to."""
        return tuple(self.__dict__.get("_links", self.linked))

    @property
    def dropped_attributes(self) -> int:
        """How many attributes were too many."""
        return self._dropped("_attributes")

    @property
    def dropped_events(self) -> int:
        """How many events were too many."""
        return self._dropped("_events")

    @property
    def dropped_links(self) -> int:
        """How many links were too many."""
        return self._dropped("_links")

    def _dropped(self, name: str) -> int:
        made = self.__dict__.get(name)
        return 0 if made is None else made.dropped

    def note(self, attributes: Values) -> None:
        """Set attributes that need no check."""
        with self._lock:  # a thread of the task's may be about to make the mapping
            is_ours = self._end_time is None and "_attributes" not in self.__dict__
            if is_ours:
                self.own.update(attributes)
        if not is_ours:
            self.set_attributes(attributes)

    def end(self, end_time: int | None = None) -> None:
        """Hand it over to be exported; when it is plain, without a copy."""
        with self._lock:
            is_ours = self._end_time is None and self.is_plain
            if is_ours:
                self._end_time = time_ns() if end_time is None else end_time
        if not is_ours:
            super().end(end_time)
            return
        processor: Any = self._span_processor
        on_ending = getattr(processor, "_on_ending", None)  # an older SDK has none
        if on_ending is not None:
            on_ending(self)
        processor.on_end(self)
