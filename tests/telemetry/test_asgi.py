"""``/metrics`` mounted in somebody's web app."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from streaq.telemetry import metrics_app
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def ask(app: Any, accept: str = "", kind: str = "http") -> tuple[int, dict[str, str], str]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("there is nothing to receive")

    scope = {"type": kind, "headers": [(b"accept", accept.encode())]}
    await app(scope, receive, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, body["body"].decode()


async def test_it_serves_the_registry_in_either_format() -> None:
    registry = CollectorRegistry()
    Counter("mine", "Mine.", registry=registry).inc(3)
    app = metrics_app(registry=registry)
    status, headers, body = await ask(app)
    assert (status, int(headers["content-length"])) == (200, len(body))
    assert "mine_total 3.0" in body
    _, headers, body = await ask(app, "application/openmetrics-text")
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


async def test_it_is_for_http_only() -> None:
    with pytest.raises(RuntimeError, match="websocket"):
        await ask(metrics_app(registry=CollectorRegistry()), kind="websocket")


async def test_with_a_worker_it_also_serves_the_queue(make_worker: MakeWorker) -> None:
    worker = make_worker()
    app = metrics_app(worker, registry=CollectorRegistry())
    async with running(worker):
        _, _, body = await ask(app)
    assert f'streaq_queue_depth{{priority="normal",queue="{worker.queue_name}"}} 0.0' in body
