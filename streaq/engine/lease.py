"""Keeps the leases of running tasks, and the worker's health record, from a thread.

A thread with a client of its own goes on while the event loop is busy, so a task that hogs the
loop does not lose its lease, or make the other tasks lose theirs. But a loop that has been silent
for ten leases is taken for dead, and its tasks are let go.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from streaq.broker.errors import RedisError
from streaq.broker.scripts import Arg, call_sync
from streaq.engine.slots import is_sampled

if TYPE_CHECKING:
    from streaq.broker.connection import Connector, SyncClient
    from streaq.engine.health import Health
    from streaq.engine.settings import Settings

logger = logging.getLogger("streaq")

Held = tuple[str, bytes, str, str, str, str]
LostLease = tuple[str, str]
"""Task id and try; no try for a reserved message."""

DEAD_AFTER_LEASES = 10
TELL_TRACES_EVERY_S = 0.05
"""An attempt's trace is in Redis once it has run for twice this time, at the latest."""


class Leases:
    """Renews leases every quarter of ``idle_timeout``.

    :param held: what to renew; called from the thread.
    :param running: of that, the attempts that run and are traced; called from the thread.
    :param functions: names the worker can run, for its health record.
    :param crons: of those, the ones that have a timetable in the code.
    :param tell: called from the thread with the lost leases, the ids that are to stop, and
        1 when the server forgot the worker's functions (else 0).
    """

    def __init__(
        self,
        connector: Connector,
        base: str,
        settings: Settings,
        digest: str,
        health: Health,
        *,
        held: Callable[[], list[Held]],
        running: Callable[[], list[Held]],
        functions: Sequence[str],
        crons: Sequence[str],
        tell: Callable[[list[LostLease], list[str], int], None],
    ) -> None:
        self._connector = connector
        self._base = base
        self._settings = settings
        self._digest = digest
        self._health = health
        self._held = held
        self._running = running
        self._begun = False
        self._soon = False
        self._new: set[str] = set()
        self._told: set[str] = set()
        self._functions = list(functions)
        self._crons = list(crons)
        self._tell = tell
        self._started_ms = round(time.time() * 1000)
        self._stop = threading.Event()
        self._now = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streaq-leases", daemon=True)

    def start(self) -> None:
        """Begin to renew; the health record appears at once."""
        self._thread.start()

    def renew_soon(self) -> None:
        """Renew now instead of at the next interval. Safe in any thread."""
        self._soon = True
        self._now.set()

    def traced(self, traceparent: str) -> None:
        """An attempt began that has this trace. Should this process be killed, the attempt after it
        links to it: Redis is told a moment later, of all that then run still, in one call.
        """
        if not self._begun and is_sampled(traceparent):
            self._begun = True
            self._now.set()

    def stop(self) -> None:
        """Stop renewing, and wait for the thread to end."""
        self._stop.set()
        self._now.set()
        self._thread.join()

    def _run(self) -> None:
        interval_s = self._settings.lease_ms / 4000
        client: SyncClient | None = None
        while not self._stop.is_set():
            self._soon = False
            try:
                client = client or self._connector.open_sync()
                self._renew(client)
                self._rest(client, time.monotonic() + interval_s)
            except (RedisError, OSError) as e:
                logger.debug("leases not renewed: %s", e)
                client = self._reopen(client)
                self._stop.wait(min(1.0, interval_s / 4))
                continue
            except Exception:
                logger.exception("renewing leases failed")
                self._stop.wait(interval_s)
        if client is not None:
            client.close()

    def _reopen(self, client: SyncClient | None) -> None:
        if client is not None:
            client.close()

    def _rest(self, client: SyncClient, until: float) -> None:
        """Until it is time to renew again, or ``renew_soon``; traces are told meanwhile."""
        while not (self._soon or self._stop.is_set()):
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            if self._begun:
                if not self._stop.wait(TELL_TRACES_EVERY_S):
                    self._tell_traces(client)
            else:
                self._now.wait(left_s)
            self._now.clear()

    def _tell_traces(self, client: SyncClient) -> None:
        """Of attempts that run since the last time this was called or longer: most have ended
        before, and cost nothing.
        """
        self._begun = False
        traced = {lease[5]: lease for lease in self._running()}
        self._told &= traced.keys()
        new = traced.keys() - self._told
        ripe = new & self._new
        self._new = new - ripe
        if self._new:
            self._begun = True
        if ripe:
            self._renew(client, [traced[trace] for trace in ripe])
            self._told |= ripe

    def _renew(self, client: SyncClient, only: Sequence[Held] | None = None) -> None:
        settings = self._settings
        held = [] if self._loop_is_dead() else self._held()
        leases = held if only is None or not held else only
        args: list[Arg] = [
            settings.consumer, settings.lease_ms, self._digest, self._record(held),
            len(settings.priorities), *settings.priorities, len(leases),
        ]  # fmt: skip
        for lease in leases:
            args += lease
        _, lost, stop, gone = call_sync(client, self._base, "renew", args)
        if lost or stop or gone:
            leases = [(task_id.decode(), try_number.decode()) for task_id, try_number in lost]
            self._tell(leases, [task_id.decode() for task_id in stop], gone)

    def _loop_is_dead(self) -> bool:
        silent_s = self._health.silent_s
        if silent_s * 1000 < self._settings.lease_ms * DEAD_AFTER_LEASES:
            return False
        logger.error("the event loop has been silent for %.0f s: leases are let go", silent_s)
        return True

    def _record(self, held: Sequence[Held]) -> str:
        settings = self._settings
        running = sum(1 for lease in held if lease[3])
        record: dict[str, Any] = {
            "id": settings.worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_ms": self._started_ms,
            "concurrency": settings.concurrency,
            "running": running,
            "reserved": len(held) - running,
            "priorities": settings.priorities,
            "functions": self._functions,
            "crons": self._crons,
        }
        return json.dumps(record, separators=(",", ":"))
