"""The server of ``embedded://``: one for the process that starts it and for its children, gone with
that process even if it is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from streaq.broker.embedded.process import (
    answers,
    ask_to_shut_down,
    binary,
    connect,
    flags,
    temporary_directory,
    wait_until_up,
)

ENV: Final = "STREAQ_EMBEDDED_URL"
_START_TIMEOUT: Final = 10.0
_STOP_TIMEOUT: Final = 5.0

# Runs the server until its own standard input ends, which happens when every process that holds the
# other end of the pipe has exited, in whatever way. Then it cleans up. $1 is the directory, the
# rest the command. The pipe is kept as 3 because a shell gives background jobs /dev/null as 0.
_WARDEN: Final = """
dir=$1; shift; exec 3<&0
"$@" 3<&- & server=$!
(read -r _ <&3; kill "$server") & reader=$!
wait "$server"; code=$?
kill "$reader" 2>/dev/null; rm -rf "$dir"
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class _Server:
    """The server as the process that started it knows it."""

    owner: int
    directory: str
    path: str
    warden: subprocess.Popen[bytes]


# What this process, or the parent that it was forked from, has started: none or one.
_started: list[_Server] = []


def start() -> str:
    """The socket path of the private server, which is started unless one that we may use is up."""
    # Set by this process, or by the parent whose server we share; stale if its owner has died.
    known = os.environ.get(ENV, "").removeprefix("unix://")
    if known and answers(known):
        return known
    stop()
    with tempfile.TemporaryFile() as log:
        server = _launch(log)
        _started.append(server)
        try:
            wait_until_up(
                server.path, _START_TIMEOUT, lambda: server.warden.poll() is None, lambda: _end(log)
            )
        except BaseException:
            stop()
            raise
    os.environ[ENV] = f"unix://{server.path}"
    return server.path


def stop() -> None:
    """Stop the server, if it is this process that started it."""
    server = _started.pop() if _started else None
    if server is None or server.owner != os.getpid():
        return
    if os.environ.get(ENV) == f"unix://{server.path}":
        del os.environ[ENV]
    with suppress(OSError), connect(server.path) as line:
        ask_to_shut_down(line)
    if server.warden.stdin is not None:
        server.warden.stdin.close()
    try:
        server.warden.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(server.warden.pid, signal.SIGKILL)
        server.warden.wait()
        shutil.rmtree(server.directory, ignore_errors=True)


def _launch(log: IO[bytes]) -> _Server:
    command = binary()
    directory = temporary_directory()
    path = str(Path(directory) / "valkey.sock")
    options = [*flags(directory, path), "--appendonly", "no", "--loglevel", "warning"]
    warden = subprocess.Popen(
        ["/bin/sh", "-c", _WARDEN, "streaq-warden", directory, command, *options],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        # Ctrl-C on the terminal is for the worker, which still needs its server to stop well.
        start_new_session=True,
    )
    return _Server(os.getpid(), directory, path, warden)


def _end(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-500:].decode(errors="replace").strip()
