"""The server of ``embedded:///path/to/dir``: its data is in the directory, and it outlives the
process that started it for as long as others use it.

Three locks in the directory say who is there; each is let go by the kernel when its holders die:
``server.lock`` is held by the server itself, so there are never two on the same data;
``users.lock`` is held (shared) by every process that uses it, so the last one knows that it is;
``start.lock`` is held while somebody starts or stops it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streaq.broker.embedded.process import (
    LONGEST_SOCKET_PATH,
    POLL,
    answers,
    ask_to_shut_down,
    binary,
    connect,
    flags,
    temporary_directory,
    wait_until_up,
)
from streaq.types import StreaqError

_LAUNCH_TIMEOUT: Final = 10.0
# A large append-only file takes its time to load.
_LOAD_TIMEOUT: Final = 120.0
_STOP_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Use:
    """Our part in a directory: the descriptor that holds users.lock, and an open connection, by
    which the server can be told to stop even if the directory has been deleted meanwhile.
    """

    users: int
    line: socket.socket


_in_use: dict[Path, _Use] = {}


def join(directory: Path) -> str:
    """The socket path of the directory's server, started if nobody has; we are one of its users
    from here on.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory in _in_use:
            address = directory / "address"
            if address.exists() and answers(address.read_text()):
                return address.read_text()
            leave(directory)
        with _holding(directory / "start.lock"):
            users = _open_lock(directory / "users.lock")
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                path = _find_or_launch(directory)
                _in_use[directory] = _Use(users, connect(path))
            except BaseException:
                os.close(users)
                raise
        return path
    except OSError as e:
        raise StreaqError(f"embedded://{directory} cannot be used: {e.strerror or e}") from e


def leave(directory: Path) -> None:
    """We use it no more; stops the server if we were the last. Data is on disk when it returns."""
    use = _in_use.pop(directory, None)
    if use is None:
        return
    with use.line:
        if not directory.is_dir():
            os.close(use.users)
            ask_to_shut_down(use.line)
            return
        with _holding(directory / "start.lock"):
            os.close(use.users)
            last = _open_lock(directory / "users.lock")
            try:
                if _try_lock(last):
                    _shut_down(directory)
            finally:
                os.close(last)


def leave_all() -> None:
    """Leave every directory that this process uses."""
    for directory in list(_in_use):
        leave(directory)


def _find_or_launch(directory: Path) -> str:
    address = directory / "address"
    guard = _open_lock(directory / "server.lock")
    try:
        if _try_lock(guard):
            path = _socket_path(directory)
            address.write_text(path)
            _launch(directory, path, guard)
    finally:
        os.close(guard)
    path = address.read_text()
    wait_until_up(
        path,
        _LOAD_TIMEOUT,
        lambda: not _is_free(directory / "server.lock"),
        lambda: _log_end(directory / "valkey.log"),
    )
    return path


def _launch(directory: Path, path: str, guard: int) -> None:
    command = [binary(), *flags(str(directory), path), "--daemonize", "yes"]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    command += ["--logfile", "valkey.log", "--pidfile", str(directory / "valkey.pid")]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        pass_fds=(guard,),
        check=False,
        timeout=_LAUNCH_TIMEOUT,
    )
    if done.returncode:
        said = (done.stderr or done.stdout)[-500:].decode(errors="replace").strip()
        raise StreaqError(f"the embedded server did not start: {said}")


def _shut_down(directory: Path) -> None:
    if _is_free(directory / "server.lock"):
        return
    path = Path((directory / "address").read_text())
    with connect(str(path)) as line:
        ask_to_shut_down(line)
    deadline = time.monotonic() + _STOP_TIMEOUT
    while not _is_free(directory / "server.lock") and time.monotonic() < deadline:
        time.sleep(POLL)
    if path.parent != directory:
        shutil.rmtree(path.parent, ignore_errors=True)


def _socket_path(directory: Path) -> str:
    path = str(directory / "valkey.sock")
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    return str(Path(temporary_directory()) / "valkey.sock")


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(path: Path) -> bool:
    fd = _open_lock(path)
    try:
        return _try_lock(fd)
    finally:
        os.close(fd)


@contextmanager
def _holding(path: Path) -> Generator[None]:
    fd = _open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _log_end(path: Path) -> str:
    return path.read_bytes()[-500:].decode(errors="replace").strip() if path.exists() else ""
