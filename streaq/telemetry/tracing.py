"""Spans: one ``send`` for each call that enqueues, one ``process`` for each attempt.

Nothing happens until the process has an OpenTelemetry SDK; whether it has is looked up ten times
a second at most, so that the answer costs next to nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    Tracer,
    TracerProvider,
)

from streaq.broker.keys import GROUP
from streaq.hooks import Attempt, Ending, Enqueue, Hook, Publish
from streaq.telemetry import names_spans as n
from streaq.telemetry.light_span import Shared, Values
from streaq.telemetry.propagation import (
    LINK_HEADER,
    Rules,
    headers_of,
    link_header,
    place,
    traceparent,
)
from streaq.telemetry.span_endings import close_span, fail
from streaq.telemetry.span_maker import SpanMaker
from streaq.wire import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping

RECHECK_S = 0.1
_NOTHING = nullcontext()


class Tracing:
    """The tracer to use, when there is one.

    :param provider: the provider; by default whatever the process has set, now or later.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Tracer | None = None
        self._maker: SpanMaker | None = None
        self._check_at = 0.0
        if provider is not None:
            self._check_at = math.inf  # it is this one or none
            self._use(provider)

    def tracer(self) -> Tracer | None:
        """A tracer that records, or None."""
        if self._tracer is not None:
            return self._tracer
        now = time.monotonic()
        if now < self._check_at:
            return None
        self._check_at = now + RECHECK_S
        provider = trace.get_tracer_provider()
        if not isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
            self._use(provider)
        return self._tracer

    def maker(self) -> SpanMaker | None:
        """What starts the spans of attempts, or None."""
        return self._maker if self.tracer() is not None else None

    def _use(self, provider: TracerProvider) -> None:
        from streaq import __version__

        tracer = provider.get_tracer(n.INSTRUMENTATION, __version__)
        if isinstance(tracer, NoOpTracer):
            return  # the SDK is disabled (OTEL_SDK_DISABLED)
        self._tracer = tracer
        self._maker = SpanMaker(self._tracer, SpanKind.CONSUMER)


class _Sending(NamedTuple):
    """The call that enqueues, for the tasks inside it."""

    tracer: Tracer
    context: Context
    headers: dict[str, str]
    tasks: int


_sending: ContextVar[_Sending | None] = ContextVar("streaq_sending", default=None)


@contextmanager
def _current(sending: _Sending) -> Generator[None]:
    attached = otel_context.attach(sending.context)
    token = _sending.set(sending)
    try:
        yield
    finally:
        _sending.reset(token)
        otel_context.detach(attached)


