"""``/metrics`` mounted in somebody's web app."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from streaq.broker.inspect import QueueSnapshot
from streaq.telemetry import metrics_app
from streaq.telemetry.serve import SnapshotCall
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def ask(
    app: Any, accept: str = "", kind: str = "http", method: str = "GET", encoding: str = "identity"
) -> tuple[int, dict[str, str], str]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("there is nothing to receive")

    asked = [(b"accept", accept.encode()), (b"accept-encoding", encoding.encode())]
    scope = {"type": kind, "method": method, "headers": asked}
    await app(scope, receive, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    raw = body["body"]
    if raw and headers.get("content-encoding") == "gzip":
        assert int(headers["content-length"]) == len(raw)
        raw = gzip.decompress(raw)
    return start["status"], headers, raw.decode()


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


async def test_it_packs_the_page_and_sends_none_to_those_who_want_its_head() -> None:
    registry = CollectorRegistry()
    Counter("mine", "Mine.", registry=registry).inc(3)
    app = metrics_app(registry=registry)
    _, plain, body = await ask(app)
    assert "content-encoding" not in plain
    _, headers, unpacked = await ask(app, encoding="gzip, deflate")
    assert headers["content-encoding"] == "gzip"
    assert unpacked == body
    status, headers, nothing = await ask(app, method="HEAD")
    assert (status, headers, nothing) == (200, plain, "")


async def test_two_apps_of_one_worker_ask_redis_once(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, registry = make_worker(), CollectorRegistry()
    apps = [metrics_app(worker, registry=registry) for _ in range(2)]
    calls: list[SnapshotCall] = []
    read = SnapshotCall.__call__

    def counted(self: SnapshotCall) -> QueueSnapshot:
        calls.append(self)
        return read(self)

    monkeypatch.setattr(SnapshotCall, "__call__", counted)
    async with running(worker):
        for app in apps:
            _, _, body = await ask(app)
            assert "streaq_queue_workers{" in body
    assert len(calls) == 1


async def test_it_is_for_http_only() -> None:
    with pytest.raises(RuntimeError, match="websocket"):
        await ask(metrics_app(registry=CollectorRegistry()), kind="websocket")


async def test_with_a_worker_it_also_serves_the_queue(make_worker: MakeWorker) -> None:
    worker = make_worker()
    app = metrics_app(worker, registry=CollectorRegistry())
    async with running(worker):
        _, _, body = await ask(app)
    assert f'streaq_queue_depth{{priority="normal",queue="{worker.queue_name}"}} 0.0' in body
