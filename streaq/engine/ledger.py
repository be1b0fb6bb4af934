"""Counts what committed, and tells the hooks of it: only ever after the settle.

Hooks are told when the pump says so: once the next exchange is on its way, or there is none. What
they cost then costs no throughput, because the worker would wait for Redis anyway.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from streaq.broker.exchange import FENCED
from streaq.engine.outcome import (
    Aborted,
    Failed,
    Forfeited,
    Outcome,
    Retried,
    Returned,
    Succeeded,
)
from streaq.engine.telling import Events
from streaq.events import tell_changes, tell_refused
from streaq.hooks import Fence, Starts, Successes

if TYPE_CHECKING:
    from streaq.broker.exchange import Claimed, Refused
    from streaq.broker.publish import Change
    from streaq.engine.attempt import Finished, Lease
    from streaq.engine.lanes import Lane
    from streaq.hooks import Dispatcher, Slot


_COUNTER: dict[type[Outcome], str] = {
    Failed: "failed",
    Retried: "retried",
    Aborted: "aborted",
    Returned: "relinquished",
    Forfeited: "fenced",
}


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
        self._events = Events(queue, worker_id)
        self._tallies = bool(hooks.on_starts or hooks.on_successes)
        self._slots: dict[str, Slot] = {
            "success": hooks.on_finish,
            "failed": hooks.on_fail,
            "retried": hooks.on_retry,
            "aborted": hooks.on_abort,
            "returned": hooks.on_return,
            "refused": hooks.on_refuse,
        }

    def starting(self, leases: Sequence[Lease]) -> None:
        """Attempts that begin now, all claimed by one exchange."""
        if not self._tallies:
            return
        waits: defaultdict[Lane, list[float]] = defaultdict(list)
        now_ms = leases[0].claimed.started_ms
        # Every attempt comes along here, and a call of ``max`` takes as long as all the rest.
        for lease in leases:
            c = lease.claimed
            made_ms, due_ms = c.created_ms, c.due_ms
            waited_s = (now_ms - (due_ms if due_ms > made_ms else made_ms)) / 1000  # noqa: FURB136
            if waited_s < 0.0:  # noqa: PLR1730
                waited_s = 0.0
            waits[lease.lane].append(waited_s)
            is_first = c.try_number == 1 and not c.first_due_ms
            lease.overdue_s = waited_s if is_first else overdue_s(c)
        if slot := self._hooks.on_starts:
            for lane, waits_s in waits.items():
                self._waiting.append((self._emit, slot, Starts(lane.name, tuple(waits_s))))

    def settled(self, finished: Iterable[Finished], codes: Iterable[int]) -> None:
        """The answer to settles: committed, or refused because the lease was lost."""
        slots = self._slots
        successes: defaultdict[Lane, list[Finished]] = defaultdict(list)
        for end, code in zip(finished, codes, strict=True):
            if code == FENCED:
                self.fenced(end)
                continue
            lease, _, outcome, ending, _ = end
            if type(outcome) is Succeeded:
                successes[lease.lane].append(end)
            else:
                self._count(_COUNTER[type(outcome)])
            if ending is not None and (slot := slots[ending.status]):
                self._waiting.append((self._emit, slot, ending))
        for lane, ends in successes.items():
            self._count("completed", len(ends))
            if slot := self._hooks.on_successes:
                durations_s = tuple([end.duration_s for end in ends])
                totals_s = tuple([end.lease.overdue_s + end.duration_s for end in ends])
                event = Successes(lane.name, durations_s, totals_s)
                self._waiting.append((self._emit, slot, event))

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
        if not self._hooks.on_fenced:
            return
        lease, _, outcome, ending, duration_s = finished
        if ending is None and type(outcome) is Succeeded:  # nobody watched, and it was well
            ending = self._events.end(lease, outcome, duration_s)
        if ending is not None:
            self._waiting.append((self._emit, self._hooks.on_fenced, Fence(ending)))

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

    def _count(self, name: str, many: int = 1) -> None:
        self._counters[name] = self._counters.get(name, 0) + many


def overdue_s(c: Claimed) -> float:
    """Seconds between when the task could first have run and the claim. Of a retry that does not
    know when that was, since it was created.
    """
    first_ms = c.first_due_ms or (c.created_ms if c.kind == "retry" else c.due_ms)
    return max(0, c.started_ms - max(c.created_ms, first_ms)) / 1000
