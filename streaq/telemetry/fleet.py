"""Several worker processes behind one endpoint: ``streaq run --workers N``.

The parent makes a shared store for each child, and adds them up at the scrape. What a dead child
counted stays in the sums; its gauges vanish; nothing is ever on a disk.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from os import getpid
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from streaq.engine.health import Health, Limits
from streaq.telemetry.cells import Block
from streaq.telemetry.collector import blocks_of, collector_for
from streaq.telemetry.metrics import MAX_EXCEPTION_NAMES, MAX_TASK_NAMES
from streaq.telemetry.serve import reader_of, serve_queue
from streaq.telemetry.server import HealthChecks, Server, start_server
from streaq.telemetry.shared import STORE_VARIABLE, SharedStore

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from streaq.telemetry.queue_metrics import QueueReader
    from streaq.worker import Worker


class Member:
    """One child's place. Start the child with ``env`` and ``pass_fds``, then set ``pid``.

    Example::

        member = fleet.join()
        child = subprocess.Popen(command, env={**os.environ, **member.env},
                                 pass_fds=member.pass_fds)
        member.pid = child.pid
        child.wait()
        fleet.leave(member)
    """

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self.health = Health(store.cells)
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, once it has one; probes name it."""
        return self._pid

    @pid.setter
    def pid(self, pid: int) -> None:
        self._pid = pid
        self.health.whose = f"process {pid}"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that the child needs."""
        return {STORE_VARIABLE: f"{self.store.fd}:{getpid()}"}

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """File descriptors that the child needs."""
        return (self.store.fd,)


class Fleet:
    """The parent's side of ``--workers N``.

    :param worker: as imported in the parent; it is never run there, only its queue is read.
    :param limits: how long things may go wrong before ``/livez`` says so.
    :param expected: how many children are to run; 0 when they may end, as in burst mode.

    Example::

        fleet = Fleet(worker)
        server = fleet.serve(port=9100)
        members = [fleet.join() for _ in range(n)]   # see Member
    """

    def __init__(
        self, worker: Worker[Any] | None = None, limits: Limits | None = None, *, expected: int = 0
    ) -> None:
        self.registry = CollectorRegistry()
        self._limits = limits
        self._expected = expected
        self._priorities = worker.priorities if worker is not None else None
        self._reader: QueueReader | None = reader_of(worker) if worker is not None else None
        self._members: dict[Member, Callable[[], object]] = {}
        self._lock = threading.Lock()
        self._collector = collector_for(self.registry)
        telemetry = worker.telemetry if worker is not None else None
        self._collector.fold.allow(
            max_task_names=getattr(telemetry, "max_task_names", MAX_TASK_NAMES),
            max_exception_names=getattr(telemetry, "max_exception_names", MAX_EXCEPTION_NAMES),
        )
        self.registry.register(_ProcessSums(self._pids))

    def join(self) -> Member:
        """Make room for a child that is about to start."""
        member = Member(SharedStore.create())
        with self._lock:
            remove = self._collector.add(partial(_blocks, member))
            self._members[member] = remove
        return member

    def leave(self, member: Member) -> None:
        """A child is dead, of whatever cause. Its counts stay, its gauges and its memory go."""
        with self._lock:
            remove = self._members.pop(member)
        try:
            remove()
            self._collector.bury()
        finally:
            member.store.close()

    def serve(self, *, host: str = "127.0.0.1", port: int = 0) -> Server:
        """One ``/metrics``, ``/livez`` and ``/readyz`` for all children.

        ``/livez`` fails when any of them is unwell: replacing the whole is all that whoever asks
        can do. ``/readyz`` wants every one of them ready.

        :raises StreaqError: the address cannot be bound.
        """
        checks = HealthChecks(
            self._healths, self._reader, self._limits, self._priorities, expected=self._expected
        )
        server = start_server(self.registry, checks, host=host, port=port)
        if self._reader is not None:
            server.on_close(serve_queue(self.registry, self._reader))
        return server

    def _healths(self) -> Sequence[Health]:
        with self._lock:
            return [member.health for member in self._members]

    def _pids(self) -> list[int]:
        with self._lock:
            return [member.pid for member in self._members if member.pid is not None]


def _blocks(member: Member) -> Iterable[Block]:
    return blocks_of(member.store, member.health)


class _ProcessSums:
    """CPU, memory and open files of the parent and its children, added up."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._started_s = time.time()
        self._lock = threading.Lock()
        self._cpu_s = 0.0

    def describe(self) -> Iterator[Metric]:
        """What is collected, without values."""
        return iter(self.collect())

    def collect(self) -> list[Metric]:
        """Called by the registry at each scrape."""
        # Before those that live: who ends in between is counted a scrape late, never twice.
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = [self._of(pid) for pid in (getpid(), *self._pids())]
        families: list[Metric] = [
            GaugeMetricFamily(
                name,
                f"{what}, all processes together.",
                sum(values.get(name, 0.0) for values in found),
            )
            for name, what in _GAUGES.items()
        ]
        cpu_s = sum(values.get("process_cpu_seconds_total", 0.0) for values in found)
        families.append(
            CounterMetricFamily(
                "process_cpu_seconds_total",
                "CPU time used, all processes together.",
                self._most(cpu_s + reaped.ru_utime + reaped.ru_stime),
            )
        )
        families.append(
            GaugeMetricFamily(
                "process_start_time_seconds",
                "Unix time at which the parent began.",
                self._started_s,
            )
        )
        return families

    def _most(self, cpu_s: float) -> float:
        """What was told before, while it is more: a child that died during a scrape is missing."""
        with self._lock:
            self._cpu_s = max(self._cpu_s, cpu_s)
            return self._cpu_s

    @staticmethod
    def _of(pid: int) -> dict[str, float]:
        collector = ProcessCollector(pid=lambda: pid, registry=None)
        return {s.name: s.value for family in collector.collect() for s in family.samples}


_GAUGES = {
    "process_resident_memory_bytes": "Resident memory",
    "process_virtual_memory_bytes": "Virtual memory",
    "process_open_fds": "Open file descriptors",
}
