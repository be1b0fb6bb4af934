"""Counts what committed, and tells the hooks of it: only ever after the settle.

Hooks are told when the pump says so: once the next exchange is on its way, or there is none. What
they cost then costs no throughput, because the worker would wait for Redis anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from streaq.broker.exchange import FENCED
from streaq.events import tell_changes, tell_refused
from streaq.hooks import Fence

if TYPE_CHECKING:
    from streaq.broker.exchange import Refused
    from streaq.broker.publish import Change
    from streaq.engine.attempt import Finished
    from streaq.hooks import Dispatcher, Slot


class Ledger:
    """The counters of one worker: completed, failed, retried, aborted, relinquished, fenced."""

    def __init__(
        self, counters: dict[str, int], hooks: Dispatcher, queue: str, worker_id: str
    ) -> None:
        self._counters = counters
        self._hooks = hooks
        self._emit = hooks.emit
        self._queue = queue
        self._worker_id = worker_id
        self._waiting: deque[tuple[Callable[[Any, Any], None], object, object]] = deque()
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
            self._waiting.append((self._emit, slot, ending))

    def refused(self, now_ms: int, refused: Refused) -> None:
        """A task that the claim ended."""
        self._count("aborted" if refused.status == "aborted" else "failed")
        self._waiting.append((self._tell_refused, now_ms, refused))

    def changed(self, now_ms: int, changes: Sequence[Change]) -> None:
        """What the ends of tasks did to those that wait for them."""
        self._waiting.append((self._tell_changes, now_ms, changes))

    def fenced(self, finished: Finished) -> None:
        """A settle that changed nothing, or an attempt whose lease was lost before it ended."""
        self._count("fenced")
        if self._hooks.on_fenced and finished.ending is not None:
            event = Fence(finished.ending)
            self._waiting.append((self._emit, self._hooks.on_fenced, event))

    @property
    def has_news(self) -> bool:
        """Whether hooks are still to be told of something."""
        return bool(self._waiting)

    def tell(self) -> None:
        """Tell the hooks of everything since the last time, in its order."""
        waiting = self._waiting
        while waiting:
            # One by one: what cannot be told must not take what comes after it along.
            call, first, second = waiting.popleft()
            call(first, second)

    def _tell_refused(self, now_ms: int, refused: Refused) -> None:
        tell_refused(self._hooks, self._queue, self._worker_id, now_ms, refused)

    def _tell_changes(self, now_ms: int, changes: Sequence[Change]) -> None:
        tell_changes(self._hooks, self._queue, self._worker_id, now_ms, changes)

    def _count(self, name: str) -> None:
        self._counters[name] = self._counters.get(name, 0) + 1