class TracingHook(Hook):
    """Makes the spans of one worker.

    :param client_id: id of the worker.
    :param server_address: host and port of Redis; a port of 0 is left out.
    :param create_spans: also make one ``create`` span for each task of a batch.
    """

    def __init__(
        self,
        tracing: Tracing,
        rules: Rules,
        *,
        queue: str,
        client_id: str,
        server_address: tuple[str, int] | None = None,
        create_spans: bool = False,
    ) -> None:
        self._tracing = tracing
        self._rules = rules
        self._create_spans = create_spans
        common: Values = {
            n.MESSAGING_SYSTEM: n.SYSTEM_NAME,
            n.MESSAGING_DESTINATION: encodable(queue),
            n.MESSAGING_CLIENT_ID: encodable(client_id),
        }
        if server_address is not None:
            common[n.SERVER_ADDRESS] = encodable(server_address[0])
            if server_address[1]:
                common[n.SERVER_PORT] = server_address[1]
        self._send = {**common, **_operation("send")}
        self._create = {**common, **_operation("create")}
        self._process = {
            **common,
            **_operation("process"),
            n.MESSAGING_CONSUMER_GROUP: GROUP,
        }
        # Bounded, because names that nobody registered come from outside.
        self._share = lru_cache(maxsize=1000)(self._name_and_share)

    # ------------------------------------------------------------------------ producers

    def around_publish(self, e: Publish) -> AbstractContextManager[None]:
        """The ``send`` span, current while the tasks are written."""
        tracer = self._tracing.tracer()
        if tracer is None or e.tasks[0].fired_ms:
            return _NOTHING  # nobody sends a cron job's task: its attempt begins the trace
        return self._sending_span(tracer, e)

    @contextmanager
    def _sending_span(self, tracer: Tracer, e: Publish) -> Generator[None]:
        count = len(e.tasks)
        attributes = {**self._send, **_in_common(e.tasks)}
        if count == 1:
            attributes[n.MESSAGING_MESSAGE_ID] = encodable(e.tasks[0].task_id)
        else:
            attributes[n.MESSAGING_BATCH_COUNT] = count
        name = f"send {attributes.get(n.TASK_NAME) or encodable(e.queue)}"
        span = tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes)
        context = trace.set_span_in_context(span)
        try:
            sending = _Sending(tracer, context, headers_of(context), count)
            with _current(sending):
                yield
        except BaseException as error:
            fail(span, type(error).__name__, error)
            raise
        finally:
            span.end()

    def on_enqueue(self, e: Enqueue) -> None:
        """Write the headers that carry the trace to the attempts."""
        sending = _sending.get()
        if sending is None:
            return
        if self._create_spans and sending.tasks > 1:
            e.headers.update(self._create_span(sending, e))
        else:
            e.headers.update(sending.headers)
        said = link_header(e, sending.tasks, self._rules)
        if said:
            e.headers[LINK_HEADER] = said

    def _create_span(self, sending: _Sending, e: Enqueue) -> Mapping[str, str]:
        span = sending.tracer.start_span(
            encodable(f"create {e.task}"),
            context=sending.context,
            kind=SpanKind.PRODUCER,
            attributes={**self._create, **_task_attributes(e)},
        )
        span.end()
        return headers_of(trace.set_span_in_context(span, sending.context))

    # -------------------------------------------------------------------------- attempts

    def records(self) -> bool:
        """Whether spans of attempts are made at all."""
        return self._tracing.maker() is not None

    def open_attempt(self, e: Attempt) -> OpenSpan | None:
        """Start the ``process`` span and make it current; None when nobody records."""
        maker = self._tracing.maker()
        if maker is None:
            return None
        span, context = self._process_span(maker, e)
        e.mark.trace = traceparent(span.get_span_context())
        return OpenSpan(span, otel_context.attach(trace.set_span_in_context(span, context)))

    def on_refuse(self, e: Ending) -> None:
        """A ``process`` span of no length for a task whose body was not run."""
        self._refused(e)

    def on_abort(self, e: Ending) -> None:
        """The same for a task aborted before it ran; one that ran has its span already."""
        if not e.attempt.started_ms:
            self._refused(e)

    def _refused(self, e: Ending) -> None:
        maker = self._tracing.maker()
        if maker is not None:
            now = time.time_ns()
            span, _ = self._process_span(maker, e.attempt, now)
            e.attempt.mark.trace = traceparent(span.get_span_context())
            close_span(span, e)
            span.end(now)

    def _process_span(
        self, maker: SpanMaker, e: Attempt, start_ns: int | None = None
    ) -> tuple[Span, Context]:
        name, shared = self._share(e.task, e.priority, e.kind, e.worker_id, e.max_tries)
        own: Values = {
            n.MESSAGING_MESSAGE_ID: e.task_id,
            n.TASK_TRY: e.try_number,
            n.TASK_QUEUE_WAIT_MS: e.wait_ms,
        }
        where = place(e, self._rules)
        return maker.start(name, where, shared, own, start_ns), where.context

    def _name_and_share(
        self, task: str, priority: str, kind: str, worker_id: str, max_tries: int | None
    ) -> tuple[str, Shared]:
        """Name and attributes that many attempts have in common."""
        attributes: Values = {
            **self._process,
            n.MESSAGING_CLIENT_ID: encodable(worker_id),
            n.TASK_NAME: encodable(task),
            n.TASK_PRIORITY: encodable(priority),
            n.TASK_KIND: kind,
        }
        if max_tries is not None:
            attributes[n.TASK_MAX_TRIES] = max_tries
        return encodable(f"process {task}"), Shared(attributes)


class OpenSpan(NamedTuple):
    """A running attempt's span, and the token that makes it current no more."""

    span: Span
    token: Token[Context]

    def close(self, end: Ending | None) -> None:
        """Write down how the attempt ended, and end the span."""
        otel_context.detach(self.token)
        try:
            if end is not None:
                close_span(self.span, end)
        finally:
            self.span.end()


def _operation(name: str) -> Values:
    return {n.MESSAGING_OPERATION_NAME: name, n.MESSAGING_OPERATION_TYPE: name}


def _task_attributes(e: Enqueue) -> Values:
    return {n.MESSAGING_MESSAGE_ID: encodable(e.task_id), **_in_common((e,))}


def _in_common(tasks: Sequence[Enqueue]) -> Values:
    """What is the same for all tasks of one call."""
    found = {
        n.TASK_NAME: {task.task for task in tasks},
        n.TASK_PRIORITY: {task.priority for task in tasks},
        n.TASK_KIND: {task.kind for task in tasks},
    }
    return {name: encodable(*values) for name, values in found.items() if len(values) == 1}
