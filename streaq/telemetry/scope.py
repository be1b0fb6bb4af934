"""What surrounds the body of an attempt: its span, and the log line that says that it begins.

One hook does all of it, and is its own guard against what an SDK or a logger may raise, because
each layer around a task costs as much as all its counters.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Final

from streaq.hooks import Attempt, Complaints, Hook
from streaq.telemetry.context import bind_trace
from streaq.telemetry.logs import LogsHook
from streaq.telemetry.tracing import OpenSpan, TracingHook

_NOTHING: Final[AbstractContextManager[None]] = nullcontext()


class ScopeHook(Hook):
    """Opens and closes the surroundings of each attempt.

    :param tracing: makes the span; None for none.
    :param logs: writes ``task.started``, and has the ids of the span bound; None for neither.
    """

    def __init__(self, tracing: TracingHook | None, logs: LogsHook | None) -> None:
        self._tracing = tracing
        self._logs = logs
        self.errors = 0
        self._complaints = Complaints()

    def is_quiet(self) -> bool:
        """While there is no span to make and no line to write."""
        if self._tracing is not None and self._tracing.records():
            return False
        return self._logs is None or self._logs.is_quiet()

    def around_attempt(self, e: Attempt) -> AbstractContextManager[None]:
        """Called in the coroutine that is about to run the body, so that the body sees what is set
        here. The answer has only to be left, and only when there is a span.
        """
        span: OpenSpan | None = None
        try:
            if self._tracing is not None:
                span = self._tracing.open_attempt(e)
            if self._logs is not None:
                if span is not None:
                    bind_trace(e.mark.trace)
                self._logs.started(e)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, the task goes on
            self.failed()
        return _NOTHING if span is None else _Leave(self, e, span)

    # The dispatcher reads it: there is no need to guard against what this raises.
    around_attempt.lets_nothing_through = True  # type: ignore[attr-defined]

    def failed(self) -> None:
        """Count and log what was raised; called while it is handled."""
        self.errors += 1
        self._complaints.tell("telemetry of an attempt failed; the task is not affected")


class _Leave:
    """Ends the span when the attempt ends; how it did is in ``mark.end``."""

    __slots__ = ("_e", "_hook", "_span")

    def __init__(self, hook: ScopeHook, e: Attempt, span: OpenSpan) -> None:
        self._hook = hook
        self._e = e
        self._span = span

    def __enter__(self) -> None:
        """All is done already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._span.close(self._e.mark.end)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - whatever it is, the task goes on
            self._hook.failed()
