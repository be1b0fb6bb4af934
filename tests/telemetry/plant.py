"""Real processes for the end-to-end tests: workers behind one endpoint, and a Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from streaq import Worker
from streaq.telemetry.server import start_server
from streaq.telemetry.testing import Captured, capture_telemetry
from tests.servers import Server, binaries, free_port

ROOT = Path(__file__).parents[2]


def need(program: str) -> str:
    """Its path; without it the test is skipped, or fails where CI must have it."""
    found = shutil.which(program)
    if found is None:
        message = f"{program} is not installed (Debian's prometheus has it)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@contextmanager
def process(*command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block; its output goes to a file."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=out
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Prometheus:
    """Asks one Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]

    def ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=1).close()
        except OSError:
            return False
        return True

    def rows(self, query: str) -> list[tuple[dict[str, str], float]]:
        found = self.get("/api/v1/query", query=query)["result"]
        return [(row["metric"], float(row["value"][1])) for row in found]

    def sum(self, metric: str, by: str = "", **labels: str) -> Any:
        """The sum of a metric over all processes; with ``by``, one for each of its values."""
        chosen = ",".join(f'{name}="{value}"' for name, value in labels.items())
        rows = self.rows(f"sum by ({by}) ({metric}{{{chosen}}})")
        if by:
            return {row.get(by): value for row, value in rows if value}
        return rows[0][1] if rows else 0


@contextmanager
def prometheus(folder: Path, ports: list[int]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes these ports four times a second."""
    targets = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        f"scrape_configs: [{{job_name: streaq, static_configs: [{{targets: [{targets}]}}]}}]\n"
    )
    port = free_port()
    command = (
        need("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    )
    with process(*command, log=folder / "prometheus.log"):
        asked = Prometheus(port)
        wait_for(asked.ready)
        yield asked


def documented_balance() -> str:
    """The query that docs/telemetry.md has for it."""
    text = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    return text.partition("# nothing is lost: always 0\n")[2].partition("```")[0].strip()


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What ``condition`` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come about")


class Plant:
    """Two worker processes behind one endpoint, and a producer with its own."""

    def __init__(self, stack: ExitStack, folder: Path, **environment: str) -> None:
        kind = "valkey" if "valkey" in binaries() else "redis-7"
        self.server = stack.enter_context(Server(kind))
        self.port = free_port()
        self.log = folder / "workers.log"
        self.environment = {
            "WORKSHOP_URL": self.server.url,
            "WORKSHOP_QUEUE": "workshop",
            "WORKSHOP_IDLE": "2",
            **environment,
        }
        run = (sys.executable, "-m", "streaq", "run", "tests.telemetry.workshop:worker")
        self.run = stack.enter_context(
            process(*run, "--workers", "2", "--metrics-port", str(self.port),
                    log=self.log, **self.environment)
        )  # fmt: skip
        self.seen: Captured = stack.enter_context(capture_telemetry())
        produced = start_server(self.seen.registry)
        stack.callback(produced.close)
        self.worker: Worker[Any] = Worker(
            self.server.url, queue_name="workshop", telemetry=self.seen.telemetry
        )
        self.ports = [self.port, produced.port]
        """Where to scrape."""

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read().decode()
        except OSError:
            return 0, ""

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.run.pid).children()

    def values(self, metric: str, by: str = "") -> dict[str, float]:
        """A metric as the workers' endpoint has it now, summed for each value of a label."""
        return values_in(self.get("/metrics")[1], metric, by)


def values_in(text: str, metric: str, by: str = "") -> dict[str, float]:
    """A metric on a page of them, summed for each value of a label."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == metric:
                key = sample.labels.get(by, "")
                found[key] = found.get(key, 0) + sample.value
    return found
