"""Waiting for results: one subscription for all who wait, and nothing slips through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from streaq.broker.results import Results
from streaq.wire import parse_record
from tests.broker.bench import Bench, task
from tests.servers import Server, binaries

pytestmark = pytest.mark.anyio


def results_of(bench: Bench) -> Results:
    return bench.broker._results


async def subscribed(bench: Bench, *task_ids: str) -> None:
    """Until the server has a subscriber for each of them."""
    await bench.until_listening([bench.broker.keys.done(task_id) for task_id in task_ids])


async def subscribers(bench: Bench) -> int:
    """Connections that listen to anything."""
    clients: bytes = await bench.raw("CLIENT", "LIST", "TYPE", "PUBSUB")
    return len(clients.splitlines())


@asynccontextmanager
async def waiting(bench: Bench, *task_ids: str) -> AsyncIterator[list[asyncio.Task[bytes]]]:
    waiters = [asyncio.create_task(bench.broker.wait_result(task_id)) for task_id in task_ids]
    try:
        yield waiters
    finally:
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)


def value(record: bytes) -> bytes:
    return parse_record(record).value


async def test_a_result_that_is_there_already(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a", value=b"of a")
    assert value(await bench.broker.wait_result("a")) == b"of a"


async def test_a_result_that_comes(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    async with waiting(bench, "a") as (waiter,):
        await subscribed(bench, "a")
        await worker.run_one("a", value=b"of a")
        assert value(await waiter) == b"of a"


async def test_a_result_that_is_not_kept(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", "secret")
    async with waiting(bench, "a") as (waiter,):
        await subscribed(bench, "a")
        await worker.run_one("a", value=b"of a")
        assert value(await waiter) == b"of a"


async def test_racing_ends_and_waiters(bench: Bench) -> None:
    """Whichever comes first, whoever waits gets it."""
    worker = await bench.worker()
    for n in range(60):
        await bench.enqueue(f"t{n}")
        claimed = await worker.claim_one(f"t{n}")
        async with waiting(bench, f"t{n}") as (waiter,):
            for _ in range(n % 6):
                await asyncio.sleep(0)
            await worker.settle(worker.end(claimed))
            assert parse_record(await waiter).task_id == f"t{n}"


async def test_many_wait_for_one(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    async with waiting(bench, *["a"] * 50) as waiters:
        await subscribed(bench, "a")
        assert await subscribers(bench) == 1
        await worker.run_one("a")
        assert len({await waiter for waiter in waiters}) == 1


async def test_who_comes_later_than_the_subscription_looks_too(bench: Bench) -> None:
    """The result came while the first waiter's subscription was there, and went by unread."""
    worker = await bench.worker()
    await bench.publish(task("a"))
    async with waiting(bench, "a", "a") as (first, second):
        await subscribed(bench, "a")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await worker.run_one("a")
        assert value(await second) == b"value"
        assert value(await bench.broker.wait_result("a")) == b"value"


async def test_ten_thousand_waiters_on_one_connection(bench: Bench) -> None:
    worker = await bench.worker()
    ids = [f"t{i}" for i in range(10_000)]
    await bench.broker.publish([[task(task_id)] for task_id in ids])
    async with waiting(bench, *ids) as waiters:
        await subscribed(bench, *ids)
        assert await subscribers(bench) == 1
        for _ in range(4):
            await worker.settle(*map(worker.end, await worker.claim(2_500)))
        records = await asyncio.gather(*waiters)
    assert [parse_record(record).task_id for record in records] == ids
    results = results_of(bench)
    assert (results._waiters, results._unseen) == ({}, set())
    await bench.until_nobody_listens()


async def test_who_gives_up_leaves_nothing_behind(bench: Bench) -> None:
    async with waiting(bench, "a", "b") as (a, _):
        await subscribed(bench, "a", "b")
        a.cancel()
        await asyncio.gather(a, return_exceptions=True)
        await bench.until_nobody_listens(bench.broker.keys.done("a"))
        assert list(results_of(bench)._waiters) == ["b"]


