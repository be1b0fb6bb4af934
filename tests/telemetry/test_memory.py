"""A worker with everything on keeps no memory for the tasks that are gone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from benchmarks.otlp_sink import count_spans
from streaq import Worker
from tests.servers import Server, binaries, free_port
from tests.telemetry.plant import Plant, process, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

EARLY, MANY = 10_000, 50_000
MORE = 1.10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Receiver:
    """Where it listens, and how many spans it got."""

    url = ""
    spans = 0


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Takes OTLP over HTTP, and counts it."""
    got = Receiver()

    class Take(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            got.spans += count_spans(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    # One at a time, so that none is counted wrongly.
    with HTTPServer(("127.0.0.1", 0), Take) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        got.url = f"http://127.0.0.1:{http.server_port}"
        yield got
        http.shutdown()


class Bench:
    """`streaq run` with logs to a file, metrics served, and every span exported."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        server = stack.enter_context(Server("valkey" if "valkey" in binaries() else "redis-7"))
        self.port = free_port()
        self.received = stack.enter_context(receiver())
        self.run = stack.enter_context(
            process(
                sys.executable, "-m", "streaq", "run", "tests.telemetry.workshop:worker",
                "--otlp", "--log-format", "json", "--metrics-port", str(self.port),
                log=folder / "worker.log",
                WORKSHOP_URL=server.url,
                WORKSHOP_QUEUE="workshop",
                OTEL_EXPORTER_OTLP_ENDPOINT=self.received.url,
                OTEL_TRACES_SAMPLER="always_on",
            )
        )  # fmt: skip
        self.worker = Worker(server.url, queue_name="workshop", telemetry=False)
        wait_for(lambda: self.get("/readyz")[0] == 200, 30)

    get = Plant.get
    values = Plant.values

    def done(self) -> float:
        return self.values("streaq_tasks_finished_total", "task").get("ok", 0)

    def resident(self) -> int:
        """Bytes, of the command and of all its children."""
        parent = psutil.Process(self.run.pid)
        return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))


async def test_memory_stays_as_it_is(tmp_path: Path) -> None:
    """Compared at rest: when all is done, and every span delivered. The bar is for 200,000 tasks:
    `python -m benchmarks.telemetry` runs those.
    """
    with ExitStack() as stack:
        bench = Bench(stack, tmp_path)
        async with bench.worker as worker:
            for count in (EARLY, MANY):
                await worker.enqueue_many([worker.enqueue_unsafe("ok", 1) for _ in range(count)])
                total = EARLY if count == EARLY else EARLY + MANY
                wait_for(lambda total=total: bench.done() == total, 100)
                wait_for(lambda total=total: bench.received.spans >= total, 100)
                if count == EARLY:
                    early = bench.resident()
        late = bench.resident()
    print(f"{early / 2**20:.1f} MB, then {late / 2**20:.1f} MB")
    assert late < early * MORE
