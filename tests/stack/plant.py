"""A small plant on this machine: Redis, two workers, a producer, Prometheus and Alertmanager.

Prometheus runs on the configuration and the rules that ship; only the addresses are its own,
since there is no DNS here that knows the services of docker-compose.yml.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import yaml

from tests.servers import Server, free_port
from tests.stack.conftest import ROOT, need
from tests.stack.holds import Holds
from tools.dashboards.ask import Prometheus, Window

BIN = Path(sys.executable).parent
POLL_S = 0.25


def eventually(found: Callable[[], object], within_s: float = 60.0) -> bool:
    """Whether ``found()`` became true in time."""
    end = time.monotonic() + within_s
    while not found():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_S)
    return True


def until(what: str, found: Callable[[], object], within_s: float = 60.0) -> None:
    """Return when ``found()`` is true; fail, naming ``what``, when it is not in time."""
    assert eventually(found, within_s), f"waited {within_s:.0f} s in vain: {what}"


def localised(
    config: dict[str, Any], targets: dict[str, list[str]], alertmanager: str
) -> dict[str, Any]:
    """The shipped configuration with the addresses of this machine, and nothing else changed."""
    rules = ROOT / "prometheus" / "rules"
    config["rule_files"] = [str(rules / Path(pattern).name) for pattern in config["rule_files"]]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(targets) <= set(jobs)
    for name, addresses in targets.items():
        jobs[name].pop("dns_sd_configs", None)
        jobs[name]["static_configs"] = [{"targets": addresses}]
    return config


def free_ports(count: int, besides: int) -> list[int]:
    """Ports that nobody listens on: the same one may be free twice, so they are compared."""
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        if port not in (*found, besides):
            found.append(port)
    return found


class Program:
    """One process that the plant started, its log in a file."""

    def __init__(self, name: str, command: list[str], directory: Path, **variables: str) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._command = command
        self._environment = {**os.environ, **variables}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def children(self) -> list[int]:
        """The processes that `streaq run` looks after."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(child) for child in children.split()]


class Plant:
    """Everything that runs; started and stopped as a context manager.

    :param worker: what `streaq run` is given.
    :param producer: the Python arguments of the process that enqueues; it serves its metrics on
        the port that it gets as its last argument.
    :param queue: the worker's.
    """

    def __init__(
        self,
        directory: Path,
        worker: str = "tests.stack.shop:worker",
        producer: tuple[str, ...] = ("-m", "tests.stack.shop"),
        queue: str = "shop",
    ) -> None:
        self.directory = directory
        self.redis = Server("redis-7", aof=True)
        self._holds = Holds(self.redis.url, queue)
        self._variables = {"REDIS_URL": self.redis.url, "PYTHONPATH": str(ROOT / "examples")}
        ports = free_ports(5, besides=self.redis.port)
        self.workers = [self._streaq(f"worker-{i + 1}", "run", worker, ports[i]) for i in range(2)]
        self.producer = Program(
            "producer",
            [sys.executable, *producer, str(ports[2])],
            directory,
            **self._variables,
        )
        self.targets = {
            "streaq-worker": [f"127.0.0.1:{port}" for port in ports[:2]],
            "streaq-producer": [f"127.0.0.1:{ports[2]}"],
            "prometheus": [f"127.0.0.1:{ports[3]}"],
        }
        self.alertmanager_url = f"http://127.0.0.1:{ports[4]}"
        self.prometheus_url = f"http://127.0.0.1:{ports[3]}"
        self.prometheus = Prometheus(self.prometheus_url)
        self._stack = ExitStack()
        self._alertmanager = Program(
            "alertmanager",
            [
                need("prometheus-alertmanager"),
                f"--config.file={ROOT / 'alertmanager' / 'alertmanager.yml'}",
                f"--storage.path={directory / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{ports[4]}",
                "--cluster.listen-address=",
            ],
            directory,
        )
        self._prometheus = Program(
            "prometheus",
            [
                need("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{ports[3]}",
                "--enable-feature=exemplar-storage",
            ],
            directory,
        )
        self.started = 0.0

    def __enter__(self) -> Self:
        need("redis-server")
        text = (ROOT / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
        address = self.alertmanager_url.removeprefix("http://")
        config = localised(yaml.safe_load(text), self.targets, address)
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            # Prometheus first: it sees the first event of everything that follows.
            for program in (self._alertmanager, self._prometheus, *self.workers, self.producer):
                stack.callback(program.stop)
                program.start()
            until("Prometheus is ready", lambda: answers(f"{self.prometheus_url}/-/ready"))
            until("every target is scraped", self._all_up)
            self._stack = stack.pop_all()
        self.started = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def window(self) -> Window:
        """From the start until now."""
        return Window(self.started, time.time())

    def value(self, expression: str) -> float:
        """The sum of what ``expression`` gives now; 0 when it gives nothing."""
        series = self.prometheus.instant(expression, time.time())
        return sum(float(found["value"][1]) for found in series)

    def kill_a_worker(self, *of: str) -> None:
        """`kill -9` a process in the middle of a task of each of these functions, or of any when
        none is named; its parent starts another.
        """
        pid = self._process_of(self.workers[0])
        self._holds.stop_in_the_middle(pid, of)
        os.kill(pid, signal.SIGKILL)

    def pause_a_worker(self, *of: str) -> None:
        """Stop a process in the middle of a task of each of these functions until the other runs
        them, then let it go on: all that it does with them is too late.
        """
        pid = self._process_of(self.workers[1])
        held = self._holds.stop_in_the_middle(pid, of)
        try:
            until("its tasks are taken over", lambda: self._holds.are_elsewhere(held))
        finally:
            os.kill(pid, signal.SIGCONT)

    def replace_a_worker(self, *of: str) -> None:
        """Tell a process to end in the middle of a task of each of these functions. Its parent
        stays, and starts another: what the process counted last is still scraped.
        """
        pid = self._process_of(self.workers[0])
        self._holds.stop_in_the_middle(pid, of)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)

    def take_redis_away(self, until_missed: Callable[[], object]) -> None:
        """Kill Redis, and start it again on the same data when enough has failed."""
        self.redis.kill()
        until("calls to Redis fail", until_missed)
        self.redis.start()

    def send_the_workers_away(
        self, until_missed: Callable[[], object], within_s: float = 60.0
    ) -> None:
        """Stop both workers in good order, and start them again when enough was missed."""
        for worker in self.workers:
            worker.stop()
        until("firings are missed", until_missed, within_s)
        for worker in self.workers:
            worker.start()

    def logs(self) -> Iterator[Path]:
        """What each program said."""
        return self.directory.glob("*.log")

    def _streaq(self, name: str, command: str, path: str, port: int) -> Program:
        options = ["--metrics-port", str(port), "--log-format", "json"]
        return Program(
            name,
            [str(BIN / "streaq"), command, path, *options],
            self.directory,
            **self._variables,
        )

    @staticmethod
    def _process_of(program: Program) -> int:
        """The process that runs tasks; there is none for a moment when the last one has died."""
        until(f"{program.name} has a process", lambda: len(program.children) == 1)
        return program.children[0]

    def _all_up(self) -> bool:
        wanted = sum(len(addresses) for addresses in self.targets.values())
        try:
            return self.value("up") == wanted
        except (URLError, OSError):
            return False


def answers(url: str) -> bool:
    """Whether ``url`` answers with success now."""
    try:
        with urlopen(url, timeout=3) as answer:
            return answer.status == 200
    except HTTPError:
        return False
    except (URLError, OSError):
        return False
