"""What one worker holds and what it has room for: bookkeeping without I/O.

Slots are counted here, and only here: a task that runs has one, and so has everything that was
asked for and may still come. So a worker with two exchanges under way never holds more than fits.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from streaq.broker.exchange import Claimed, Reply, Request, Reserved
from streaq.engine.attempt import Finished, Lease
from streaq.engine.outcome import Cause

if TYPE_CHECKING:
    from streaq.engine.settings import Settings

_MOST_DOOMED = 1000
"""Aborts that are remembered while answers are under way."""
_ODD = "13579bdf"
_FLAGS_END = 54
"""Where the last digit of the flags of a traceparent is: odd when it is sampled."""


def is_sampled(traceparent: str) -> bool:
    """Whether somebody keeps the trace."""
    return len(traceparent) > _FLAGS_END and traceparent[_FLAGS_END] in _ODD


class Flight:
    """One exchange under way, and the ends of attempts that it settles."""

    __slots__ = ("finished", "request")

    def __init__(self, request: Request, finished: list[Finished]) -> None:
        self.request = request
        self.finished = finished

    def reduce(self) -> None:
        """Keep what is safe to repeat when it is not known whether this arrived: claim later."""
        self.request = Request(self.request.settles, (), 0, 0, False, True)


class Slots:
    """The slots of one worker, and its appetite for more."""

    def __init__(self, settings: Settings) -> None:
        self._concurrency = settings.concurrency
        self._prefetch = settings.prefetch
        self.running: dict[str, Lease] = {}
        self.finished: list[Finished] = []
        self.reserved: deque[Reserved] = deque()
        self.flights: list[Flight] = []
        self.hungry = True
        """Whether the queue may have something for a free slot."""
        self.reclaim = True
        """Whether somebody may have left messages to others."""
        self.reading = False
        """Whether a blocking read is under way; what it brings has a slot."""
        self.draining = False
        self._doomed: dict[str, Cause] = {}
        self.resent = False
        """Whether what finished may have been settled before, in an answer that was lost."""

    def free(self) -> int:
        """Slots that neither run a task nor wait for one that was asked for."""
        asked = sum(f.request.want + len(f.request.starts) for f in self.flights)
        return self._concurrency - len(self.running) - asked

    def hold(self, lease: Lease) -> bool:
        """Give it the slot that was asked for; False when nothing is to be started any more."""
        task_id = lease.claimed.task_id
        if before := self.running.get(task_id):
            before.cancel(Cause.LOST)  # this process was paused, and reclaimed from itself
        if not self.draining:
            self.running.pop(task_id, None)  # the oldest is the first
            self.running[task_id] = lease
            if self._doomed and (cause := self._doomed.pop(task_id, None)):
                lease.cancel(cause)
        return not self.draining

    def stop(self, task_id: str, cause: Cause) -> None:
        """Cancel this attempt. The word may overtake the answer that brings it, since they come by
        different connections: then it is cancelled as it begins.
        """
        if lease := self.running.get(task_id):
            lease.cancel(cause)
        elif self.flights and len(self._doomed) < _MOST_DOOMED:
            self._doomed[task_id] = cause

    def oldest_ms(self) -> int:
        """When the oldest attempt that runs was started; 0 when none runs."""
        oldest = next(iter(self.running.values()), None)
        return oldest.claimed.started_ms if oldest is not None else 0

    def is_crowded(self) -> bool:
        """Whether so much finished that it is worth an exchange beside the one under way."""
        return self._concurrency >= 8 and len(self.finished) * 4 >= self._concurrency  # noqa: PLR2004

    def depart(self, *, share: bool = False) -> Flight | None:
        """What to say now, noted as under way; None when there is nothing to say.

        :param share: leave half to an exchange that is to follow at once.
        """
        if self._doomed and not self.flights:
            self._doomed.clear()  # no answer is left that could bring them
        finished = self.finished
        self.finished = []
        half = self._concurrency // 2
        share = share and len(finished) > half
        if share:
            finished, self.finished = finished[:half], finished[half:]
        room = 0 if self.draining else self.free()
        if share:
            room = min(room, half)
        starts = [self.reserved.popleft() for _ in range(min(room, len(self.reserved)))]
        room -= len(starts)
        want = room - 1 if self.reading and room and not self.reclaim else room
        reserve = self._to_reserve()
        hungry = (want or reserve) and (self.hungry or self.reclaim)
        if not (finished or starts or hungry):
            return None
        reclaim = self.reclaim and want > 0
        if reclaim:
            self.reclaim = False
        # What a blocking read waits for is its own to bring: else a later message could overtake.
        fresh = not (reclaim and self.reading)
        settles = [f.settle for f in finished if f.settle is not None]
        request = Request(settles, starts, want, reserve, reclaim, self.resent, fresh)
        self.resent = False
        flight = Flight(request, finished)
        self.flights.append(flight)
        return flight

    def _to_reserve(self) -> int:
        if self.draining or not self._prefetch:
            return 0
        coming = len(self.reserved) + sum(f.request.reserve for f in self.flights)
        return max(0, self._prefetch - coming)

    def land(self, flight: Flight) -> list[Finished]:
        """Its answer came: what was settled by it."""
        if flight in self.flights:
            self.flights.remove(flight)
        return flight.finished

    def turn_back(self, flight: Flight, *, refused: bool = False) -> None:
        """No answer came: what it was to settle goes with the next, and what it was to start may
        run already, unheard.

        :param refused: an answer did come: nothing was done, what it was to start is still held.
        """
        if flight not in self.flights:
            return
        self.flights.remove(flight)
        if refused:
            self.reserved.extendleft(reversed(flight.request.starts))
        self.finished[:0] = flight.finished
        if flight.request.reclaim:
            self.reclaim = True
        self.hungry = self.resent = True

    @staticmethod
    def _held(lease: Lease) -> tuple[str, bytes, str, str, str, str]:
        c, function = lease.claimed, lease.function
        lock = function.name if "u" in function.flags else ""
        return c.task_id, c.message_id, c.priority, str(c.try_number), lock, lease.trace

    def surplus(self) -> list[Reserved]:
        """Messages there is no room for (a read and a reclaim came at once), taken out."""
        keep = 0 if self.draining else self.free() + self._prefetch
        return [self.reserved.pop() for _ in range(max(0, len(self.reserved) - keep))]

    def learn(self, request: Request, reply: Reply) -> None:
        """What an answer says of the queue."""
        self.reserved.extend(reply.reserved)
        self.reclaim = self.reclaim or reply.more
        if request.want or request.reserve:
            self.hungry = not reply.short

    def is_empty_after(self, reply: Reply) -> bool:
        """Whether nothing is left, here or in the queue."""
        nothing_came = not (reply.claimed or reply.refused or reply.reserved)
        return reply.short and nothing_came and self.is_idle and not self.reclaim

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, is to be settled or started, or was asked for."""
        return not (self.running or self.finished or self.reserved or self.flights)

    def held(self) -> list[tuple[str, bytes, str, str, str, str]]:
        """Every message whose lease is ours: id, message, priority, try, lock and trace. Safe to
        call from the lease's thread.
        """
        leases = [*list(self.running.values())]
        ended = list(self.finished)
        for flight in list(self.flights):
            ended += flight.finished
        leases += [f.lease for f in ended if f.settle]
        found = [self._held(lease) for lease in leases]
        reserved = list(self.reserved)
        return found + [(r.task_id, r.message_id, r.priority, "", "", "") for r in reserved]

    def traced(self) -> list[tuple[str, bytes, str, str, str, str]]:
        """Of what runs now, that which is traced and sampled; as ``held``. Safe to call from the
        lease's thread.
        """
        leases = list(self.running.values())
        return [self._held(lease) for lease in leases if is_sampled(lease.trace)]

    def known(self, *came: Claimed | Reserved) -> list[tuple[str, bytes]]:
        """Priority and message of all that is held, and of what came just now."""
        return [(held[2], held[1]) for held in (*self.held(), *came)]
