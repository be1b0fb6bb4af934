"""A worker with everything on keeps no memory for the tasks that are gone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from streaq import Worker
from tests.servers import Server, binaries, free_port
from tests.telemetry.plant import Plant, process, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

EARLY, MANY = 10_000, 50_000
MORE = 1.10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def receiver() -> Iterator[str]:
    """Takes OTLP over HTTP, and forgets it."""

    class Take(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    with ThreadingHTTPServer(("127.0.0.1", 0), Take) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


class Bench:
    """`streaq run` with logs to a file, metrics served, and every span exported."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        server = stack.enter_context(Server("valkey" if "valkey" in binaries() else "redis-7"))
        self.port = free_port()
        self.run = stack.enter_context(
            process(
                sys.executable, "-m", "streaq", "run", "tests.telemetry.workshop:worker",
                "--otlp", "--log-format", "json", "--metrics-port", str(self.port),
                log=folder / "worker.log",
                WORKSHOP_URL=server.url,
                WORKSHOP_QUEUE="workshop",
                OTEL_EXPORTER_OTLP_ENDPOINT=stack.enter_context(receiver()),
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
    """The bar is for 200,000 tasks: `python -m benchmarks.telemetry` runs those."""
    with ExitStack() as stack:
        bench = Bench(stack, tmp_path)
        async with bench.worker as worker:
            for count in (EARLY, MANY):
                await worker.enqueue_many([worker.enqueue_unsafe("ok", 1) for _ in range(count)])
                total = EARLY if count == EARLY else EARLY + MANY
                wait_for(lambda total=total: bench.done() == total, 100)
                if count == EARLY:
                    early = bench.resident()
        late = bench.resident()
    print(f"{early / 2**20:.1f} MB, then {late / 2**20:.1f} MB")
    assert late < early * MORE
