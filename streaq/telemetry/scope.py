"""What surrounds the body of an attempt: its span, and the fields that its log lines carry.

One hook does both, because each context manager around a task costs as much as all its counters.
"""

from __future__ import annotations

from types import TracebackType

from streaq.hooks import Attempt, Hook
from streaq.telemetry.context import bind
from streaq.telemetry.logs import LogsHook
from streaq.telemetry.tracing import OpenSpan, TracingHook


class ScopeHook(Hook):
    """Opens and closes the surroundings of each attempt.

    :param tracing: makes the span; None for none.
    :param logs: writes ``task.started`` and has the fields bound; None for neither.
    """

    def __init__(self, tracing: TracingHook | None, logs: LogsHook | None) -> None:
        self.tracing = tracing
        self.logs = logs

    def around_attempt(self, e: Attempt) -> AttemptScope:
        """Entered in the coroutine that runs the body, so that the body sees what is set here."""
        return AttemptScope(self, e)


class AttemptScope:
    """The surroundings of one attempt; use it as a context manager."""

    __slots__ = ("_e", "_hook", "_span")

    def __init__(self, hook: ScopeHook, e: Attempt) -> None:
        self._hook = hook
        self._e = e
        self._span: OpenSpan | None = None

    def __enter__(self) -> None:
        """Span first: the log fields tell its ids."""
        hook = self._hook
        if hook.tracing is not None:
            self._span = hook.tracing.open_attempt(self._e)
        if hook.logs is not None:
            try:
                bind(self._e)
                hook.logs.started(self._e)
            except Exception:
                self.__exit__(None, None, None)
                raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """How the attempt ended is in ``mark.end``."""
        if self._span is not None:
            self._span.close(self._e.mark.end)
