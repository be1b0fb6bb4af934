"""One worker process, as ``streaq run`` starts it: ``python -m streaq.cli.child ORDER FD``.

FD is one end of a socket. The child writes ``ready`` to it, or ``failed`` and why; and when the
other end goes silent for good, its parent is dead, and it stops in good order instead of being
left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from streaq.cli.load import load_worker
from streaq.cli.order import Order
from streaq.cli.words import streaq_error
from streaq.hooks import Hook, WorkerEvent

if TYPE_CHECKING:
    from streaq.engine.health import Health
    from streaq.telemetry.otlp import Otlp
    from streaq.worker import Worker

FAILED_STATUS = 78
"""Exit status of a child that can't work and said why (``EX_CONFIG`` of sysexits.h)."""


class TellReady(Hook):
    """Tells the parent that the worker is about to claim tasks, and how it is from then on.

    :param health: of the worker that this process runs, whatever telemetry it has.
    """

    def __init__(self, line: socket.socket, health: Health) -> None:
        self._line = line
        self._health = health

    def on_worker_start(self, e: WorkerEvent) -> None:
        """Write the one word; the parent judges by the memory that they share."""
        from streaq.telemetry.shared import inherited_store

        store = inherited_store()
        if store is not None:
            self._health.keep_in(store.cells)
        with suppress(OSError):  # a dead parent is seen to by ``stop_with``
            self._line.sendall(b"ready\n")


def main() -> None:
    """Run the worker that the order names until a signal, or the end of the burst."""
    # Until the worker takes over, a signal ends the process without a traceback. Whoever started us
    # may have held signals back for itself, which is inherited.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    order, line = Order.loads(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    threading.Thread(target=stop_with, args=(line,), name="streaq-parent", daemon=True).start()
    try:
        _work(order, line)
    except Exception as e:
        problem = streaq_error(e)
        if problem is None:
            raise
        line.sendall(b"failed " + " ".join(str(problem).split()).encode() + b"\n")
        sys.exit(FAILED_STATUS)


def stop_with(line: socket.socket) -> None:
    """Wait for the parent to end, and stop this process in good order then."""
    with suppress(OSError):
        while line.recv(64):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _work(order: Order, line: socket.socket) -> None:
    worker = load_worker(order.path)
    from streaq.telemetry import configure_logging

    configure_logging(order.log_format, order.log_level)  # pyright: ignore[reportArgumentType]
    otlp = _configure_otlp(order, worker)
    worker.burst = order.burst
    worker.extra_hooks.append(TellReady(line, worker.health))
    try:
        worker.run_sync()
    finally:
        if otlp is not None:
            otlp.shutdown()


def _configure_otlp(order: Order, worker: Worker[Any]) -> Otlp | None:
    from streaq.telemetry import otlp

    if not (order.otlp or otlp.is_wanted()):
        return None
    # The variables alone may be meant for another program of the same environment.
    configured = otlp.configure_otlp(lenient=not order.otlp)
    configured.apply(worker)
    return configured


if __name__ == "__main__":
    main()
