"""The pool makes callers wait in line when all its connections are taken, and loses none."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest
import redis.asyncio as aredis
from redis.exceptions import ConnectionError as RedisConnectionError

from streaq.broker.pool import WaitingPool
from tests.servers import Server, free_port

pytestmark = pytest.mark.anyio

LIMIT = 3


@pytest.fixture
async def pool() -> AsyncGenerator[WaitingPool]:
    with Server() as server:
        made = WaitingPool(max_connections=LIMIT, host="127.0.0.1", port=server.port, protocol=2)
        yield made
        await made.aclose()


def in_use(pool: WaitingPool) -> int:
    return len(pool._in_use_connections)


async def test_callers_over_the_limit_wait_in_line(pool: WaitingPool) -> None:
    held = [await pool.get_connection() for _ in range(LIMIT)]
    order: list[int] = []

    async def use(n: int) -> None:
        connection = await pool.get_connection()
        order.append(n)
        assert in_use(pool) <= LIMIT
        await asyncio.sleep(0)
        await pool.release(connection)

    users = [asyncio.create_task(use(n)) for n in range(20)]
    await asyncio.sleep(0.01)
    assert order == []
    for connection in held:
        await pool.release(connection)
    await asyncio.gather(*users)
    assert order == list(range(20))
    assert in_use(pool) == 0


async def test_who_gives_up_waiting_is_passed_over(pool: WaitingPool) -> None:
    held = [await pool.get_connection() for _ in range(LIMIT)]
    first, second = (asyncio.create_task(pool.get_connection()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await pool.release(held.pop())
    held.append(await second)
    assert first.cancelled()
    for connection in held:
        await pool.release(connection)


async def test_who_is_woken_and_cancelled_at_once_wakes_the_next(pool: WaitingPool) -> None:
    held = [await pool.get_connection() for _ in range(LIMIT)]
    first, second = (asyncio.create_task(pool.get_connection()) for _ in range(2))
    await asyncio.sleep(0)
    await pool.release(held.pop())
    first.cancel()
    held.append(await asyncio.wait_for(second, 5))
    assert first.cancelled()
    for connection in held:
        await pool.release(connection)
    assert in_use(pool) == 0


async def test_a_connection_that_fails_is_given_back() -> None:
    pool = WaitingPool(max_connections=LIMIT, host="127.0.0.1", port=free_port())
    results = await asyncio.gather(
        *(pool.get_connection() for _ in range(LIMIT * 4)), return_exceptions=True
    )
    assert all(isinstance(result, RedisConnectionError) for result in results)
    assert in_use(pool) == 0


async def test_random_cancellation_loses_no_connection(pool: WaitingPool) -> None:
    rng = random.Random(11)
    client = aredis.Redis(connection_pool=pool)
    for _ in range(20):
        calls = [asyncio.create_task(client.echo(str(n))) for n in range(30)]
        for _ in range(rng.randrange(1, 12)):
            await asyncio.sleep(0)
        for call in rng.sample(calls, 15):
            call.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        for n, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError) or answer == str(n).encode()
        assert in_use(pool) == 0
    assert not pool._waiting or all(turn.done() for turn in pool._waiting)


async def test_a_connection_that_was_left_with_an_answer_is_made_anew(pool: WaitingPool) -> None:
    connection = await pool.get_connection()
    await connection.send_command("ECHO", "nobody waits for this")
    await connection.read_response()
    await connection.send_command("ECHO", "nor for this")
    while not await connection.can_read():  # noqa: ASYNC110 - bytes that nobody reads tell nobody
        await asyncio.sleep(0.001)
    await pool.release(connection)
    assert await aredis.Redis(connection_pool=pool).echo("this") == b"this"


async def test_a_connection_that_the_server_closed_is_made_anew(pool: WaitingPool) -> None:
    connection = await pool.get_connection()
    admin = await pool.get_connection()
    await admin.send_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await admin.read_response() == 1
    while not await connection.can_read():  # noqa: ASYNC110 - nor does an end
        await asyncio.sleep(0.001)
    for one in (admin, connection):
        await pool.release(one)
    assert await pool.get_connection() is connection
    await connection.send_command("ECHO", "this")
    assert await connection.read_response() == b"this"
    await pool.release(connection)


async def test_a_connection_marked_to_be_made_anew_is(pool: WaitingPool) -> None:
    connection = await pool.get_connection()
    if not hasattr(connection, "mark_for_reconnect"):
        pytest.skip("this redis-py marks none")
    connection.mark_for_reconnect()
    await pool.release(connection)
    assert not connection.is_connected


async def test_one_with_changing_passwords_is_given_back_as_redis_py_does_it(
    pool: WaitingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    async def release(_: object, connection: object) -> None:
        given.append(connection)

    monkeypatch.setattr(aredis.ConnectionPool, "release", release)
    connection = await pool.get_connection()
    await pool.release(connection)
    assert given == []
    renewing = WaitingPool(credential_provider=object())
    await renewing.release(connection)
    assert given == [connection]
