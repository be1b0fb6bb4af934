"""The endpoint: what it serves, to whom, and when it says 503."""

from __future__ import annotations

import gzip
import http.client
import logging
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from streaq.broker.inspect import PrioritySnapshot, QueueSnapshot
from streaq.engine.health import Health, Limits
from streaq.telemetry import names
from streaq.telemetry.cells import LocalStore
from streaq.telemetry.collector import collector_for
from streaq.telemetry.queue_metrics import QueueReader
from streaq.telemetry.server import HealthChecks, Server, start_server
from streaq.types import StreaqError

LIMITS = Limits(loop_s=10, redis_s=20, stall_s=30)


class Bench:
    """A server over one worker's health, a queue and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.healths = [Health(clock=lambda: self.now)]
        self.snapshot: Callable[[], QueueSnapshot] = lambda: self.queue(None)
        self.reader = QueueReader(self.read, 0, clock=lambda: self.now)
        checks = HealthChecks(lambda: self.healths, self.reader, LIMITS, ["normal"])
        self.registry = CollectorRegistry()
        collector_for(self.registry)
        self.server: Server = start_server(self.registry, checks)

    def read(self) -> QueueSnapshot:
        return self.snapshot()

    def queue(self, oldest_due_ms: int | None, priority: str = "normal") -> QueueSnapshot:
        depth = 0 if oldest_due_ms is None else 1
        found = PrioritySnapshot(priority, depth, 0, 0, 0, oldest_due_ms)
        return QueueSnapshot("shop", 1_000_000, [found])

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=5)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        connection.close()
        return answer.status, body.decode(), answer.headers


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.server.close()


def test_metrics_as_text(bench: Bench) -> None:
    status, body, headers = bench.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "# HELP streaq_tasks_started_total Attempts started" in body


def test_metrics_as_openmetrics(bench: Bench) -> None:
    status, body, headers = bench.get("/metrics", Accept="application/openmetrics-text")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_compressed_for_those_who_take_it(bench: Bench) -> None:
    _, body, headers = bench.get("/metrics", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert "streaq_build_info" in body


def test_head_has_no_body(bench: Bench) -> None:
    status, body, headers = bench.get("/livez", method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, "", "3")


def test_elsewhere_it_says_what_there_is(bench: Bench) -> None:
    status, body, _ = bench.get("/")
    assert status == 404
    assert "/metrics" in body


def test_a_slash_or_a_query_makes_no_difference(bench: Bench) -> None:
    assert bench.get("/livez/")[0] == 200
    assert bench.get("/metrics?x=1")[0] == 200


def test_without_checks_there_is_no_health() -> None:
    server = start_server(CollectorRegistry())
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/livez")
    assert connection.getresponse().status == 404
    connection.close()
    server.close()


def test_it_listens_on_loopback_unless_told(bench: Bench) -> None:
    assert bench.server._http.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StreaqError, match=rf"127.0.0.1:{port}.*--metrics-port"):
            start_server(CollectorRegistry(), port=port)


def test_closing_runs_what_was_asked_for_and_frees_the_port() -> None:
    server = start_server(CollectorRegistry())
    port, closed = server.port, list[int]()
    server.on_close(lambda: closed.append(1))
    server.close()
    assert closed == [1]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_before_the_start_it_lives_but_is_not_ready(bench: Bench) -> None:
    assert bench.get("/livez")[:2] == (200, "ok\n")
    assert bench.get("/readyz")[:2] == (503, "the worker has not started\n")


def test_a_started_worker_is_ready(bench: Bench) -> None:
    bench.healths[0].ready(4)
    assert bench.get("/livez")[:2] == (200, "ok\n")
    assert bench.get("/readyz")[:2] == (200, "ok\n")


def test_a_blocked_loop_is_neither_live_nor_ready(bench: Bench) -> None:
    bench.healths[0].ready(4)
    bench.now += 11
    expected = (503, "the event loop has not run for 11.0 s\n")
    assert bench.get("/livez")[:2] == expected
    assert bench.get("/readyz")[:2] == expected


def test_redis_gone_is_unready_at_once_and_dead_after_a_while(bench: Bench) -> None:
    health = bench.healths[0]
    health.ready(4)
    health.redis_lost()
    assert bench.get("/livez")[0] == 200
    assert bench.get("/readyz")[:2] == (503, "Redis is out of reach\n")
    bench.now += 21
    health.beat(0.5)
    assert bench.get("/livez")[:2] == (503, "Redis has been out of reach for 21.0 s\n")


def test_redis_gone_is_noticed_even_if_the_worker_does_not(bench: Bench) -> None:
    health = bench.healths[0]
    health.ready(4)

    def fail() -> QueueSnapshot:
        raise ConnectionError

    bench.snapshot = fail
    assert bench.get("/livez")[0] == 200
    bench.now += 21
    health.beat(0.5)
    assert bench.get("/livez")[:2] == (503, "Redis has not answered for 21.0 s\n")


def test_a_stuck_pump_while_work_is_due(bench: Bench) -> None:
    health = bench.healths[0]
    health.ready(4)
    bench.now += 31
    health.beat(0.5)
    assert bench.get("/livez")[0] == 200, "an empty queue is no reason"
    bench.snapshot = lambda: bench.queue(965_000, priority="other")
    assert bench.get("/livez")[0] == 200, "nor is work of a priority it does not serve"
    bench.snapshot = lambda: bench.queue(965_000)
    assert bench.get("/livez")[:2] == (
        503,
        "work has been due for 35.0 s and this worker takes none\n",
    )
    health.polled()
    assert bench.get("/livez")[0] == 200


def test_of_several_workers_one_that_is_unwell_is_enough(bench: Bench) -> None:
    bench.healths.append(Health(clock=lambda: bench.now))
    for health in bench.healths:
        health.ready(4)
    bench.now += 11
    bench.healths[0].beat(0.5)
    assert bench.get("/livez")[0] == 503
    bench.healths[1].beat(0.5)
    assert bench.get("/readyz")[0] == 200
    bench.healths[1].stopped()
    assert bench.get("/livez")[0] == 200
    assert bench.get("/readyz")[0] == 503


def test_no_worker_at_all_is_not_ready(bench: Bench) -> None:
    bench.healths.clear()
    assert bench.get("/livez")[0] == 200
    assert bench.get("/readyz")[:2] == (503, "no worker has started\n")


def test_scrapes_are_served_side_by_side(bench: Bench) -> None:
    """One that waits for Redis does not hold up the next."""
    store = LocalStore()
    place = store.allocate(names.TASKS_STARTED, ("shop", "charge", "normal"))
    collector_for(bench.registry).add(store.blocks)
    idle = http.client.HTTPConnection("127.0.0.1", bench.server.port, timeout=5)
    idle.connect()  # holds a thread, says nothing
    store.cells[place] = 7
    assert (
        'streaq_tasks_started_total{priority="normal",queue="shop",task="charge"} 7.0'
        in (bench.get("/metrics")[1])
    )
    idle.close()


# ------------------------------------------------------------------ clients that misbehave


class Page:
    """A collector whose page is as long as asked for, or that raises."""

    def __init__(self, length: int) -> None:
        self.length = length

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if not self.length:
            raise RuntimeError("a collector of the application's own")
        yield GaugeMetricFamily("long_page", "x" * self.length)


def connect(bench: Bench, request: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", bench.server.port), timeout=5)
    client.sendall(request)
    return client


def reset(client: socket.socket) -> None:
    """Close it with a reset instead of a goodbye."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def requests_under_way() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if "process_request_thread" in t.name]


