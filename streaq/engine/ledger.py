"""Counts what committed, and tells the hooks of it: only ever after the settle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streaq.broker.exchange import FENCED
from streaq.hooks import Fence

if TYPE_CHECKING:
    from streaq.broker.exchange import Refused
    from streaq.engine.attempt import Finished
    from streaq.hooks import Dispatcher, Slot


class Ledger:
    """The counters of one worker: completed, failed, retried, aborted, relinquished, fenced."""

    def __init__(self, counters: dict[str, int], hooks: Dispatcher) -> None:
        self._counters = counters
        self._hooks = hooks
        self._slots: dict[str, Slot] = {
            "success": hooks.on_finish,
            "failed": hooks.on_fail,
            "retried": hooks.on_retry,
            "aborted": hooks.on_abort,
            "returned": hooks.on_return,
            "refused": hooks.on_refuse,
        }

    def settled(self, finished: Finished, code: int) -> None:
        """The answer to a settle: committed, or refused because the lease was lost."""
        if code == FENCED:
            self.fenced(finished)
            return
        self._count(finished.counter)
        ending = finished.ending
        if ending is not None and (slot := self._slots[ending.status]):
            self._hooks.emit(slot, ending)

    def refused(self, refused: Refused) -> None:
        """A task that the claim ended."""
        self._count("aborted" if refused.status == "aborted" else "failed")

    def fenced(self, finished: Finished) -> None:
        """A settle that changed nothing, or an attempt whose lease was lost before it ended."""
        self._count("fenced")
        if self._hooks.on_fenced and finished.ending is not None:
            self._hooks.emit(self._hooks.on_fenced, Fence(finished.ending))

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1
