"""A pump on a server that the test plays, and the tasks and ends that go with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from streaq.broker.connection import Backoff
from streaq.broker.exchange import Claimed, End
from streaq.engine.attempt import Finished, Lease
from streaq.engine.health import Health
from streaq.engine.outcome import Succeeded
from streaq.engine.pump import Pump
from streaq.hooks import Dispatcher


def make_pump(
    broker: Any, exchange: Any, ledger: Any, *, concurrency: int, burst: bool = False
) -> Pump:
    """It knows one function, ``fn``, and loses no time when the connection is lost."""
    function = SimpleNamespace(name="fn", flags="", task=None)
    catalog: Any = SimpleNamespace(functions={"fn": function}, digest="d", options={})
    settings: Any = SimpleNamespace(
        concurrency=concurrency, prefetch=0, queue="q", worker_id="w", consumer="w:1",
        priorities=("default",), lease_ms=1000, burst=burst,
    )  # fmt: skip
    pump = Pump(broker, exchange, catalog, Dispatcher(), Health(), settings, ledger)
    pump._contact.backoff = Backoff(0, 0)
    return pump


def claim(message: bytes, try_number: int = 1) -> Claimed:
    return Claimed(
        f"id-{message.decode()}", message, "default", try_number, "fn", b"", b"", 1, 1,
        "immediate", b"", "", "", "", "", 1,
    )  # fmt: skip


def finished(lease: Lease, *, lost: bool = False) -> Finished:
    """The attempt succeeded, or ended after its lease was lost."""
    c = lease.claimed
    end = End(c.task_id, c.message_id, c.priority, c.try_number, "0", "", b"")
    return Finished(lease, None if lost else end, Succeeded(None, b""), None, 0.0)
