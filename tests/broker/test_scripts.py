"""Calling scripts: by the hash of their content, whatever the server has forgotten."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files

import pytest
import redis
from redis.exceptions import ResponseError

from streaq.broker.keys import Keys
from streaq.broker.scripts import Scripts, call_sync, load
from streaq.hooks import Dispatcher, Hook, RedisCall
from tests.broker.bench import LEASE_MS, Bench, task
from tests.servers import Server

FOLDER = files("streaq.broker") / "lua"
NAMES = sorted(path.name.removesuffix(".lua") for path in FOLDER.iterdir())
SCRIPTS = [name for name in NAMES if not name.startswith("_")]


async def loaded(bench: Bench, name: str) -> bool:
    (found,) = await bench.raw("SCRIPT", "EXISTS", load(name)[1])
    return bool(found)


@pytest.mark.anyio
async def test_a_script_is_sent_once_and_then_named(bench: Bench) -> None:
    assert not await loaded(bench, "publish")
    await bench.enqueue("a")
    assert await loaded(bench, "publish")
    before = await bench.raw("INFO", "commandstats")
    await bench.enqueue("b")
    after = await bench.raw("INFO", "commandstats")
    sent = rb"cmdstat_eval:calls=(\d+)"
    assert re.search(sent, before).group(1) == re.search(sent, after).group(1)


@pytest.mark.anyio
async def test_a_server_that_forgot_its_scripts_is_told_again_in_the_middle(bench: Bench) -> None:
    worker = await bench.worker()
    for n in range(5):
        await bench.raw("SCRIPT", "FLUSH")
        await bench.enqueue(f"t{n}")
        await bench.raw("SCRIPT", "FLUSH")
        claimed = await worker.claim_one(f"t{n}")
        await bench.raw("SCRIPT", "FLUSH")
        assert await worker.settle(worker.end(claimed)) == [1]
    await bench.assert_nothing_is_left()


@pytest.mark.anyio
async def test_racing_calls_of_a_script_the_server_does_not_know(bench: Bench) -> None:
    await bench.worker()
    await bench.raw("SCRIPT", "FLUSH")
    words = await asyncio.gather(
        *(bench.call("publish", [1, *task(f"t{i}").flat()]) for i in range(30))
    )
    assert [w[1] for w in words] == [[b"queued"]] * 30
    assert len(await bench.waiting()) == 30


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_no_answer_behind_for_the_next(bench: Bench) -> None:
    for n in range(30):
        call = asyncio.create_task(bench.broker.snapshot())
        for _ in range(n % 5):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await bench.state("nobody") == ""


def test_calls_from_threads(any_server: Server) -> None:
    with any_server.client() as client:
        client.flushall()
        base = Keys("sync").base
        for _ in range(2):
            client.script_flush()
            assert call_sync(client, base, "publish", [1, *task("a").flat()])[1] in (
                [b"queued"], [b"exists"],
            )  # fmt: skip
        with pytest.raises(redis.ResponseError):
            call_sync(client, base, "publish", ["x"])


@pytest.mark.anyio
async def test_hooks_are_told_of_every_call(bench: Bench) -> None:
    told: list[RedisCall] = []

    class Watch(Hook):
        def on_redis_call(self, e: RedisCall) -> None:
            told.append(e)

    scripts = Scripts(bench.broker._client, bench.broker.keys, Dispatcher([Watch()]))
    await scripts("snapshot", [])
    with pytest.raises(ResponseError):
        await scripts("publish", ["x"])
    assert [(e.operation, e.error) for e in told] == [
        ("snapshot", ""), ("publish", "ResponseError"),
    ]  # fmt: skip
    assert all(0 <= e.duration_s < 10 for e in told)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_name_of_a_script_is_its_content(name: str) -> None:
    text, digest = load(name)
    assert re.fullmatch("[0-9a-f]{40}", digest)
    assert load(name) == (text, digest)
    includes = text.count("local base = KEYS[1]")
    assert includes == 1, "every script begins with _base"


def test_every_script_has_another_content() -> None:
    assert len({load(name)[1] for name in SCRIPTS}) == len(SCRIPTS)


@pytest.mark.parametrize("name", NAMES)
def test_scripts_make_no_key_outside_the_queue(name: str) -> None:
    """Every key is made from the queue's prefix, or a Cluster would refuse it."""
    text = (FOLDER / f"{name}.lua").read_text("utf-8")
    assert "streaq:" not in re.sub(r"--.*", "", text)
    assert not re.search(r"KEYS\[[^1]", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_a_test_file(name: str) -> None:
    here = files("tests.broker")
    kinds = {"exchange": ["claim", "settle", "reserve", "reclaim"]}
    for kind in kinds.get(name, [name]):
        assert (here / f"test_{kind}.py").is_file()


@pytest.mark.anyio
async def test_every_script_keeps_to_the_queue(bench: Bench) -> None:
    """Two queues on one server know nothing of each other."""
    other = Bench(bench.server, "another")
    await other.open()
    try:
        worker, stranger = await bench.worker(), await other.worker()
        await bench.publish(task("a"), task("b", then="a"))
        assert await stranger.claim(5, reclaim=True) == []
        assert (await other.broker.abort("a")).word == "missing"
        await other.broker.sweep(LEASE_MS, "w1")
        assert (await other.broker.snapshot()).priorities[0].depth == 0
        await worker.run_one("a")
        await worker.run_one("b")
    finally:
        await other.close()
