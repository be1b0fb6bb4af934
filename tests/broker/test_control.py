"""The one subscription of a process: who listens is told, and again after every interruption."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from streaq.broker.control import Subscription
from tests.broker.bench import Bench

pytestmark = pytest.mark.anyio


class Listener:
    """Listens to a channel, and counts how often it was told that it can miss nothing now."""

    def __init__(self, subscription: Subscription, channel: str) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.ready = asyncio.Event()
        self.times_ready = 0
        self._on_ready: Callable[[], None] = self._note
        subscription.add(channel, self.heard.put_nowait, self._on_ready)

    def _note(self) -> None:
        self.times_ready += 1
        self.ready.set()

    async def until_ready(self) -> None:
        await self.ready.wait()
        self.ready.clear()


def subscription_of(bench: Bench) -> Subscription:
    return bench.broker._subscription


async def test_messages_reach_their_listeners_and_no_other(bench: Bench) -> None:
    one, two = (Listener(subscription_of(bench), name) for name in ("one", "two"))
    await one.until_ready()
    await two.until_ready()
    await bench.raw("PUBLISH", "one", b"\xff")
    await bench.raw("PUBLISH", "two", "2")
    assert (await one.heard.get(), await two.heard.get()) == (b"\xff", b"2")
    assert (one.heard.empty(), two.heard.empty()) == (True, True)


async def test_nothing_is_missed_once_it_is_ready(bench: Bench) -> None:
    for n in range(30):
        listener = Listener(subscription_of(bench), f"c{n}")
        await listener.until_ready()
        assert await bench.raw("PUBLISH", f"c{n}", "x") == 1
        assert await listener.heard.get() == b"x"


async def test_no_connection_before_somebody_listens(bench: Bench) -> None:
    assert await bench.raw("CLIENT", "LIST", "TYPE", "PUBSUB") == b""
    listeners = [Listener(subscription_of(bench), f"c{n}") for n in range(200)]
    for listener in listeners:
        await listener.until_ready()
    assert (await bench.raw("CLIENT", "LIST", "TYPE", "PUBSUB")).count(b"\n") == 1


async def test_who_stops_listening_hears_no_more(bench: Bench) -> None:
    subscription = subscription_of(bench)
    gone, stays = Listener(subscription, "gone"), Listener(subscription, "stays")
    await gone.until_ready()
    await stays.until_ready()
    subscription.discard("gone")
    subscription.discard("gone")
    subscription.discard("never there")
    await bench.raw("PUBLISH", "gone", "x")
    await bench.raw("PUBLISH", "stays", "y")
    assert await stays.heard.get() == b"y"
    assert gone.heard.empty()


async def test_everybody_left_and_somebody_comes(bench: Bench) -> None:
    subscription = subscription_of(bench)
    first = Listener(subscription, "first")
    await first.until_ready()
    subscription.discard("first")
    await bench.until_nobody_listens()
    second = Listener(subscription, "second")
    await second.until_ready()
    await bench.raw("PUBLISH", "second", "x")
    assert await second.heard.get() == b"x"


async def test_leaving_and_coming_back_at_once(bench: Bench) -> None:
    subscription = subscription_of(bench)
    await Listener(subscription, "c").until_ready()
    for turns in range(20):
        subscription.discard("c")
        for _ in range(turns % 4):
            await asyncio.sleep(0)
        listener = Listener(subscription, "c")
        await listener.until_ready()
        # The server may still be about to see us leave and come back.
        await bench.until(lambda text=str(turns): bench.raw("PUBLISH", "c", text))
        assert await listener.heard.get() == str(turns).encode()


async def test_a_lost_connection_is_opened_again_and_everyone_told(bench: Bench) -> None:
    subscription = subscription_of(bench)
    listeners = [Listener(subscription, f"c{n}") for n in range(5)]
    for listener in listeners:
        await listener.until_ready()
    for _ in range(5):
        await bench.raw("CLIENT", "KILL", "TYPE", "PUBSUB")
        for listener in listeners:
            await listener.until_ready()
    for n, listener in enumerate(listeners):
        assert listener.times_ready == 6
        await bench.raw("PUBLISH", f"c{n}", "back")
        assert await listener.heard.get() == b"back"


async def test_who_came_while_the_connection_was_away_is_told_too(bench: Bench) -> None:
    subscription = subscription_of(bench)
    old = Listener(subscription, "old")
    await old.until_ready()
    await bench.raw("CLIENT", "KILL", "TYPE", "PUBSUB")
    new = Listener(subscription, "new")
    subscription.discard("old")
    await new.until_ready()
    await bench.raw("PUBLISH", "new", "x")
    assert await new.heard.get() == b"x"
    assert old.heard.empty()


async def test_a_listener_that_raises_is_reported_and_the_others_go_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = subscription_of(bench)

    def raises(_: bytes) -> None:
        raise ValueError("of the listener")

    ready = asyncio.Event()
    subscription.add("bad", raises, ready.set)
    good = Listener(subscription, "good")
    await ready.wait()
    await good.until_ready()
    await bench.raw("PUBLISH", "bad", "x")
    await good.until_ready()  # it was told to look for what it may have missed
    await bench.raw("PUBLISH", "good", "y")
    assert await good.heard.get() == b"y"
    assert "of the listener" in caplog.text


async def test_closing_is_final_and_may_be_repeated(bench: Bench) -> None:
    other = Bench(bench.server, "closing")
    await other.open()
    listener = Listener(subscription_of(other), "c")
    await listener.until_ready()
    await subscription_of(other).close()
    await subscription_of(other).close()
    await other.close()
    await bench.until_nobody_listens()
