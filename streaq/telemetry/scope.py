"""What surrounds the body of an attempt: its span, and the fields that its log lines carry.

One hook does both, because each context manager around a task costs as much as all its counters.
"""

from __future__ import annotations

from types import TracebackType

from streaq.hooks import Attempt, Hook
from streaq.telemetry import context
from streaq.telemetry.logs import LogsHook
from streaq.telemetry.tracing import OpenSpan, TracingHook


class ScopeHook(Hook):
    """Opens and closes the surroundings of each attempt.

    :param tracing: makes the span; None for none.
    :param logs: writes ``task.started`` and has the fields bound; None for neither.
    """

    def __init__(self, tracing: TracingHook | None, logs: LogsHook | None) -> None:
        self._tracing = tracing
        self._logs = logs

    def around_attempt(self, e: Attempt) -> AttemptScope:
        """Entered in the coroutine that runs the body, so that the body sees what is set here."""
        return AttemptScope(e, self._tracing, self._logs)


class AttemptScope:
    """The surroundings of one attempt; use it as a context manager."""

    __slots__ = ("_e", "_logs", "_span", "_tokens", "_tracing")

    def __init__(self, e: Attempt, tracing: TracingHook | None, logs: LogsHook | None) -> None:
        self._e = e
        self._tracing = tracing
        self._logs = logs
        self._span: OpenSpan | None = None
        self._tokens: context.Tokens = ()

    def __enter__(self) -> None:
        """Span first: the log fields tell its ids."""
        try:
            if self._tracing is not None:
                self._span = self._tracing.open_attempt(self._e)
            if self._logs is not None:
                self._tokens = context.bind(self._e)
                self._logs.started(self._e)
        except Exception:
            self._leave()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The reverse; how the attempt ended is in ``mark.end``."""
        self._leave()

    def _leave(self) -> None:
        context.unbind(self._tokens)
        if self._span is not None:
            self._span.close(self._e.mark.end)