async def test_giving_up_and_waiting_again(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    for n in range(20):
        async with waiting(bench, "a"):
            for _ in range(n % 5):
                await asyncio.sleep(0)
    async with waiting(bench, "a") as (waiter,):
        await worker.run_one("a")
        assert value(await waiter) == b"value"


# ------------------------------------------------------------------------ lost connections


async def test_a_result_that_came_while_the_subscription_was_away(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"))
    async with waiting(bench, "a", "b") as (a, b):
        await subscribed(bench, "a", "b")
        # In one step of the server: nobody listens when the result is published.
        claimed = await worker.claim_one("a")
        await bench.raw("CLIENT", "KILL", "TYPE", "PUBSUB")
        await worker.settle(worker.end(claimed, value=b"of a"))
        assert value(await a) == b"of a"
        await subscribed(bench, "b")
        await worker.run_one("b", value=b"of b")
        assert value(await b) == b"of b"


async def test_many_lost_subscriptions(bench: Bench) -> None:
    worker = await bench.worker()
    ids = [f"t{i}" for i in range(50)]
    await bench.publish(*map(task, ids))
    async with waiting(bench, *ids) as waiters:
        for _ in range(10):
            await bench.raw("CLIENT", "KILL", "TYPE", "PUBSUB")
            await worker.settle(*map(worker.end, await worker.claim(5)))
        records = await asyncio.gather(*waiters)
        assert [parse_record(record).task_id for record in records] == ids


async def test_a_server_that_was_killed_and_came_back(anyio_backend: str) -> None:
    """Its results survived on disk, its subscriptions did not."""
    with Server("valkey" if "valkey" in binaries() else "redis-7", unix=True, aof=True) as server:
        bench = Bench(server, "restarted")
        await bench.open()
        try:
            worker = await bench.worker()
            await bench.publish(task("a"), task("b"))
            async with waiting(bench, "a", "b") as (a, b):
                await subscribed(bench, "a", "b")
                claimed = await worker.claim_one("a")
                await bench.raw("CLIENT", "KILL", "TYPE", "PUBSUB")
                await worker.settle(worker.end(claimed, value=b"of a"))
                server.restart(kill=True)
                assert value(await a) == b"of a"
                await subscribed(bench, "b")
                await worker.run_one("b", value=b"of b")
                assert value(await b) == b"of b"
        finally:
            await bench.close()


async def test_a_look_that_fails_is_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection of the look may be lost while that of the subscription is well."""
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a")
    results = results_of(bench)
    fetch, failures = results.fetch, [RedisConnectionError("lost")] * 2

    async def fetch_or_fail(task_ids: list[str]) -> list[bytes | None]:
        if failures:
            raise failures.pop()
        return await fetch(task_ids)

    monkeypatch.setattr(results, "fetch", fetch_or_fail)
    assert value(await bench.broker.wait_result("a")) == b"value"
    assert not failures


async def test_what_no_repeating_will_cure_reaches_who_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbidden(_: Any) -> Any:
        raise NoPermissionError("no MGET for you")

    monkeypatch.setattr(results_of(bench), "fetch", forbidden)
    with pytest.raises(NoPermissionError, match="no MGET"):
        await bench.broker.wait_result("a")


async def test_closing_ends_the_waiting(bench: Bench) -> None:
    other = Bench(bench.server, "closing")
    await other.open()
    waiter = asyncio.create_task(other.broker.wait_result("a"))
    await subscribed(other, "a")
    await other.close()
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_looking_up_many(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a")
    assert await bench.broker.fetch_results([]) == []
    none, found, again = await bench.broker.fetch_results(["nobody", "a", "a"])
    assert none is None
    assert found == again
    assert found is not None
    assert value(found) == b"value"
