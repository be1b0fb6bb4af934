"""Typed callers of ``lua/``: each script is loaded once, and called by the hash of its content.

A server that does not know a script (restarted, flushed, failed over) answers NOSCRIPT without
having done anything, so it is sent the text instead. Content addressing lets two versions of the
code share a server while a deploy rolls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeAlias

import hiredis
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from streaq.broker.connection import AsyncClient, SyncClient
from streaq.broker.keys import Keys
from streaq.hooks import Dispatcher, RedisCall

Arg: TypeAlias = str | bytes | int

_pack: Any = getattr(hiredis, "pack_command")  # noqa: B009 - it is not typed


@cache
def load(name: str) -> tuple[str, str]:
    """Text and SHA-1 of a script, with the shared parts that its first line names."""
    folder = files("streaq.broker") / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    first = text.partition("\n")[0]
    prefix = "-- include "
    parts = first.removeprefix(prefix).split() if first.startswith(prefix) else []
    shared = [(folder / f"{part}.lua").read_text("utf-8") for part in parts]
    whole = "\n".join([*shared, text])
    return whole, sha1(whole.encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Calls scripts for one queue on one client, and tells hooks how long each took."""

    def __init__(self, client: AsyncClient, keys: Keys, hooks: Dispatcher) -> None:
        self._client: Any = client
        self._pool: Any = client.connection_pool if isinstance(client, Redis) else None
        self._base = keys.base
        self._hooks = hooks

    async def __call__(self, name: str, args: Sequence[Arg]) -> Any:
        """Run ``lua/<name>.lua``; Redis errors come through as redis-py raises them."""
        hooks = self._hooks
        if not hooks.on_redis_call:
            return await self._send(name, args)
        began, error = time.monotonic(), ""
        try:
            return await self._send(name, args)
        except Exception as e:
            error = type(e).__name__
            raise
        finally:
            event = RedisCall(name, time.monotonic() - began, error)
            hooks.emit(hooks.on_redis_call, event)

    async def _send(self, name: str, args: Sequence[Arg]) -> Any:
        text, digest = load(name)
        try:
            return await self.execute("EVALSHA", digest, 1, self._base, *args)
        except NoScriptError:
            return await self.execute("EVAL", text, 1, self._base, *args)

    async def execute(self, *command: Arg) -> Any:
        """One command on a connection of the pool; its answer as it came.

        redis-py packs commands in Python, which costs more than everything else a large batch
        does in this process; hiredis does it in C. A Cluster client has to route, so it does its
        own.
        """
        pool = self._pool
        if pool is None:
            return await self._client.execute_command(*command)
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(_pack(command), check_health=False)
            return await connection.read_response()
        finally:
            await pool.release(connection)


def call_sync(client: SyncClient, base: str, name: str, args: Sequence[Arg]) -> Any:
    """The same from a thread, on a blocking client."""
    text, digest = load(name)
    blocking: Any = client
    try:
        return blocking.execute_command("EVALSHA", digest, 1, base, *args)
    except NoScriptError:
        return blocking.execute_command("EVAL", text, 1, base, *args)
