"""The floor: the barest exchange loop on Redis Streams, to see how near the product comes to it.

Plain asyncio, redis-py with hiredis, uvloop, pickle and one script per batch that settles what
finished and claims what fits; results are stored with a TTL and published. It promises nothing
else: no tries, leases, fencing, retries, priorities, schedules, aborts or hooks. It speaks the same
commands as the adapters, so the harness measures it in the same rounds and with the same meter.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import time
import uuid
from typing import Any

import _client as client
import _common as common
from redis.asyncio import Redis
from redis.exceptions import ResponseError

STREAM, RESULTS, CHANNEL, GROUP = "floor:stream", "floor:result:", "floor:done", "floor"
TTL_MS = 300_000
CHUNK = 500

PUBLISH = """
for i = 1, #ARGV, 2 do redis.call('XADD', KEYS[1], '*', 'i', ARGV[i], 'p', ARGV[i + 1]) end
"""

EXCHANGE = """
local ids = {}
for i = 5, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
  redis.call('SET', KEYS[2] .. ARGV[i + 1], ARGV[i + 2], 'PX', ARGV[4])
  redis.call('PUBLISH', KEYS[3], ARGV[i + 1])
end
if #ids > 0 then
  redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
  redis.call('XDEL', KEYS[1], unpack(ids))
end
if ARGV[3] == '0' then return {} end
local got = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3],
  'STREAMS', KEYS[1], '>')
if not got then return {} end
local out = {}
for _, message in ipairs(got[1][2]) do
  out[#out + 1] = message[1]
  out[#out + 1] = message[2][2]
  out[#out + 1] = message[2][4]
end
return out
"""


async def noop() -> None:
    common.tick()


async def stamp() -> int:
    return common.stamp_body()


async def echo(payload: str) -> str:
    return common.echo_body(payload)


async def nap() -> None:
    started = time.time_ns()
    await asyncio.sleep(0.01)
    common.tick(started)


TASKS = {"noop": noop, "stamp": stamp, "echo": echo, "nap": nap}


class Floor(client.AsyncPeer):
    """Producer side: one script per batch; concurrent single enqueues join the next batch."""

    missing = dict.fromkeys(
        ("lanes", "delay", "chain", "abort", "sync"), "the floor has only the loop"
    )

    async def open(self) -> None:
        self.redis: Any = Redis.from_url(common.URL)
        self.publish = self.redis.register_script(PUBLISH)
        with contextlib.suppress(ResponseError):
            await self.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        self.pending: list[bytes | str] = []
        self.flushed: asyncio.Future[None] | None = None
        self.flusher: asyncio.Task[None] | None = None
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.pubsub = self.redis.pubsub()
        await self.pubsub.subscribe(CHANNEL)
        self.listener = asyncio.create_task(self.listen())

    async def close(self) -> None:
        self.listener.cancel()
        await asyncio.gather(self.listener, return_exceptions=True)
        await self.pubsub.aclose()
        await self.redis.aclose()

    async def listen(self) -> None:
        async for message in self.pubsub.listen():
            if message["type"] == "message":
                waiter = self.waiting.pop(message["data"].decode(), None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        for start in range(0, len(calls), CHUNK):
            values: list[bytes | str] = []
            for task, args, _, _ in calls[start : start + CHUNK]:
                values += (uuid.uuid4().hex, pickle.dumps((task, args)))
            await self.publish(keys=[STREAM], args=values)

    async def enqueue(self, task: str, *args: object, at_ms=None, lane=None) -> str:
        task_id = uuid.uuid4().hex
        self.pending += (task_id, pickle.dumps((task, args)))
        if self.flushed is None:
            self.flushed = asyncio.get_running_loop().create_future()
        mine = self.flushed
        if self.flusher is None:
            self.flusher = asyncio.create_task(self.flush())
        await mine
        return task_id

    async def flush(self) -> None:
        while self.pending:
            values, done = self.pending, self.flushed
            self.pending, self.flushed = [], None
            await self.publish(keys=[STREAM], args=values)
            assert done is not None
            done.set_result(None)
        self.flusher = None

    async def result(self, task_id: str) -> object:
        waiter = self.waiting.setdefault(task_id, asyncio.get_running_loop().create_future())
        data = await self.redis.get(RESULTS + task_id)
        if data is None:
            await waiter
            data = await self.redis.get(RESULTS + task_id)
        self.waiting.pop(task_id, None)
        return pickle.loads(data)

    def work(self) -> None:
        common.gate()
        self.run(Loop().serve)


class Loop:
    """Worker side: settle everything that finished and claim into every free slot, in one call."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.running = 0
        self.changed = asyncio.Event()

    async def attempt(self, message_id: bytes, task_id: bytes, payload: bytes) -> None:
        name, args = pickle.loads(payload)
        result = await TASKS[name](*args)
        self.done += (message_id, task_id, pickle.dumps(result))
        self.running -= 1
        self.changed.set()

    async def serve(self) -> None:
        redis: Any = Redis.from_url(common.URL)
        exchange = redis.register_script(EXCHANGE)
        consumer = uuid.uuid4().hex
        keys = [STREAM, RESULTS, CHANNEL]
        alive: set[asyncio.Task[None]] = set()

        def start(message_id: bytes, task_id: bytes, payload: bytes) -> None:
            self.running += 1
            task = asyncio.create_task(self.attempt(message_id, task_id, payload))
            alive.add(task)
            task.add_done_callback(alive.discard)

        with contextlib.suppress(ResponseError):
            await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        while True:
            self.changed.clear()
            free = common.CONCURRENCY - self.running
            outcomes, self.done = self.done, []
            got = await exchange(keys=keys, args=[GROUP, consumer, free, TTL_MS, *outcomes])
            for i in range(0, len(got), 3):
                start(*got[i : i + 3])
            if not got and not self.running and not self.done:
                for message_id, (_, task_id, _, payload) in await self.block(redis, consumer):
                    start(message_id, task_id, payload)
            if not self.done:
                await self.changed.wait()

    async def block(self, redis: Any, consumer: str) -> list[tuple[bytes, list[bytes]]]:
        """Sleep on the stream until one message comes."""
        while True:
            got = await redis.execute_command(
                "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", 1, "BLOCK", 5000,
                "STREAMS", STREAM, ">",
            )  # fmt: skip
            if got:
                return raw_messages(got)


def raw_messages(got: Any) -> list[tuple[bytes, list[bytes]]]:
    """The messages of one stream, whichever shape the protocol version gave them."""
    messages = next(iter(got.values())) if isinstance(got, dict) else got[0][1]
    while messages and isinstance(messages[0], list):
        messages = messages[0]
    return [
        (message_id, [part for pair in fields.items() for part in pair])
        if isinstance(fields, dict)
        else (message_id, list(fields))
        for message_id, fields in messages
    ]


if __name__ == "__main__":
    client.main(Floor(), __doc__, ["redis", "hiredis", "uvloop"])
