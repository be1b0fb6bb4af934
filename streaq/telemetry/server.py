"""A small HTTP server in a thread: ``/metrics``, ``/livez`` and ``/readyz``.

It answers from its own threads, so it goes on answering while the event loop is blocked; that is
when ``/livez`` matters.
"""

from __future__ import annotations

import gzip
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streaq.engine.health import Health, Limits
from streaq.telemetry.queue_metrics import QueueReader
from streaq.types import StreaqError

logger = logging.getLogger("streaq")

Check: TypeAlias = Callable[[], list[str]]
"""Tells what is wrong, one line each; nothing when all is well."""

_TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    content_type: str
    body: bytes


def metrics_answer(registry: CollectorRegistry, accept: str) -> Answer:
    """The metrics as text, or as OpenMetrics (with exemplars) for those who accept it."""
    encode, content_type = choose_encoder(accept)
    return Answer(200, content_type, encode(registry))


def packed(answer: Answer, accept_encoding: str) -> tuple[dict[str, str], bytes]:
    """Headers and body, by gzip for those who accept it: metrics get ten times smaller."""
    headers, body = {"Content-Type": answer.content_type}, answer.body
    if "gzip" in accept_encoding:
        body = gzip.compress(body, compresslevel=1)
        headers["Content-Encoding"] = "gzip"
    headers["Content-Length"] = str(len(body))
    return headers, body


def check_answer(check: Check) -> Answer:
    """200 and ``ok``, or 503 and the reasons."""
    problems = check()
    body = "\n".join(problems or ["ok"]) + "\n"
    return Answer(503 if problems else 200, _TEXT, body.encode())


SILENCE_S = 3.0
"""A Redis that owes the queue's state for longer is out of reach."""


class HealthChecks:
    """``/livez`` and ``/readyz`` of one or more workers.

    :param healths: answers the workers' health records as they are now.
    :param queue: says whether work is due; without it a stuck pump is not noticed.
    :param priorities: those that the workers serve; all of the queue's by default.
    :param expected: how many workers there are to be. While they are fewer, they are not ready;
        and while there is none for long though work is due, all should be replaced.
    """

    def __init__(
        self,
        healths: Callable[[], Sequence[Health]],
        queue: QueueReader | None = None,
        limits: Limits | None = None,
        priorities: Sequence[str] | None = None,
        *,
        expected: int = 0,
    ) -> None:
        self._expected = expected
        self._seen_at = time.monotonic()
        self._healths = healths
        self._queue = queue
        self._limits = limits or Limits()
        self._priorities = priorities

    def livez(self) -> list[str]:
        """Why the process should be replaced."""
        healths = [health for health in self._healths() if health.is_started]
        if healths:
            self._seen_at = time.monotonic()
        elif not self._expected:
            return []
        due_age_s = self._queue.due_age_s(self._priorities) if self._queue is not None else None
        if not healths:
            return self._absent(due_age_s)
        limits = self._limits
        problems = [p for h in healths for p in _named(h, h.problems(limits, due_age_s))]
        if self._queue is not None and self._queue.failing_s() > self._limits.redis_s:
            problems.append(f"Redis has not answered for {self._queue.failing_s():.1f} s")
        return list(dict.fromkeys(problems))

    def _absent(self, due_age_s: float | None) -> list[str]:
        absent_s = time.monotonic() - self._seen_at
        if due_age_s is None or min(due_age_s, absent_s) < self._limits.start_s:
            return []
        return [f"work has been due for {due_age_s:.1f} s and no worker has started"]

    def readyz(self) -> list[str]:
        """Why nothing should be expected of the process now."""
        healths = self._healths()
        if not healths:
            return ["no worker has started"]
        unready = [problem for h in healths for problem in _named(h, h.unready())]
        if len(healths) < self._expected:
            unready.append(f"{len(healths)} of {self._expected} worker processes run")
        if self._queue is not None and self._queue.failing_s() > SILENCE_S:
            unready.append("Redis is out of reach")
        return list(dict.fromkeys(unready)) or self.livez()


def _named(health: Health, problems: Sequence[str]) -> list[str]:
    """With whose they are, where there are several."""
    return [f"{health.whose}: {problem}" if health.whose else problem for problem in problems]


class Server:
    """Serves until closed. Make one with ``start_server``."""

    def __init__(self, http: ThreadingHTTPServer, host: str) -> None:
        self._http = http
        self._host = host
        self._closers: list[Callable[[], object]] = []
        self._thread = threading.Thread(
            target=http.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="streaq-http",
            daemon=True,
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on; of use when 0 was asked for."""
        return self._http.server_address[1]

    @property
    def url(self) -> str:
        """Where its pages are, such as ``http://[::1]:9100``."""
        return f"http://{_place(self._host, self.port)}"

    def on_close(self, closer: Callable[[], object]) -> None:
        """Also call this when the server is closed."""
        self._closers.append(closer)

    def close(self) -> None:
        """Stop listening, and wait for the thread to end."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for closer in self._closers:
            closer()


def start_server(
    registry: CollectorRegistry,
    checks: HealthChecks | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Server:
    """Serve a registry, and health if there are checks.

    :param host: address to bind; loopback unless told otherwise.
    :param port: 0 picks a free one (``Server.port`` tells).
    :raises StreaqError: the address cannot be bound.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            answer = _answer(registry, checks, self.path, self.headers.get("Accept", ""))
            headers, body = packed(answer, self.headers.get("Accept-Encoding", ""))
            self.send_response(answer.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Probes and scrapes are not worth a line each."""

    class Http(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        # More than this many connections at a time wait for a second or more, probes too.
        request_queue_size = 128

        def server_bind(self) -> None:
            """Without HTTPServer's look-up of the host's name, which can take many seconds."""
            socketserver.TCPServer.server_bind(self)

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients hang up when they please; standard error is for log lines, one each."""
            if not isinstance(error := sys.exception(), OSError):
                logger.error("a request for metrics or health failed", exc_info=error)

    try:
        return Server(Http((host, port), Handler), host)
    except OSError as e:
        raise StreaqError(
            f"Cannot serve metrics on {_place(host, port)}: {e.strerror or e}. "
            "Choose another --metrics-port or --metrics-host."
        ) from e


def _place(host: str, port: int) -> str:
    """As a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _answer(
    registry: CollectorRegistry, checks: HealthChecks | None, path: str, accept: str
) -> Answer:
    """What is asked for; 500 when a collector of the application's own raises."""
    try:
        return _route(registry, checks, path, accept)
    except Exception:
        logger.exception("%s cannot be served", path.partition("?")[0])
        return Answer(500, _TEXT, b"It failed; the log says why.\n")


def _route(
    registry: CollectorRegistry, checks: HealthChecks | None, path: str, accept: str
) -> Answer:
    path = path.partition("?")[0].rstrip("/")
    if path == "/metrics":
        return metrics_answer(registry, accept)
    if path == "/livez" and checks is not None:
        return check_answer(checks.livez)
    if path == "/readyz" and checks is not None:
        return check_answer(checks.readyz)
    return Answer(404, _TEXT, b"There are /metrics, /livez and /readyz here.\n")
