"""A server that answers what a test wants, for what no real one does on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class FakeServer:
    """Counts what it was asked, and answers with ``reply(words)``: bytes, or None to hang up.

    An answer of ``b""`` is no answer at all.
    """

    reply: Callable[[list[str]], bytes | None]
    port: int = 0
    asked: list[list[str]] = field(default_factory=list[list[str]])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def times(self, name: str) -> int:
        """How often a command arrived."""
        return sum(words[0] == name for words in self.asked)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while header := await reader.readline():
            words: list[str] = []
            for _ in range(int(header[1:])):
                length = int((await reader.readline())[1:])
                words.append((await reader.readexactly(length + 2))[:-2].decode())
            self.asked.append(words)
            answer = self.reply(words)
            if answer is None:
                break
            writer.write(answer)
        writer.close()


@asynccontextmanager
async def fake_server(reply: Callable[[list[str]], bytes | None]) -> AsyncGenerator[FakeServer]:
    """A fake server on loopback, for as long as the context is open."""
    fake = FakeServer(reply)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
