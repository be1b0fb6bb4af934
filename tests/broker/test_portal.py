"""The portal carries values, errors, cancellation and context from Trio (or asyncio) and back."""

from __future__ import annotations

import asyncio
import threading
import traceback
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest

from streaq.broker.connection import ConnectionSettings, Connector
from streaq.broker.portal import Portal, current_backend
from streaq.types import StreaqError
from tests.servers import Server

pytestmark = pytest.mark.anyio

flavour: ContextVar[str] = ContextVar("flavour", default="plain")


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_backend(anyio_backend: str) -> None:
    assert current_backend() == anyio_backend
    async with Portal() as portal:

        async def over_there() -> tuple[str, str]:
            return current_backend(), type(asyncio.get_running_loop()).__module__

        assert await portal.call(over_there) == ("asyncio", "uvloop")
    with pytest.raises(StreaqError, match="no event loop"):
        await anyio.to_thread.run_sync(current_backend)


async def test_value_and_arguments() -> None:
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    async with Portal() as portal:
        assert await portal.call(add, 2, 3) == 5


async def test_anything_awaitable() -> None:
    def future() -> asyncio.Future[str]:
        found = asyncio.get_running_loop().create_future()
        found.set_result("x")
        return found

    async with Portal() as portal:
        assert await portal.call(future) == "x"


async def test_error_with_its_traceback() -> None:
    async def deep_inside() -> None:
        raise KeyError("lost")

    async with Portal() as portal:
        with pytest.raises(KeyError, match="lost") as caught:
            await portal.call(deep_inside)
    assert "deep_inside" in "".join(traceback.format_exception(caught.value))


async def test_many_at_once() -> None:
    peak = running = 0

    async def square(n: int) -> int:
        nonlocal peak, running
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001 * (n % 7))
        running -= 1
        return n * n

    found: dict[int, int] = {}
    async with Portal() as portal, anyio.create_task_group() as tasks:

        async def one(n: int) -> None:
            found[n] = await portal.call(square, n)

        for n in range(1000):
            tasks.start_soon(one, n)
    assert found == {n: n * n for n in range(1000)}
    assert peak > 100


async def test_context_goes_along() -> None:
    async def read() -> str:
        return flavour.get()

    async with Portal() as portal:
        token = flavour.set("mint")
        assert await portal.call(read) == "mint"
        flavour.reset(token)
        assert await portal.call(read) == "plain"


async def test_cancelling_waits_for_the_end() -> None:
    happened: list[str] = []
    begun = anyio.Event()

    async with Portal() as portal:

        async def tidy() -> None:
            try:
                portal.post(begun.set)
                await asyncio.sleep(60)
            finally:
                happened.append("cancelled")
                await asyncio.sleep(0.05)
                happened.append("tidied")

        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                try:
                    await portal.call(tidy)
                finally:
                    happened.append("told")

            tasks.start_soon(call)
            await begun.wait()
            tasks.cancel_scope.cancel()
        assert happened == ["cancelled", "tidied", "told"]


async def test_a_value_is_not_lost_to_cancellation() -> None:
    """What was claimed from Redis must not vanish because the caller is being cancelled."""
    begun = anyio.Event()
    found: list[str] = []

    async with Portal() as portal:

        async def stubborn() -> str:
            portal.post(begun.set)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "value"
            return "too late"

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    found.append(await portal.call(stubborn))
                    await anyio.lowlevel.checkpoint()
                    found.append("went on")

                tasks.start_soon(call)
                await begun.wait()
                scope.cancel()
    assert scope.cancelled_caught
    assert found == ["value"]


async def test_an_error_while_being_cancelled_is_told() -> None:
    begun = anyio.Event()
    errors: list[str] = []

    async with Portal() as portal:

        async def breaks() -> None:
            portal.post(begun.set)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise ConnectionError("broken on the way out") from None

        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                try:
                    await portal.call(breaks)
                except ConnectionError as e:
                    errors.append(str(e))

            tasks.start_soon(call)
            await begun.wait()
            tasks.cancel_scope.cancel()
    assert errors == ["broken on the way out"]


async def test_a_call_in_a_cancelled_scope_never_runs() -> None:
    ran: list[str] = []

    async def run() -> None:
        await asyncio.sleep(0)
        ran.append("x")

    async with Portal() as portal:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await portal.call(run)
        assert scope.cancelled_caught
        assert ran == []


async def test_post_comes_home() -> None:
    home = threading.get_ident()
    seen: list[tuple[int, str]] = []
    arrived = anyio.Event()

    def here(word: str) -> None:
        seen.append((threading.get_ident(), word))
        arrived.set()

    async with Portal() as portal:

        async def over_there() -> int:
            portal.post(here, "hello")
            return threading.get_ident()

        assert await portal.call(over_there) != home
        await arrived.wait()
    assert seen == [(home, "hello")]


async def test_closed() -> None:
    portal = Portal()
    with pytest.raises(StreaqError, match="closed"):
        await portal.call(asyncio.sleep, 0)
    async with portal:
        await portal.call(asyncio.sleep, 0)
    with pytest.raises(StreaqError, match="closed"):
        await portal.call(asyncio.sleep, 0)
    assert "streaq-portal" not in {thread.name for thread in threading.enumerate()}


async def test_closing_ends_what_is_under_way() -> None:
    errors: list[str] = []
    begun = anyio.Event()
    portal = Portal()

    async def forever() -> None:
        portal.post(begun.set)
        await asyncio.Event().wait()

    async def call() -> None:
        try:
            await portal.call(forever)
        except StreaqError as e:
            errors.append(str(e))

    async with anyio.create_task_group() as tasks, portal:
        tasks.start_soon(call)
        await begun.wait()
    assert errors == ["the portal was closed before the call ended"]


async def test_leaving_in_a_hurry_leaves_no_thread() -> None:
    with anyio.CancelScope() as scope:
        async with Portal():
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert "streaq-portal" not in {thread.name for thread in threading.enumerate()}


async def test_a_client_lives_there() -> None:
    with Server() as server:
        connector = Connector(ConnectionSettings(server.url))
        async with Portal() as portal:
            client: Any = await portal.call(connector.open)
            await portal.call(connector.check, client)
            with anyio.move_on_after(0.1):
                await portal.call(client.blpop, ["never"])
            await portal.call(client.set, "k", "v")
            assert await portal.call(client.get, "k") == b"v"
            await portal.call(client.aclose)
