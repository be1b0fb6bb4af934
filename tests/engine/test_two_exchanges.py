"""Two exchanges under way at once: never more than fits, nothing lost when either fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from streaq.broker.exchange import Claimed, Reply, Request, Reserved
from streaq.engine.attempt import Lease
from tests.engine.pumps import claim, finished, make_pump

pytestmark = pytest.mark.anyio

SLOTS = 8


class Call:
    """One exchange that the server has not answered yet."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._answered = anyio.Event()
        self._reply: Reply | Exception | None = None

    def answer(self, claimed: Iterable[int] = (), **more: Any) -> None:
        codes = [1] * len(self.request.settles)
        found = [numbered(number) for number in claimed]
        short = len(found) < self.request.want
        plain = Reply(1, codes, found, [], [], [], short=short, more=False)
        self._reply = plain._replace(**more)
        self._answered.set()

    def fail(self, error: Exception | None = None) -> None:
        self._reply = error or RedisConnectionError("lost")
        self._answered.set()

    async def wait(self) -> Reply:
        await self._answered.wait()
        if isinstance(self._reply, Exception):
            raise self._reply
        assert self._reply is not None
        return self._reply


def numbered(number: int) -> Claimed:
    return claim(b"%d-0" % number)._replace(task_id=f"id-{number}")


class Bench:
    """A pump with eight slots, whose server answers when it is told to."""

    def __init__(self, *, burst: bool = False) -> None:
        self.calls: list[Call] = []
        self.recovered: list[set[bytes]] = []
        self.registered = 0
        self.on_its_way = 0
        self.ended = False
        self._arrived = anyio.Event()
        self.spawned: list[Lease] = []
        self.settled: list[str] = []
        ledger: Any = SimpleNamespace(
            settled=lambda ends, _: self.settled.extend(f.lease.claimed.task_id for f in ends),
            starting=lambda _: None, fenced=lambda _: None, has_news=False, tell=lambda: None,
        )  # fmt: skip
        broker = SimpleNamespace(
            recover=self._recover, register=self._register, release=None, read=self._read,
            count_held=self._count_held,
        )  # fmt: skip
        self.pump = make_pump(broker, self._exchange, ledger, concurrency=SLOTS, burst=burst)
        self.pump.spawn = self.spawned.append
        self.pump.burst.look = self._look

    async def _exchange(self, _: str, request: Request) -> Reply:
        call = Call(request)
        self.calls.append(call)
        return await call.wait()

    async def _recover(self, _: str, __: object, known: list[tuple[str, bytes]]) -> int:
        self.recovered.append({message for _, message in known})
        return 0

    async def _register(self, *_: object) -> None:
        self.registered += 1

    async def _count_held(self, *_: object) -> int:
        return self.on_its_way

    async def _read(self, *_: object) -> list[Reserved]:
        await self._arrived.wait()
        self._arrived = anyio.Event()
        return [Reserved("id-1", b"1-0", "default")]

    def message_comes(self) -> None:
        self._arrived.set()

    async def arrive(self) -> None:
        """A message comes to the idle worker."""
        self.message_comes()
        await anyio.wait_all_tasks_blocked()

    async def _look(self) -> None:
        pass

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(self.pump.help_forever)
                group.start_soon(self.pump.reader.run)
                group.start_soon(self._run)
                await anyio.wait_all_tasks_blocked()
                yield
                group.cancel_scope.cancel()

    async def _run(self) -> None:
        await self.pump.run()
        self.ended = True

    def lose(self, number: int) -> None:
        """The attempt ended after its lease was lost."""
        lease = self.pump.running[f"id-{number}"]
        self.pump.finish(finished(lease, lost=True))

    async def claim_all(self) -> Call:
        """Fill every slot."""
        await self.answer(self.calls[0], claimed=range(1, SLOTS + 1))
        return self.calls[0]

    async def answer(self, call: Call, claimed: Iterable[int] = (), **more: Any) -> None:
        call.answer(claimed, **more)
        await anyio.wait_all_tasks_blocked()

    async def fail(self, call: Call, error: Exception | None = None) -> None:
        call.fail(error)
        await anyio.wait_all_tasks_blocked()

    async def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.pump.finish(finished(self.pump.running[f"id-{number}"]))
        await anyio.wait_all_tasks_blocked()

    @property
    def held(self) -> set[bytes]:
        return {held[1] for held in self.pump.held()}


def ids(call: Call) -> list[str]:
    return [settle.task_id for settle in call.request.settles]


def messages(*numbers: int) -> set[bytes]:
    return {b"%d-0" % number for number in numbers}


async def split(bench: Bench) -> tuple[Call, Call]:
    """Eight tasks ended at once: two exchanges settle four each."""
    await bench.claim_all()
    await bench.finish(*range(1, 9))
    _, first, second = bench.calls
    assert ids(first) == ["id-1", "id-2", "id-3", "id-4"]
    assert ids(second) == ["id-5", "id-6", "id-7", "id-8"]
    assert (first.request.want, second.request.want) == (4, 4)
    return first, second


