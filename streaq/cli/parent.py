"""The parent of the worker processes: starts them, starts them again when they die, passes signals
on, and ends when they have.

It sleeps in one ``select`` call: signals, words from the children, changed files and the time of
the next restart wake it up.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from streaq.cli.process import Child, start_child
from streaq.cli.words import complain, plural

if TYPE_CHECKING:
    from types import FrameType

    from streaq.cli.order import Order
    from streaq.telemetry.fleet import Fleet

logger = logging.getLogger("streaq.run")

FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
SETTLED_S: Final = 10.0
"""A worker that lived so long did not die of the cause of the deaths before it."""
SIGNALS_UNTIL_KILL: Final = 3


class Slot:
    """The place of one worker process, through all its lives."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.restart_at: float | None = 0.0
        """When to start the next, by the monotonic clock; None: not at all."""
        self.delay_s = FIRST_DELAY_S

    def restart_later(self, lived_s: float) -> float:
        """Plan the next life, later with each short one before it; how much later."""
        if lived_s >= SETTLED_S:
            self.delay_s = FIRST_DELAY_S
        delay_s, self.delay_s = self.delay_s, min(self.delay_s * 2, LONGEST_DELAY_S)
        self.restart_at = time.monotonic() + delay_s
        return delay_s


class Parent:
    """Keeps ``count`` worker processes running.

    :param order: what each is to do.
    :param fleet: where their metrics are added up, if they are served.
    :param reload: whether ``changed`` will be called, and a worker that can't start is to wait for
        that.
    :param renew: whether a change ends all, so that the parent can begin anew as well.

    Example::

        status = Parent(Order("shop:worker"), count=4).run()
    """

    def __init__(
        self,
        order: Order,
        count: int,
        *,
        fleet: Fleet | None = None,
        reload: bool = False,
        renew: bool = False,
    ) -> None:
        self._order = order
        self._slots = [Slot() for _ in range(count)]
        self._fleet = fleet
        self._reload = reload
        self._renew = renew
        self.is_outdated = False
        """Set when a change has ended it, as ``renew`` wants."""
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_end = socket.socketpair()
        self._signals = 0
        self._reloading = False
        self._was_ready = False
        self._status = 0

    def run(self) -> int:
        """Until a signal, or until every worker has done its burst.

        :returns: the exit status.
        """
        with self._attending():
            while self._has_work():
                self._start_due()
                for key, _ in self._selector.select(self._until_next_start()):
                    act: Callable[[], None] = key.data
                    act()
                self._reap()
        return self._status

    def _has_work(self) -> bool:
        if self._reload and not (self._signals or self.is_outdated):
            return True
        return any(s.child is not None or s.restart_at is not None for s in self._slots)

    def changed(self) -> None:
        """A file has changed: start afresh. Safe in any thread."""
        self._bell_end.send(b"\0")

    # ------------------------------------------------------------------ what wakes it up

    @contextmanager
    def _attending(self) -> Generator[None]:
        for end in (self._bell, self._bell_end):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, self._on_bell)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        # Their numbers are written to the bell by the interpreter itself.
        before = {number: signal.signal(number, _leave_to_bell) for number in numbers}
        waker = signal.set_wakeup_fd(self._bell_end.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._bell.close()
            self._bell_end.close()

    def _on_bell(self) -> None:
        for number in self._bell.recv(4096):
            if number == 0:
                self._start_afresh()
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._on_signal(signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        running = sum(slot.child is not None for slot in self._slots)
        does = ("stopping", "cutting the grace period of", "killing")[min(self._signals, 2)]
        logger.info("received %s: %s %s", number.name, does, plural(running, "worker"))
        self._stop(number)

    def _stop(self, number: signal.Signals) -> None:
        """The first asks workers to finish what runs, the second not to, the third insists."""
        self._signals += 1
        for slot in self._slots:
            slot.restart_at = None
            if slot.child is not None:
                slot.child.stop(number if self._signals < SIGNALS_UNTIL_KILL else signal.SIGKILL)

    def _start_afresh(self) -> None:
        if self._signals or self._reloading:
            return
        logger.info("files have changed: starting afresh")
        self._reloading = True
        for slot in self._slots:
            if slot.child is not None:
                slot.child.stop(signal.SIGTERM)
        self._end_of_reload()

    # ------------------------------------------------------------------ lives and deaths

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.restart_at is not None and slot.restart_at <= now and slot.child is None:
                slot.child = start_child(self._order, self._fleet)
                slot.restart_at = None
                self._selector.register(slot.child.line, selectors.EVENT_READ, slot.child.listen)

    def _until_next_start(self) -> float | None:
        times = [slot.restart_at for slot in self._slots if slot.restart_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _reap(self) -> None:
        for slot in self._slots:
            child = slot.child
            if child is None:
                continue
            if child.is_deaf:
                self._ignore(child)
            status = child.process.poll()
            if status is None:
                self._was_ready = self._was_ready or child.is_ready
                continue
            self._bury(slot, child, status)
        self._end_of_reload()

    def _bury(self, slot: Slot, child: Child, status: int) -> None:
        """A worker has ended: decide what is next."""
        child.listen()
        self._ignore(child)
        child.close()
        slot.child = None
        if self._fleet is not None and child.member is not None:
            self._fleet.leave(child.member)
        if self._signals or self._reloading or (status == 0 and self._order.burst):
            return
        if child.failure:
            self._on_failure(slot, child)
            return
        delay_s = slot.restart_later(child.lived_s)
        logger.warning(
            "worker process %d %s; another starts in %.1f s", child.pid, _how(status), delay_s
        )

    def _ignore(self, child: Child) -> None:
        if child.line in self._selector.get_map():
            self._selector.unregister(child.line)

    def _on_failure(self, slot: Slot, child: Child) -> None:
        """It said itself why it can't work: at the start that ends all, later it is waited out."""
        if self._reload:
            complain(child.failure)
            logger.info("waiting for files to change")
        elif self._was_ready or child.is_ready:
            delay_s = slot.restart_later(child.lived_s)
            logger.error("%s; trying again in %.1f s", child.failure, delay_s)
        elif not self._status:
            complain(child.failure)
            self._status = 1
            self._stop(signal.SIGTERM)

    def _end_of_reload(self) -> None:
        if self._reloading and all(slot.child is None for slot in self._slots):
            self._reloading = False
            self.is_outdated = self._renew and not self._signals
            for slot in self._slots:
                slot.delay_s = FIRST_DELAY_S
                slot.restart_at = None if self._signals or self.is_outdated else 0.0


def _leave_to_bell(number: int, frame: FrameType | None) -> None:
    """A handler that only has to be there."""


def _how(status: int) -> str:
    """How a process ended, from its exit status."""
    if status >= 0:
        return f"ended by itself (status {status})"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    dumped = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{dumped}"


def is_supported() -> bool:
    """Whether this system has what the parent is built on."""
    return os.name == "posix"