def wait_until_served(bench: Bench) -> None:
    # Connections are accepted one after the other: once this one is answered, the threads of those
    # before it have been started.
    assert bench.get("/livez")[0] == 200
    for thread in requests_under_way():
        thread.join(5)
        assert not thread.is_alive()


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHo", GET, b"nonsense\r\n\r\n", GET * 9],
)
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_hangs_up_is_not_worth_a_word(
    bench: Bench,
    request_: bytes,
    leave: Callable[[socket.socket], None],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench.registry.register(Page(4_000_000))  # more than fits into the buffers of a socket
    client = connect(bench, request_)
    if request_.startswith(GET):
        assert client.recv(100)
    leave(client)
    wait_until_served(bench)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_slow_client_holds_up_nobody(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.registry.register(Page(4_000_000))
    slow = connect(bench, GET)
    assert slow.recv(100)
    began = time.monotonic()
    assert bench.get("/livez")[0] == 200
    assert "long_page" in bench.get("/metrics")[1]
    assert time.monotonic() - began < 4
    assert requests_under_way(), "the slow one still waits for its client"
    slow.close()
    wait_until_served(bench)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("host", "place"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_its_url_can_be_opened(host: str, place: str) -> None:
    server = start_server(CollectorRegistry(), host=host)
    try:
        assert server.url == f"http://{place}:{server.port}"
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as answer:
            assert answer.status == 200
        with pytest.raises(StreaqError) as e:
            start_server(CollectorRegistry(), host=host, port=server.port)
        assert f"on {place}:{server.port}: " in str(e.value)
    finally:
        server.close()


def test_many_may_knock_at_once(bench: Bench) -> None:
    """Those that find no room try again a second later, which is too late for a probe."""
    assert bench.server._http.request_queue_size == 128


def test_a_collector_that_raises_is_told_once_and_as_500(
    bench: Bench, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    page = Page(1)
    bench.registry.register(page)
    page.length = 0
    with caplog.at_level(logging.ERROR, "streaq"):
        status, body, _ = bench.get("/metrics")
    assert (status, body) == (500, "It failed; the log says why.\n")
    assert [record.message for record in caplog.records] == ["/metrics cannot be served"]
    assert bench.get("/livez")[0] == 200
    assert capfd.readouterr().err == ""
