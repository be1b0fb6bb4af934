"""A receiver of OTLP over HTTP that takes every export and keeps its bytes until it is asked how
many spans they hold; prints its URL on the first line.

Nothing is decoded before somebody asks (`GET`), so that receiving costs the same as anywhere.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SPANS = (1, 2, 2)
"""Field numbers from an export down to a span: resource spans, scope spans, spans."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

received: list[bytes] = []


class Sink(BaseHTTPRequestHandler):
    """Answers every POST with an empty success, over kept-alive connections."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        zipped = self.headers.get("Content-Encoding") == "gzip"
        received.append(gzip.decompress(body) if zipped else body)
        self._answer(b"")

    def do_GET(self) -> None:
        """The number of spans since the last time it was asked."""
        bodies = received[:]
        del received[: len(bodies)]
        self._answer(str(sum(map(count_spans, bodies))).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing for each request."""


def count_spans(message: bytes, path: tuple[int, ...] = SPANS) -> int:
    """How many fields there are at the end of this path of field numbers."""
    if not path:
        return 1
    return sum(count_spans(inner, path[1:]) for n, inner in messages(message) if n == path[0])


def messages(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that have a length, with their numbers."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, at = varint(message, at)
        elif kind == BYTES:
            length, at = varint(message, at)
            yield number, message[at : at + length]
            at += length
        else:
            at += {FIXED64: 8, FIXED32: 4}[kind]


def varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    print(f"http://127.0.0.1:{server.server_port}/v1/traces", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
