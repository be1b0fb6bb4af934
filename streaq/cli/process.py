"""One worker process as its parent sees it: a process, and a socket that it says a few words on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streaq.cli.order import Order
    from streaq.telemetry.fleet import Fleet, Member


class Child:
    """A worker process that was started.

    :param line: our end of the socket.
    :param member: its place in the fleet, when metrics are served.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], line: socket.socket, member: Member | None
    ) -> None:
        self.process = process
        self.line = line
        self.member = member
        self.is_ready = False
        self.failure = ""
        """Why it can't work, in its own words."""
        self.is_deaf = False
        """Set when it closed its end."""
        self._heard = b""
        self._began = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def lived_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    def stop(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended. SIGINT becomes SIGTERM while it is still starting,
        where Python would make a traceback of it.
        """
        is_early = number is signal.SIGINT and not self.is_ready
        self.process.send_signal(signal.SIGTERM if is_early else number)

    def listen(self) -> None:
        """Read what it has said so far; never blocks."""
        while not self.is_deaf:
            try:
                said = self.line.recv(4096)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                said = b""
            self.is_deaf = not said
            self._heard += said
        *lines, self._heard = self._heard.split(b"\n")
        for text in lines:
            word, _, rest = text.decode("utf-8", "replace").partition(" ")
            if word == "ready":
                self.is_ready = True
            elif word == "failed":
                self.failure = rest

    def close(self) -> None:
        """Let go of the socket, after its end."""
        self.line.close()


def start_child(order: Order, fleet: Fleet | None) -> Child:
    """Start one worker process.

    It has a process group of its own, so that Ctrl-C on a terminal reaches it through its parent,
    and only once.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    member = fleet.join() if fleet is not None else None
    fds = (theirs.fileno(), *(member.pass_fds if member is not None else ()))
    command = [sys.executable, "-m", "streaq.cli.child", order.dumps(), str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env={**os.environ, **(member.env if member is not None else {})},
            process_group=0,
        )
    if member is not None:
        member.pid = process.pid
    return Child(process, ours, member)