async def test_what_ends_at_once_is_settled_in_two_halves(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        first, second = await split(bench)
        assert bench.held == messages(*range(1, 9))
        await bench.answer(first, claimed=range(11, 15))
        assert len(bench.spawned) == SLOTS + 4
        assert bench.held == messages(5, 6, 7, 8, 11, 12, 13, 14)
        await bench.answer(second, claimed=range(15, 19))
        assert len(bench.pump.running) == SLOTS
        assert len(bench.calls) == 3, "every slot is taken: there is nothing to ask for"


async def test_never_more_is_asked_for_than_fits(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        await bench.claim_all()
        await bench.finish(1)
        await bench.finish(2, 3, 4)
        asked = [call.request.want for call in bench.calls[1:]]
        assert asked == [1, 3]
        await bench.finish(5, 6, 7, 8)
        assert len(bench.calls) == 3, "two are under way"
        await bench.answer(bench.calls[2], claimed=[11, 12, 13])
        assert [call.request.want for call in bench.calls[1:]] == [1, 3, 4]
        assert ids(bench.calls[3]) == ["id-5", "id-6", "id-7", "id-8"]


async def test_a_few_wait_for_the_answer(anyio_backend: object) -> None:
    """The second exchange is for throughput; for a single task it would only cost Redis more."""
    bench = Bench()
    async with bench.working():
        await bench.claim_all()
        await bench.finish(1)
        await bench.finish(2)
        assert len(bench.calls) == 2
        await bench.answer(bench.calls[1])
        assert ids(bench.calls[2]) == ["id-2"]


async def test_what_the_second_could_not_deliver_goes_with_the_first(
    anyio_backend: object,
) -> None:
    bench = Bench()
    async with bench.working():
        first, second = await split(bench)
        await bench.fail(second)
        assert bench.held == messages(*range(1, 9))
        assert bench.recovered == []
        await bench.answer(first, claimed=range(11, 15))
        assert bench.recovered == [messages(*range(1, 9), *range(11, 15))]
        again = bench.calls[3]
        assert ids(again) == ["id-5", "id-6", "id-7", "id-8"]
        assert again.request.resent
        await bench.answer(again, codes=[2] * 4)
        assert bench.settled == [f"id-{number}" for number in range(1, 9)]


async def test_what_the_second_claims_is_not_handed_back_when_the_first_fails(
    anyio_backend: object,
) -> None:
    bench = Bench()
    async with bench.working():
        first, second = await split(bench)
        await bench.fail(first)
        again = bench.calls[3]
        assert ids(again) == ids(first)
        assert (again.request.want, again.request.resent) == (0, True)
        await bench.answer(again, codes=[2] * 4)
        assert bench.recovered == [], "the second may have claimed something"
        await bench.answer(second, claimed=range(11, 15))
        assert bench.recovered == [messages(*range(1, 5), *range(11, 15))]
        assert bench.calls[4].request.want == 4


async def test_when_both_fail_all_is_sent_again(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        first, second = await split(bench)
        await bench.fail(second)
        await bench.fail(first)
        await bench.answer(bench.calls[3])
        assert ids(bench.calls[4]) == ids(second)
        assert [call.request.resent for call in bench.calls[3:]] == [True, True]
        assert len(bench.recovered) == 1


async def test_a_server_that_forgot_the_functions_is_told_them_by_the_first(
    anyio_backend: object,
) -> None:
    bench = Bench()
    async with bench.working():
        first, second = await split(bench)
        await bench.fail(second, ResponseError("STREAQ_REGISTRY is gone"))
        assert bench.registered == 0
        await bench.fail(first, ResponseError("STREAQ_REGISTRY is gone"))
        assert bench.registered == 1
        await bench.answer(bench.calls[3])
        assert ids(bench.calls[4]) == ids(second)
        assert bench.recovered == [], "the server was there all the time"


async def test_a_cancelled_worker_settles_both_halves_again(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        await split(bench)
    bench.pump.interrupted()
    bench.pump.drain()
    assert bench.held == messages(*range(1, 9))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(bench.pump.run)
            await anyio.wait_all_tasks_blocked()
            last = bench.calls[-1]
            assert ids(last) == [f"id-{number}" for number in range(1, 9)]
            assert (last.request.want, last.request.resent) == (0, True)
            last.answer(codes=[2] * 8)
    assert bench.held == set()


async def test_a_lease_that_is_lost_while_another_is_settled_does_not_hold_up_the_end(
    anyio_backend: object,
) -> None:
    bench = Bench()
    async with bench.working():
        await bench.answer(bench.calls[0], claimed=[1, 2])
        await bench.finish(1)
        bench.pump.drain()
        bench.lose(2)
        await bench.answer(bench.calls[1])
        assert bench.ended


async def test_a_worker_that_gives_up_on_redis_leaves_with_one_under_way(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaq.engine.pump.GIVE_UP_S", 0.0)
    bench = Bench()
    async with bench.working():
        first, second = await split(bench)
        bench.pump.drain()
        await bench.fail(first)
        await bench.fail(second)
        assert len(bench.calls) == 3
        assert bench.ended
        assert bench.held == set()


async def test_a_burst_does_not_end_while_the_second_may_bring_something(
    anyio_backend: object,
) -> None:
    bench = Bench(burst=True)
    async with bench.working():
        first, second = await split(bench)
        await bench.answer(first)
        assert len(bench.calls) == 3
        await bench.answer(second, claimed=[15])
        await bench.answer(bench.calls[3])
        await bench.finish(15)
        await bench.answer(bench.calls[4])
        assert not bench.ended, "what is due is looked for once more"
        await bench.answer(bench.calls[5])
        assert bench.ended
        assert bench.settled[-1] == "id-15"


async def test_a_burst_whose_second_exchange_only_settled_asks_again(
    anyio_backend: object,
) -> None:
    """The first found nothing when it could not know that all was settled."""
    bench = Bench(burst=True)
    async with bench.working():
        await bench.claim_all()
        await bench.finish(*range(1, 7))
        first, second = bench.calls[1:]
        assert (ids(first), ids(second)) == (["id-1", "id-2", "id-3", "id-4"], ["id-5", "id-6"])
        await bench.finish(7, 8)
        await bench.answer(first)
        await bench.answer(bench.calls[3])
        await bench.answer(second)
        for call in bench.calls[4:]:
            await bench.answer(call)
        await bench.answer(bench.calls[-1])
        assert bench.ended


async def test_a_burst_does_not_end_while_a_read_has_a_message_on_its_way(
    anyio_backend: object,
) -> None:
    """Redis gave it to the read, so no exchange finds it, and the worker has not heard of it."""
    bench = Bench(burst=True)
    async with bench.working():
        await bench.answer(bench.calls[0], claimed=[7])
        await bench.finish(7)
        await bench.answer(bench.calls[1])
        bench.on_its_way = 1
        await bench.answer(bench.calls[2])
        assert len(bench.calls) == 3, "it waits for the read"
        assert not bench.ended
        await bench.arrive()
        assert [start.task_id for start in bench.calls[3].request.starts] == ["id-1"]
        bench.on_its_way = 0
        await bench.answer(bench.calls[3], claimed=[1])
        await bench.answer(bench.calls[4])
        await bench.finish(1)
        while not bench.ended:
            await bench.answer(bench.calls[-1])
        assert bench.settled == ["id-7", "id-1"]


async def idle(bench: Bench) -> None:
    await bench.answer(bench.calls[0])
    assert len(bench.calls) == 1


async def test_what_wakes_an_idle_worker_is_claimed_and_counted(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        await idle(bench)
        await bench.arrive()
        (call,) = bench.calls[1:]
        assert [start.task_id for start in call.request.starts] == ["id-1"]
        assert call.request.want == SLOTS - 1
        bench.pump.reclaim_soon()
        await anyio.wait_all_tasks_blocked()
        assert len(bench.calls) == 2, "every slot is spoken for"
        await bench.answer(call, claimed=[1])
        assert bench.held == messages(1)
        await bench.answer(bench.calls[2])
        await bench.finish(1)
        assert ids(bench.calls[3]) == ["id-1"]


async def test_what_was_not_started_because_the_functions_were_forgotten_is_started_later(
    anyio_backend: object,
) -> None:
    bench = Bench()
    async with bench.working():
        await idle(bench)
        await bench.arrive()
        await bench.fail(bench.calls[1], ResponseError("STREAQ_REGISTRY is gone"))
        again = bench.calls[2]
        assert [start.task_id for start in again.request.starts] == ["id-1"]
        assert bench.recovered == []


async def test_what_may_have_been_started_unheard_is_handed_back(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        await idle(bench)
        await bench.arrive()
        await bench.fail(bench.calls[1])
        assert bench.calls[2].request.starts == []
        await bench.answer(bench.calls[2])
        assert bench.recovered == [set()]


async def test_a_message_that_comes_as_a_lease_is_lost_is_claimed(anyio_backend: object) -> None:
    bench = Bench()
    async with bench.working():
        await bench.answer(bench.calls[0], claimed=[2])
        bench.message_comes()
        bench.lose(2)
        await anyio.wait_all_tasks_blocked()
        (call,) = bench.calls[1:]
        assert call.request.settles == []
        await bench.answer(call, claimed=[1])
        assert bench.held == messages(1)
