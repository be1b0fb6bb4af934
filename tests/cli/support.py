"""Runs the command line: in this process where that will do, else in one of its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from streaq.cli import main

HERE = Path(__file__).parent
LIMIT_S = 40.0


class Said(NamedTuple):
    """What a command that has ended left behind."""

    status: int
    out: str
    err: str


class Here:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: str) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["streaq", *args])
        self._capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        return Said(status, *self._capsys.readouterr())


class Process:
    """The command line in a process of its own, whose stderr is followed."""

    def __init__(self, *args: str, cwd: Path = HERE, **env: str) -> None:
        self.lines: list[str] = []
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "streaq", *args],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self._news.put(line.rstrip("\n"))
        self._news.put(None)

    def wait_for_line(self, part: str, times: int = 1) -> None:
        """Until so many lines with ``part`` in them have come, those seen before included."""
        deadline = time.monotonic() + LIMIT_S
        while sum(part in line for line in self.lines) < times:
            line = self._news.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, f"it ended without {part!r}:\n{self.said}"
            self.lines.append(line)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self) -> Said:
        """Wait for its end."""
        out = self.popen.stdout.read() if self.popen.stdout is not None else ""
        status = self.popen.wait(LIMIT_S)
        self._thread.join()
        while (line := self._news.get()) is not None:
            self.lines.append(line)
        self._news.put(None)
        return Said(status, out, self.said)

    @property
    def said(self) -> str:
        """What it has said on stderr, as far as that was looked at."""
        return "\n".join(self.lines)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._thread.join()
        for pipe in (self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def process(*args: str, cwd: Path = HERE, **env: str) -> Iterator[Process]:
    """One that does not outlive the test."""
    running = Process(*args, cwd=cwd, **env)
    try:
        yield running
    finally:
        running.close()


def eventually(check: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does and tells nobody."""
    deadline = time.monotonic() + LIMIT_S
    while not check():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
