"""Finds the example that the demo runs, and starts a worker process on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Protocol, cast

import streaq
from streaq.types import StreaqError
from streaq.worker import Worker

STOP_TIMEOUT_S = 20.0


class Example(Protocol):
    """What the demo uses of ``examples/orders.py``."""

    worker: Worker[object]

    async def shop(self, seconds: float) -> None:
        """Enqueue for so long."""
        ...


def example_folder() -> Path:
    """Where ``orders.py`` is: in the installed package, or in the work tree beside it."""
    package = Path(streaq.__file__).parent
    for folder in (package / "examples", package.parent / "examples"):
        if (folder / "orders.py").is_file():
            return folder
    raise StreaqError("The demo's example, orders.py, is not there; install streaq once more.")


def load_example(redis_url: str) -> Example:
    """Import the example, with its worker on this server."""
    os.environ["REDIS_URL"] = redis_url
    folder = str(example_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return cast("Example", import_module("orders"))


class WorkerProcess:
    """``streaq run orders:worker``, with its log kept out of the picture; it ends with us."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    def check(self) -> None:
        """Nothing, unless it has ended.

        :raises StreaqError: with the end of its log.
        """
        if (status := self._process.poll()) is not None:
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace").strip()
            raise StreaqError(f"the worker process ended (status {status}): {said}")

    def stop(self) -> None:
        """SIGTERM, and wait: it finishes what it runs."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def worker_process(workers: int) -> Generator[WorkerProcess]:
    """A running one; stopped at the end, unless that was done before."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "streaq.cli.demo.kept", str(theirs.fileno()), "run"]
    command += ["orders:worker", "--workers", str(workers)]
    command += ["--log-level", "warning", "--log-format", "console"]
    path = os.pathsep.join([str(example_folder()), os.environ.get("PYTHONPATH", "")])
    with ours, theirs, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
            # Ctrl-C is for the demo, which then stops the worker itself.
            process_group=0,
        )
        theirs.close()
        running = WorkerProcess(process, log)
        try:
            yield running
        finally:
            running.stop()
