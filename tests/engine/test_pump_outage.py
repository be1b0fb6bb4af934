"""What the pump does when answers get lost, leases do, or the process was paused: nothing runs
twice that needn't, nothing is forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from streaq.broker.exchange import Claimed, Reply, Request, Reserved
from streaq.engine.attempt import Finished, Lease
from streaq.engine.outcome import Cause
from tests.engine.pumps import claim, finished, make_pump

pytestmark = pytest.mark.anyio

Answer = Callable[[Request], Reply]


def reply(request: Request, claimed: Iterable[Claimed] = (), **more: Any) -> Reply:
    codes = [1] * len(request.settles)
    plain = Reply(1, codes, list(claimed), [], [], [], short=request.want > 0, more=False)
    return plain._replace(**more)


class FakeBroker:
    """Fails as often as it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self.recovered: list[list[tuple[str, bytes]]] = []
        self.released: list[list[Reserved]] = []

    def _fail(self, name: str) -> None:
        if self.failures.get(name):
            self.failures[name] -= 1
            raise RedisConnectionError(name)

    async def recover(self, _: str, __: Sequence[str], held: Sequence[tuple[str, bytes]]) -> int:
        self._fail("recover")
        self.recovered.append(list(held))
        return 0

    async def release(self, _: str, messages: Sequence[Reserved]) -> None:
        self._fail("release")
        self.released.append(list(messages))


class Bench:
    """A pump whose exchanges get these answers, which may raise; after them, empty ones."""

    def __init__(self, *answers: Answer, concurrency: int = 4) -> None:
        self.broker = FakeBroker()
        self.answers = deque(answers)
        self.requests: list[Request] = []
        self.spawned: list[Lease] = []
        self.fenced: list[Finished] = []
        self.codes: list[int] = []
        ledger: Any = SimpleNamespace(
            settled=lambda _, codes: self.codes.extend(codes), fenced=self.fenced.append,
            starting=lambda _: None, has_news=False, tell=lambda: None,
        )  # fmt: skip
        self.pump = make_pump(self.broker, self.exchange, ledger, concurrency=concurrency)
        self.pump.spawn = self.spawned.append

    async def exchange(self, _: str, request: Request) -> Reply:
        self.requests.append(request)
        return self.answers.popleft()(request) if self.answers else reply(request)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """From when the pump has nothing to do until it has settled all and ended."""
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(self.pump.run)
                await anyio.wait_all_tasks_blocked()
                yield
                for lease in list(self.pump.running.values()):
                    self.finish(lease)
                self.pump.drain()

    async def again(self) -> None:
        """Let the pump look at the queue once more."""
        self.pump.reclaim_soon()
        await anyio.wait_all_tasks_blocked()

    def finish(self, lease: Lease, *, lost: bool = False) -> None:
        self.pump.finish(finished(lease, lost=lost))


def lost(_: Request) -> Reply:
    raise RedisConnectionError("lost")


def claims(*claimed: Claimed) -> Answer:
    return lambda request: reply(request, claimed)


async def test_an_abort_that_overtakes_the_answer_cancels_what_the_answer_brings(
    anyio_backend: object,
) -> None:
    """They come by different connections. A later attempt of the same id is another matter."""

    def aborted_meanwhile(request: Request) -> Reply:
        bench.pump.stop_task("id-1-1", Cause.ABORT)
        bench.pump.stop_task("id-1-3", Cause.ABORT)
        return reply(request, [claim(b"1-1"), claim(b"1-2")])

    bench = Bench(aborted_meanwhile)
    async with bench.running():
        assert [lease.cause for lease in bench.spawned] == [Cause.ABORT, None]
        bench.answers.append(claims(claim(b"1-3")))
        await bench.again()
        assert bench.spawned[-1].claimed.message_id == b"1-3"
        assert bench.spawned[-1].cause is None


