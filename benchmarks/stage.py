"""One run on one clean stage: a fresh Redis, the adapter's client and worker processes, their
meters.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.entrants import Entrant
from benchmarks.server import Server
from benchmarks.venvs import HERE, python_of

HEAD = 4  # cells before the samples: count, first, last, number of samples
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.@+-]+/)+")
READY_S = 60
STALL_S = 30


class RunError(Exception):
    """A run that gives no figure; the message says why in one line."""


@dataclass(frozen=True)
class Tally:
    """The meters of all worker processes together; times are wall-clock nanoseconds."""

    count: int
    first_ns: int
    last_ns: int
    samples: list[int]

    @property
    def seconds(self) -> float:
        return (self.last_ns - self.first_ns) / 1e9

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds > 0 else 0.0


class Stage:
    """Use as a context manager; everything it started is stopped and removed at its end."""

    def __init__(
        self,
        entrant: Entrant,
        options: Mapping[str, object] | None = None,
        *,
        concurrency: int = 32,
        otlp_url: str = "",
        sample: bool = False,
    ) -> None:
        self.entrant = entrant
        self.dir = Path(tempfile.mkdtemp(prefix="bench-run-"))
        self.server = Server()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._companions: list[subprocess.Popen[bytes]] = []
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))},
            "PYTHONPATH": str(HERE / "adapters"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_DIR": str(self.dir),
            "BENCH_REDIS_URL": self.server.url,
            "BENCH_CONCURRENCY": str(concurrency),
            "BENCH_OPTIONS": json.dumps({**entrant.options, **(options or {})}),
            "BENCH_OTLP_URL": otlp_url,
            "BENCH_SAMPLE": "1" if sample else "",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._workers, *self._companions):
            _stop(process)
        self.server.__exit__()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _command(self, *arguments: str) -> list[str]:
        python = str(python_of(self.entrant.environment))
        # -P keeps the script's folder off the path: names there shadow the standard library's.
        return [python, "-P", str(HERE / self.entrant.script), *arguments]

    def client(self, *arguments: object, timeout: float = 300) -> dict[str, Any]:
        """Run one client command of the adapter and give what it measured."""
        command = self._command(*map(str, arguments))
        try:
            done = subprocess.run(
                command,
                env=self._env,
                cwd=self.dir,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"{arguments[0]} took over {timeout:.0f} s") from None
        if done.returncode:
            raise RunError(f"{arguments[0]} failed: {_last_line(done.stderr)}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def start_workers(self, processes: int = 1, *, companion: bool = False) -> None:
        """Start workers, wait until all stand at the gate, then open it."""
        for _ in range(processes):
            self._workers.append(self._spawn("worker"))
        if companion:
            self._companions.append(self._spawn("companion"))
        deadline = time.monotonic() + READY_S
        while len(list(self.dir.glob("*.ready"))) < processes:
            self._check_alive()
            if time.monotonic() > deadline:
                raise RunError(f"worker not ready after {READY_S} s: {self._log_end()}")
            time.sleep(0.01)
        (self.dir / "go").touch()

    def _spawn(self, command: str) -> subprocess.Popen[bytes]:
        with (self.dir / f"{command}.log").open("ab") as log:
            return subprocess.Popen(
                self._command(command),
                env=self._env,
                cwd=self.dir,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _check_alive(self) -> None:
        for process in self._workers:
            if process.poll() is not None:
                raise RunError(f"a worker died: {self._log_end()}")

    def _log_end(self) -> str:
        return _last_line((self.dir / "worker.log").read_text(errors="replace"))

    def tally(self) -> Tally:
        """What the meters of all worker processes say now."""
        count, first, last, samples = 0, 0, 0, list[int]()
        for path in sorted(self.dir.glob("*.meter")):
            cells = array("q")
            cells.frombytes(path.read_bytes())
            if not cells:  # made, but not yet given its size
                continue
            count += cells[0]
            first = min(first or cells[1], cells[1] or first)
            last = max(last, cells[2])
            samples += cells[HEAD : HEAD + cells[3]]
        return Tally(count, first, last, samples)

    def wait_count(self, wanted: int, *, exact: bool = True, timeout: float = 900) -> Tally:
        """Wait until `wanted` tasks have ended; with `exact`, see to it that none ran twice."""
        deadline = time.monotonic() + timeout
        seen, moved = -1, time.monotonic()
        while True:
            tally = self.tally()
            if tally.count >= wanted:
                break
            now = time.monotonic()
            if tally.count != seen:
                seen, moved = tally.count, now
            if now - moved > STALL_S or now > deadline:
                raise RunError(f"stalled after {seen} of {wanted} tasks: {self._log_end()}")
            self._check_alive()
            time.sleep(0.02)
        if not exact:
            return tally
        time.sleep(0.2)
        again = self.tally()
        if again.count != wanted:
            raise RunError(f"{again.count} tasks ran where {wanted} were enqueued")
        return again

    def stacks(self) -> dict[str, int]:
        """What the samplers of the workers saw: stacks, innermost frame first, and how often."""
        seen: dict[str, int] = {}
        for path in self.dir.glob("*.stacks"):
            for stack, times in json.loads(path.read_text()).items():
                seen[stack] = seen.get(stack, 0) + times
        return seen

    def wait_samples(self, wanted: int, timeout: float) -> list[int]:
        deadline = time.monotonic() + timeout
        while len(self.tally().samples) < wanted:
            self._check_alive()
            if time.monotonic() > deadline:
                raise RunError(
                    f"{len(self.tally().samples)} of {wanted} samples: {self._log_end()}"
                )
            time.sleep(0.05)
        return self.tally().samples

    def worker_rss_mb(self) -> float:
        """Resident memory of the workers and all their children."""
        pids = [pid for process in self._workers for pid in _tree(process.pid)]
        return sum(_status_kb(pid, "VmRSS") for pid in pids) / 1024

    def worker_cpu_s(self) -> float:
        """Processor time of the workers and all their children so far."""
        return sum(_cpu_s(pid) for process in self._workers for pid in _tree(process.pid))

    def stop_workers(self) -> None:
        """Stop the workers at once and forget what they measured."""
        for process in self._workers:
            _stop(process)
        self._workers.clear()
        for path in [*self.dir.glob("*.meter"), *self.dir.glob("*.ready"), self.dir / "go"]:
            path.unlink(missing_ok=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process group that this harness started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(text: str) -> str:
    """The line that says what went wrong: the last that names an error, or just the last."""
    lines = [line.strip(" |+-") for line in text.splitlines() if line.strip(" |+-")]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return without_folders((named or lines or ["no message"])[-1])[:200]


def without_folders(text: str) -> str:
    """The text with file names alone, since what is kept and published says nothing of whose
    machine it was.
    """
    return FOLDERS.sub("", text)


def _tree(pid: int) -> list[int]:
    """A process and its descendants (Linux only; elsewhere just the process)."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(p for child in children for p in _tree(child))]


def _status_kb(pid: int, key: str) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        if line.startswith(key):
            return float(line.split()[1])
    return 0.0


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if sys.platform == "win32":
    raise ImportError("the benchmarks need a POSIX system")
