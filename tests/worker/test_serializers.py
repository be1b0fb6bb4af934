"""Serializers of one's own, sync and async; what survives JSON; signatures, forged and not."""

from __future__ import annotations

import json
import pickle
from typing import Any

import anyio
import pytest
import redis

from streaq import StreaqError, TaskStatus
from streaq.broker.keys import Keys
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


async def async_dumps(value: Any) -> bytes:
    await anyio.lowlevel.checkpoint()
    return b"async " + pickle.dumps(value)


async def async_loads(raw: bytes) -> Any:
    await anyio.lowlevel.checkpoint()
    assert raw.startswith(b"async ")
    return pickle.loads(raw[6:])


@pytest.mark.parametrize("signing_secret", [None, "open sesame"])
@pytest.mark.parametrize(
    ("serializer", "deserializer"),
    [(json.dumps, json.loads), (json_bytes, json.loads), (async_dumps, async_loads)],
    ids=["json str", "json bytes", "async"],
)
async def test_everything_passes_through_them(
    make_worker: MakeWorker, serializer: Any, deserializer: Any, signing_secret: str | None
) -> None:
    worker = make_worker(
        serializer=serializer, deserializer=deserializer, signing_secret=signing_secret
    )

    @worker.task
    async def join(a: str, *, b: list[int]) -> dict[str, Any]:
        return {"a": a, "b": b}

    @worker.task
    async def pair(val: dict[str, Any]) -> tuple[str, int]:
        return val["a"], sum(val["b"])

    @worker.task
    def repeat(text: str, times: int, *, end: str = "") -> str:
        return text * times + end

    @worker.task
    async def fails(text: str, times: int) -> str:
        raise ValueError(text)

    async with running(worker):
        first = join.enqueue("é\n", b=[1, 2])
        task = await first.then(pair).then(fails).otherwise(repeat)
        info = await task.info()
        assert info is None or info.fn_name == repeat.fn_name
        # Tuples are unpacked even where the format does not know them.
        assert (await task.result(3)).result == "é\né\né\n"
        assert (await first.result(3)).result == {"a": "é\n", "b": [1, 2]}
        assert (await (await repeat.enqueue("x", 2, end="y")).result(3)).result == "xxy"
        later = await join.enqueue("z", b=[]).start(delay=60)
        info = await later.info()
        assert info is not None
        assert (info.args, info.kwargs) == (("z",), {"b": []})
        assert await later.abort()


async def test_exceptions_survive_json_as_text(make_worker: MakeWorker) -> None:
    worker = make_worker(serializer=json.dumps, deserializer=json.loads)

    @worker.task
    async def fails() -> None:
        raise ValueError("two\nlines and é")

    @worker.task
    async def unserialisable() -> object:
        return object()

    async with running(worker):
        result = await (await fails.enqueue()).result(3)
        assert not result.success
        assert type(result.exception) is StreaqError
        assert str(result.exception) == "ValueError: two lines and é"
        result = await (await unserialisable.enqueue()).result(3)
        assert "Can't serialise a result" in str(result.exception)
        assert await (await fails.enqueue().start(delay=60)).abort()


@pytest.mark.parametrize("async_", [False, True])
async def test_a_serializer_that_breaks(make_worker: MakeWorker, async_: bool) -> None:
    """It fails the task, never the worker."""

    def dumps(value: Any) -> bytes:
        if value == "poison":
            raise RuntimeError("serializer broke")
        return pickle.dumps(value)

    def loads(raw: bytes) -> Any:
        value = pickle.loads(raw)
        if value == ((66,), {}):
            raise RuntimeError("deserializer broke")
        return value

    async def dumps_async(value: Any) -> bytes:
        return dumps(value)

    async def loads_async(raw: bytes) -> Any:
        return loads(raw)

    worker = make_worker(
        serializer=dumps_async if async_ else dumps,
        deserializer=loads_async if async_ else loads,
    )

    @worker.task
    async def echo(val: Any) -> Any:
        return "poison" if val == 1 else val

    async with running(worker):
        result = await (await echo.enqueue(1)).result(3)
        assert "serializer broke" in str(result.exception)
        result = await (await echo.enqueue(66)).result(3)
        assert "deserializer broke" in str(result.exception)
        assert result.tries == 1
        assert (await (await echo.enqueue(3)).result(3)).result == 3


# ---------------------------------------------------------------------------- signatures


async def test_signed_values_do_not_travel_in_the_clear_of_doubt(make_worker: MakeWorker) -> None:
    secret = "open sesame"
    worker = make_worker(signing_secret=secret)
    assert secret not in repr(worker)
    assert secret not in repr(worker.codec)
    assert secret not in str(vars(worker.codec).get("_serializer"))


async def test_forged_arguments_are_never_read(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker(signing_secret="open sesame")
    ran: list[int] = []
    keys = Keys(queue)

    @worker.task
    async def pay(amount: int) -> None:
        ran.append(amount)

    @worker.task
    async def refund(amount: int) -> None:
        ran.append(-amount)

    async with worker:
        forged = await pay.enqueue(1)
        unsigned = await pay.enqueue(2)
        swapped = await pay.enqueue(3)
        truncated = await pay.enqueue(5)
        honest = await refund.enqueue(4)
        args = redis_client.hget(keys.task(forged.id), "args")
        assert isinstance(args, bytes)
        redis_client.hset(keys.task(forged.id), "args", pickle.dumps(((99,), {})) + args[-32:])
        redis_client.hset(keys.task(unsigned.id), "args", pickle.dumps(((99,), {})))
        redis_client.hset(keys.task(truncated.id), "args", b"x")
        # A true signature, but of another function's arguments.
        other = redis_client.hget(keys.task(honest.id), "args")
        assert isinstance(other, bytes)
        redis_client.hset(keys.task(swapped.id), "args", other)
        with pytest.raises(StreaqError, match="signature"):
            await forged.info()
        async with running(worker):
            for task in (forged, unsigned, swapped, truncated):
                result = await task.result(3)
                assert "signature" in str(result.exception)
            assert (await honest.result(3)).success
    assert ran == [-4]
    assert worker.counters == {"failed": 4, "completed": 1}


async def test_forged_results_are_never_read(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker(signing_secret="open sesame")
    stranger = make_worker(signing_secret="guess")
    ran: list[int] = []

    @worker.task
    async def answer() -> int:
        return 42

    @worker.task
    async def double(val: int) -> int:
        ran.append(val)
        return val * 2

    async with running(worker), stranger:
        task = await answer.enqueue()
        assert (await task.result(3)).result == 42
        with pytest.raises(StreaqError, match="signature"):
            await stranger.result_by_id(task.id)
        key = Keys(queue).result(task.id)
        record = redis_client.get(key)
        assert isinstance(record, bytes)
        redis_client.set(key, record.replace(b"K*", b"K+"), keepttl=True)
        async with make_worker(signing_secret="open sesame") as reader:
            with pytest.raises(StreaqError, match="signature"):
                await reader.result_by_id(task.id, 3)
        # Nor is it fed to the next task.
        then = await task.then(double)
        assert "signature" in str((await then.result(3)).exception)
        assert await then.status() is TaskStatus.DONE
    assert ran == []


async def test_another_secret_is_refused(make_worker: MakeWorker) -> None:
    producer, worker = make_worker(), make_worker(signing_secret="open sesame")

    @worker.task(name="pay")
    async def pay(amount: int) -> None: ...

    async with producer, running(worker):
        task = await producer.enqueue_unsafe("pay", 1)
        with pytest.raises(StreaqError, match="signature"):
            raise (await worker.result_by_id(task.id, 3)).exception