async def test_claims_that_did_arrive_are_not_handed_back(anyio_backend: object) -> None:
    """The connection came back, went again before `recover`, and came back with new tasks."""
    bench = Bench(lost, reply, claims(claim(b"1-1"), claim(b"1-2")))
    bench.broker.failures["recover"] = 1
    async with bench.running():
        assert [lease.claimed.message_id for lease in bench.spawned] == [b"1-1", b"1-2"]
        assert bench.broker.recovered == [[("default", b"1-1"), ("default", b"1-2")]]


async def test_a_settle_without_an_answer_is_sent_again_and_nothing_claimed_with_it(
    anyio_backend: object,
) -> None:
    bench = Bench(claims(claim(b"1-1")))
    async with bench.running():
        bench.answers.extend([lost, lost, lambda request: reply(request, codes=[2])])
        bench.finish(bench.spawned[0])
        await anyio.wait_all_tasks_blocked()
        sent = [r for r in bench.requests if r.settles]
        assert [r.settles for r in sent] == [sent[0].settles] * 3
        assert [(r.want, r.reclaim, r.resent) for r in sent[1:]] == [(0, False, True)] * 2
        assert bench.codes == [2]


async def test_a_handing_back_that_fails_does_not_end_the_worker(anyio_backend: object) -> None:
    """It has a message too many: it read one, and claimed as many tasks as it has room for."""
    message = Reserved("r", b"2-1", "default")
    bench = Bench(lambda r: reply(r, [claim(b"1-1")], reserved=[message]), concurrency=1)
    bench.broker.failures["release"] = 1
    async with bench.running():
        assert bench.broker.released == []
        assert bench.pump.held()[-1][1] == b"2-1"  # still ours, and renewed
        bench.finish(bench.spawned[0])
        await anyio.wait_all_tasks_blocked()
        assert bench.requests[1].starts == [message]


async def test_what_is_left_to_reclaim_is_asked_for_at_once(anyio_backend: object) -> None:
    bench = Bench(*[lambda request: reply(request, more=True)] * 2)
    async with bench.running():
        assert [r.reclaim for r in bench.requests] == [True, True, True]


async def test_a_lost_lease_is_told_from_the_one_after_it(anyio_backend: object) -> None:
    """A task may run here again already when the renewal of its last try is answered."""
    bench = Bench(claims(claim(b"1-1", 2)))
    async with bench.running():
        (lease,) = bench.spawned
        bench.pump.lose("id-1-1", "1")
        bench.pump.lose("id-1-0", "2")
        bench.pump.lose("id-1-1", "")
        assert lease.cause is None
        bench.pump.lose("id-1-1", "2")
        assert lease.cause is Cause.LOST


async def test_a_process_that_was_paused_may_reclaim_from_itself(anyio_backend: object) -> None:
    """The attempt that ran is given up; the one that took its place keeps its slot and lease."""
    bench = Bench(claims(claim(b"1-1")), claims(claim(b"1-1", 2)))
    async with bench.running():
        await bench.again()
        first, second = bench.spawned
        assert (first.cause, second.cause) == (Cause.LOST, None)
        bench.finish(first, lost=True)
        assert list(bench.pump.running.values()) == [second]
        assert [held[3] for held in bench.pump.held()] == ["2"]
    assert bench.codes == [1]
    assert [finished.lease for finished in bench.fenced] == [first]


async def test_messages_of_two_priorities_may_have_the_same_id(anyio_backend: object) -> None:
    """They do, whenever one call enqueues to both; the attempts have nothing to do with another."""
    high, low = claim(b"1-1")._replace(task_id="a"), claim(b"1-1")._replace(task_id="b")
    bench = Bench(claims(high._replace(priority="high"), low._replace(priority="low")))
    async with bench.running():
        a, b = bench.spawned
        assert (a.cause, b.cause) == (None, None)
        assert [(held[0], held[2]) for held in bench.pump.held()] == [("a", "high"), ("b", "low")]
        bench.finish(a)
        await anyio.wait_all_tasks_blocked()
        assert list(bench.pump.running.values()) == [b]
    assert bench.codes == [1, 1]
