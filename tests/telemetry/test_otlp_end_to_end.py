"""A producer process and a worker process, one trace, through real OTLP receivers."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers import Server, binaries, free_port
from tests.telemetry.plant import need, process, wait_for

pytestmark = pytest.mark.timeout(120)

PRODUCER = """
import anyio
from opentelemetry import trace
from streaq.telemetry.otlp import configure_otlp

otlp = configure_otlp()
from tests.telemetry.workshop import dies, ok, plus, worker
otlp.apply(worker)

async def main() -> None:
    async with worker:
        with trace.get_tracer("web").start_as_current_span("request"):
            task = await (ok.enqueue(1) | plus)
            killer = await dies.enqueue()
        assert (await task.result(20)).result == 2
        assert (await killer.result(30)).tries == 2

anyio.run(main)
otlp.shutdown()
"""


class Span(NamedTuple):
    """What both receivers tell of a span."""

    trace: str
    id: str
    parent: str
    name: str


class Receiver(NamedTuple):
    """A running receiver: where, how, and what it got."""

    endpoint: str
    protocol: str
    spans: Callable[[], list[Span]]


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def oteltap(folder: Path) -> Iterator[Receiver]:
    """OTLP over HTTP; it prints a JSON object a span."""
    port, log = free_port(), folder / "tap.log"

    def spans() -> list[Span]:
        lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        return [
            Span(f["traceId"], f["spanId"], f["parentSpanId"], f["name"])
            for f in found
            if "spanId" in f
        ]

    program = need(str(Path(sys.executable).with_name("oteltap")))
    with process(program, "--port", str(port), log=log):
        wait_for(lambda: listens(port))
        yield Receiver(f"http://127.0.0.1:{port}", "http/protobuf", spans)


@contextmanager
def rotel(folder: Path) -> Iterator[Receiver]:
    """OTLP over gRPC; it prints spans for people."""
    port, log = free_port(), folder / "rotel.log"

    def spans() -> list[Span]:
        text = log.read_text()
        pattern = r"Trace ID +: (\w+)\s+Parent ID +: ?(\w*)\s+ID +: (\w+)\s+Name +: (.+)"
        return [Span(t, i, p, n) for t, p, i, n in re.findall(pattern, text)]

    package = find_spec("rotel")
    folders = package.submodule_search_locations if package is not None else None
    program = need(str(Path((folders or ["."])[0]) / "rotel-agent"))
    options = (
        "--otlp-grpc-endpoint", f"127.0.0.1:{port}",
        "--otlp-http-endpoint", f"127.0.0.1:{free_port()}",
        "--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed",
    )  # fmt: skip
    with process(program, "start", *options, log=log):
        wait_for(lambda: listens(port))
        yield Receiver(f"http://127.0.0.1:{port}", "grpc", spans)


@pytest.mark.parametrize("receiving", [oteltap, rotel], ids=["http", "grpc"])
def test_one_trace_over_two_processes(
    receiving: Callable[[Path], Iterator[Receiver]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        receiver: Receiver = stack.enter_context(receiving(tmp_path))  # type: ignore[arg-type]
        server = stack.enter_context(Server("valkey" if "valkey" in binaries() else "redis-7"))
        environment = {
            "WORKSHOP_URL": server.url,
            "WORKSHOP_QUEUE": "workshop",
            "WORKSHOP_IDLE": "1",
            "OTEL_SERVICE_NAME": "workshop",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": receiver.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        run = (sys.executable, "-m", "streaq", "run", "tests.telemetry.workshop:worker", "--otlp")
        stack.enter_context(process(*run, log=tmp_path / "worker.log", **environment))
        produce = (sys.executable, "-c", PRODUCER)
        producer = stack.enter_context(
            process(*produce, log=tmp_path / "producer.log", **environment)
        )
        assert producer.wait(40) == 0, (tmp_path / "producer.log").read_text()
        wait_for(lambda: any(span.name == "process dies" for span in receiver.spans()))
        found = [s for s in receiver.spans() if s.name != "process ticks"]
    spans = {s.name: s for s in found}
    assert len(found) == len(spans), "the attempt that was killed has no span, the next one has"
    assert set(spans) == {
        "request", "send workshop", "process ok", "process plus", "send dies", "process dies",
    }  # fmt: skip
    assert len({span.trace for span in spans.values()}) == 1
    assert spans["request"].parent == ""
    assert spans["send workshop"].parent == spans["request"].id
    for name in ("process ok", "process plus"):
        assert spans[name].parent == spans["send workshop"].id
    assert spans["send dies"].parent == spans["request"].id
    assert spans["process dies"].parent == spans["send dies"].id
