"""What the command line starts: a worker's endpoint, or a queue's alone.

``streaq run module:worker --metrics-port 9100`` calls ``serve_worker`` before the worker runs;
``streaq exporter module:worker`` calls ``serve_queue_only``; ``streaq run --workers N`` uses
``fleet.Fleet``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from prometheus_client import REGISTRY, CollectorRegistry

from streaq.broker.inspect import QueueSnapshot, parse_snapshot
from streaq.broker.keys import Keys
from streaq.broker.scripts import call_sync
from streaq.engine.health import Limits
from streaq.telemetry.collector import collector_for
from streaq.telemetry.queue_metrics import QueueReader
from streaq.telemetry.server import HealthChecks, Server, start_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from streaq.broker.connection import Connector, SyncClient
    from streaq.worker import Worker


class SnapshotCall:
    """Reads one queue from a thread, on a blocking connection that is opened when needed."""

    def __init__(self, connector: Connector, queue: str) -> None:
        self._connector = connector
        self._keys = Keys(queue)
        self._client: SyncClient | None = None

    def __call__(self) -> QueueSnapshot:
        """The queue now; any error of redis-py, or of opening the connection, comes through."""
        if self._client is None:
            self._client = self._connector.open_sync()
        try:
            raw = call_sync(self._client, self._keys.base, "snapshot", [])
        except BaseException:
            client, self._client = self._client, None
            client.close()
            raise
        return parse_snapshot(self._keys.queue, raw)


_readers: WeakValueDictionary[tuple[int, str], QueueReader] = WeakValueDictionary()
"""By connector, which its reader keeps alive, and queue: a sandbox lends a worker others."""
_readers_lock = threading.Lock()


def reader_of(worker: Worker[Any]) -> QueueReader:
    """Reads the queue of ``worker``, on a connection of its own: the same for all who ask, so that
    a scrape is one call however many pages show the queue.
    """
    connector, queue = worker.connector, worker.queue_name
    with _readers_lock:
        found = _readers.get((id(connector), queue))
        if found is None:
            found = QueueReader(SnapshotCall(connector, queue))
            _readers[id(connector), queue] = found
        return found


def serve_queue(registry: CollectorRegistry, reader: QueueReader) -> Callable[[], object]:
    """Add a queue's metrics to a registry; the answer takes them out again."""
    return collector_for(registry).add(reader.blocks)


def serve_worker(
    worker: Worker[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: Limits | None = None,
) -> Server:
    """Serve ``/metrics``, ``/livez`` and ``/readyz`` for a worker of this process.

    The metrics are those of the registry that the worker's telemetry counts in, and those of its
    queue. Start it before the worker, close it after.

    :param host: address to bind.
    :param port: 0 picks a free one.
    :param limits: how long things may go wrong before ``/livez`` says so.
    :raises StreaqError: the address cannot be bound.

    Example::

        server = serve_worker(worker, port=9100)
        try:
            worker.run_sync()
        finally:
            server.close()
    """
    registry = getattr(worker.telemetry, "registry", None) or REGISTRY
    reader = reader_of(worker)
    checks = HealthChecks(lambda: [worker.health], reader, limits, worker.priorities)
    server = start_server(registry, checks, host=host, port=port)
    server.on_close(serve_queue(registry, reader))
    return server


def serve_queue_only(worker: Worker[Any], *, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Serve the metrics of a worker's queue and nothing else; no worker need run.

    ``/livez`` and ``/readyz`` tell whether Redis answers.
    """
    registry = CollectorRegistry()
    reader = reader_of(worker)
    server = start_server(registry, _QueueChecks(reader), host=host, port=port)
    server.on_close(serve_queue(registry, reader))
    return server


class _QueueChecks(HealthChecks):
    """Health of an exporter: it is well while it can read."""

    def __init__(self, reader: QueueReader) -> None:
        super().__init__(list, reader)
        self._reader = reader

    def livez(self) -> list[str]:
        """An exporter is not to be restarted for the sake of Redis."""
        return []

    def readyz(self) -> list[str]:
        """Why there are no metrics now."""
        return ["the queue cannot be read"] if self._reader.read() is None else []
