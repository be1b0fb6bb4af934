"""What surrounds the body of an attempt: its span, the fields that its log lines carry, its count.

One hook does all of it, and is its own guard against what an SDK or a logger may raise, because
each layer around a task costs as much as all its counters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final

from streaq.hooks import Attempt, Hook
from streaq.telemetry.context import bind
from streaq.telemetry.logs import LogsHook
from streaq.telemetry.tracing import OpenSpan, TracingHook

logger = logging.getLogger("streaq")


class ScopeHook(Hook):
    """Opens and closes the surroundings of each attempt.

    :param tracing: makes the span; None for none.
    :param logs: writes ``task.started`` and has the fields bound; None for neither.
    :param started: counts the attempt; None when somebody else does.
    """

    def __init__(
        self,
        tracing: TracingHook | None,
        logs: LogsHook | None,
        started: Callable[[Attempt], object] | None = None,
    ) -> None:
        self.tracing: Final = tracing
        self.logs: Final = logs
        self.started: Final = started
        self.errors = 0

    def around_attempt(self, e: Attempt) -> AttemptScope:
        """Entered in the coroutine that runs the body, so that the body sees what is set here."""
        return AttemptScope(self, e)

    # The dispatcher reads it: there is no need to guard against what this raises.
    around_attempt.lets_nothing_through = True  # type: ignore[attr-defined]

    def failed(self) -> None:
        """Count and log what was raised; called while it is handled."""
        self.errors += 1
        logger.exception(  # noqa: LOG004 - see above
            "telemetry of an attempt failed; the task is not affected"
        )


class AttemptScope:
    """The surroundings of one attempt; use it as a context manager."""

    __slots__ = ("_e", "_hook", "_span")

    def __init__(self, hook: ScopeHook, e: Attempt) -> None:
        self._hook = hook
        self._e = e
        self._span: OpenSpan | None = None

    def __enter__(self) -> None:
        """Span first: the log fields tell its ids."""
        hook, e = self._hook, self._e
        try:
            if hook.started is not None:
                hook.started(e)
            if hook.tracing is not None:
                self._span = hook.tracing.open_attempt(e)
            if hook.logs is not None:
                bind(e)
                hook.logs.started(e)
        except Exception:  # noqa: BLE001 - whatever it is, the task goes on
            hook.failed()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """How the attempt ended is in ``mark.end``."""
        if self._span is not None:
            try:
                self._span.close(self._e.mark.end)
            except Exception:  # noqa: BLE001 - see above
                self._hook.failed()
