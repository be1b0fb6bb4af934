"""Enqueueing together: many callers, few calls, and everyone gets their own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ResponseError

from streaq.broker.publish import BATCH, Published, Publisher
from streaq.wire import Envelope
from tests.broker.bench import Bench, chain, task

pytestmark = pytest.mark.anyio


class Calls:
    """Stands between a publisher and its script: counts the tasks of each call, and may hold the
    answers back."""

    def __init__(self, bench: Bench) -> None:
        self._call = bench.call
        self.sizes: list[int] = []
        self.errors: list[Exception] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, name: str, args: Sequence[Any]) -> Any:
        self.sizes.append(args[0])
        self.begun.set()
        await self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        return await self._call(name, args)


def publisher(bench: Bench) -> tuple[Publisher, Calls]:
    calls = Calls(bench)
    scripts: Any = calls
    return Publisher(scripts), calls


def units(count: int, prefix: str = "t") -> list[list[Envelope]]:
    return [[task(f"{prefix}{i}")] for i in range(count)]


async def test_nothing_is_no_call(bench: Bench) -> None:
    publish, calls = publisher(bench)
    assert (await publish.publish([])).words == []
    assert calls.sizes == []


async def test_single_tasks_awaited_together_go_together(bench: Bench) -> None:
    publish, calls = publisher(bench)
    calls.open.clear()
    callers = [asyncio.create_task(publish.publish([unit])) for unit in units(100)]
    await calls.begun.wait()
    calls.open.set()
    published = await asyncio.gather(*callers)
    assert [p.words for p in published] == [["queued"]] * 100
    assert len(calls.sizes) <= 2
    assert sum(calls.sizes) == 100
    assert await bench.waiting() == [f"t{i}" for i in range(100)]


async def test_one_task_alone_is_sent_at_once(bench: Bench) -> None:
    publish, calls = publisher(bench)
    for i in range(3):
        await publish.publish([[task(f"t{i}")]])
    assert calls.sizes == [1, 1, 1]


async def test_a_large_batch_is_a_few_calls_in_order(bench: Bench) -> None:
    publish, calls = publisher(bench)
    published = await publish.publish(units(3 * BATCH + 7))
    assert published.words == ["queued"] * (3 * BATCH + 7)
    assert published.now_ms > 0
    assert calls.sizes == [BATCH, BATCH, BATCH, 7]
    assert await bench.waiting() == [f"t{i}" for i in range(3 * BATCH + 7)]


async def test_a_unit_is_never_split(bench: Bench) -> None:
    publish, calls = publisher(bench)
    chains = [chain(30) for _ in range(40)]
    published = await publish.publish(chains)
    assert published.words == ["queued", *["blocked"] * 29] * 40
    assert all(size % 30 == 0 and size <= BATCH for size in calls.sizes)


async def test_a_unit_larger_than_a_batch_goes_alone(bench: Bench) -> None:
    publish, calls = publisher(bench)
    huge = chain(BATCH * 2)
    published = await publish.publish([*units(3, "a"), huge, *units(3, "b")])
    assert calls.sizes == [3, BATCH * 2, 3]
    assert published.words == ["queued"] * 4 + ["blocked"] * (BATCH * 2 - 1) + ["queued"] * 3


async def test_everyone_gets_their_own_words(bench: Bench) -> None:
    publish, calls = publisher(bench)
    await publish.publish([[task("there")]])
    calls.open.clear()
    wanted = {
        "exists": [task("there")],
        "queued": [task("new")],
        "scheduled": [task("later", due="+3600000")],
        "blocked": [task("first"), task("second", then="first")],
        "done": [task("hopeless", after=["nobody"])],
    }
    callers = {word: asyncio.create_task(publish.publish([u])) for word, u in wanted.items()}
    await asyncio.sleep(0)
    calls.open.set()
    for word, caller in callers.items():
        assert (await caller).words[-1] == word
    assert calls.sizes == [1, 6]


async def test_what_followed_is_told_to_one_caller(bench: Bench) -> None:
    """Or hooks would hear of each change as often as there were callers."""
    publish, calls = publisher(bench)
    calls.open.clear()
    callers = [
        asyncio.create_task(publish.publish([[task(f"t{i}", after=["nobody"])]])) for i in range(5)
    ]
    await asyncio.sleep(0)
    calls.open.set()
    published = await asyncio.gather(*callers)
    told = [change.task_id for p in published for change in p.changes]
    assert sorted(told) == [f"t{i}" for i in range(5)]


async def test_an_error_reaches_every_caller_of_that_call_and_no_other(bench: Bench) -> None:
    publish, calls = publisher(bench)
    calls.open.clear()
    first = asyncio.create_task(publish.publish([[task("a")]]))
    await asyncio.sleep(0)
    rest = [asyncio.create_task(publish.publish([[task(f"b{i}")]])) for i in range(3)]
    await asyncio.sleep(0)
    calls.errors.append(ResponseError("no"))
    calls.open.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)
    assert isinstance(results[0], ResponseError)
    assert [r.words for r in results[1:] if isinstance(r, Published)] == [["queued"]] * 3
    assert (await publish.publish([[task("a")]])).words == ["queued"]


async def test_a_caller_that_gives_up_does_not_take_others_along(bench: Bench) -> None:
    publish, calls = publisher(bench)
    calls.open.clear()
    impatient = asyncio.create_task(publish.publish([[task("a")]]))
    patient = asyncio.create_task(publish.publish([[task("b")]]))
    await calls.begun.wait()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    assert impatient.cancelled()
    calls.open.set()
    assert (await patient).words == ["queued"]
    assert sorted(await bench.waiting()) == ["a", "b"]


async def test_a_large_batch_that_fails_in_the_middle_can_be_sent_again(bench: Bench) -> None:
    publish, calls = publisher(bench)
    wanted = units(2 * BATCH)
    calls.errors.append(ConnectionResetError("the first call"))
    with pytest.raises(ConnectionResetError):
        await publish.publish(wanted)
    words = (await publish.publish(wanted)).words
    assert words == ["queued"] * BATCH + ["exists"] * BATCH
    assert len(await bench.waiting()) == 2 * BATCH


async def test_thousands_of_callers_at_once(bench: Bench) -> None:
    publish, calls = publisher(bench)
    published = await asyncio.gather(*(publish.publish([unit]) for unit in units(5_000)))
    assert {p.words[0] for p in published} == {"queued"}
    assert len(calls.sizes) <= 12
