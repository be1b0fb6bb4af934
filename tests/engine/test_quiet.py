"""Attempts that nobody watches: hooks that only count are told of many at once, those that set
context variables set them all the same, and what does not succeed is told as ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
import redis

from streaq import Hook, StreaqCancelled, StreaqRetry, Worker
from streaq.broker.exchange import Request
from streaq.broker.keys import Keys
from streaq.engine.health import Health
from streaq.hooks import (
    Attempt,
    Dispatcher,
    Ending,
    Entry,
    Fence,
    Lane,
    Reclaim,
    Starts,
    Successes,
)
from streaq.telemetry import names
from streaq.telemetry.cells import LocalStore
from streaq.telemetry.metrics import MetricsHook
from tests.support import MakeWorker, running, until

pytestmark = pytest.mark.anyio

LANE: ContextVar[str] = ContextVar("lane", default="")
TASK: ContextVar[str] = ContextVar("task", default="")
OUTSIDE: ContextVar[str] = ContextVar("outside", default="")


class Quiet(Hook):
    """Wants nothing of attempts that succeed, for as long as ``quiet``."""

    def __init__(self) -> None:
        self.quiet = True
        self.started: list[str] = []
        self.entered: list[str] = []
        self.ended: list[Ending] = []

    def is_quiet(self) -> bool:
        return self.quiet

    def around_attempt(self, e: Attempt) -> AbstractContextManager[None]:
        self.entered.append(e.task_id)
        return nullcontext()

    def on_start(self, e: Attempt) -> None:
        self.started.append(e.task_id)

    def _end(self, e: Ending) -> None:
        self.ended.append(e)

    on_finish = on_fail = on_retry = on_abort = on_refuse = _end


class Tally(Hook):
    """Counts what begins and what succeeds."""

    def __init__(self) -> None:
        self.begun: Counter[Lane] = Counter()
        self.done: Counter[Lane] = Counter()
        self.seconds: list[tuple[float, float]] = []
        self.waits: list[float] = []

    def on_starts(self, e: Starts) -> None:
        self.begun[e.lane] += len(e.waits_s)
        self.waits += e.waits_s

    def on_successes(self, e: Successes) -> None:
        self.done[e.lane] += len(e.durations_s)
        self.seconds += zip(e.durations_s, e.totals_s, strict=True)


async def test_nobody_is_told_of_single_attempts_that_succeed(
    make_worker: MakeWorker, queue: str
) -> None:
    hook, tally = Quiet(), Tally()
    worker = make_worker(hooks=[hook, tally], id="w1", concurrency=8)

    @worker.task(name="t")
    async def t() -> None:
        await anyio.sleep(0.002)

    async with worker:
        await worker.enqueue_many([t.enqueue() for _ in range(50)])
        late = await t.enqueue().start(priority="low")
        async with running(worker):
            await late.result(5)
            await until(lambda: tally.done.total() == 51)
    assert (hook.started, hook.entered, hook.ended) == ([], [], [])
    lanes = {Lane(queue, "t", "normal", "w1"): 50, Lane(queue, "t", "low", "w1"): 1}
    assert tally.begun == tally.done == lanes
    assert all(0.001 < duration < total for duration, total in tally.seconds)
    assert all(0 <= waited < 5 for waited in tally.waits)
    assert worker.counters == {"completed": 51}


async def test_what_does_not_succeed_is_told_all_the_same(make_worker: MakeWorker) -> None:
    hook, tally = Quiet(), Tally()
    worker = make_worker(hooks=[hook, tally])

    @worker.task(name="t", max_tries=2)
    async def t(how: str, *, value: int) -> None:
        if how == "abort":
            raise StreaqCancelled("enough")
        if how == "retry":
            raise StreaqRetry(delay=0)
        raise KeyError(value)

    async with worker:
        ids = {how: (await t.enqueue(how, value=5)).id for how in ("abort", "retry", "fail")}
        async with running(worker):
            await until(lambda: len(hook.ended) == 4)
    assert hook.started == []
    found = sorted((e.attempt.task_id, e.attempt.try_number, e.status) for e in hook.ended)
    assert found == sorted(
        [
            (ids["abort"], 1, "aborted"),
            (ids["retry"], 1, "retried"),
            (ids["retry"], 2, "failed"),
            (ids["fail"], 1, "failed"),
        ]
    )
    assert {(e.attempt.args[0], e.attempt.kwargs["value"]) for e in hook.ended} == {
        (how, 5) for how in ids
    }
    assert all(e.duration_s > 0 and e.finished_ms >= e.attempt.started_ms for e in hook.ended)
    assert (tally.begun.total(), tally.done.total()) == (4, 0)


async def test_it_is_asked_again_while_the_worker_runs(make_worker: MakeWorker) -> None:
    hook = Quiet()
    worker = make_worker(hooks=[hook])

    @worker.task(name="t")
    async def t() -> None: ...

    async with worker, running(worker):
        await (await t.enqueue()).result(3)
        hook.quiet = False
        seen = await t.enqueue()
        await seen.result(3)
        await until(lambda: len(hook.ended) == 1)
        hook.quiet = True
        await (await t.enqueue()).result(3)
    assert hook.started == hook.entered == [seen.id] == [e.attempt.task_id for e in hook.ended]


async def test_one_that_watches_is_told_beside_one_that_does_not(make_worker: MakeWorker) -> None:
    class Loud(Quiet):
        def is_quiet(self) -> bool:
            return False

    quiet, loud, tally = Quiet(), Loud(), Tally()
    worker = make_worker(hooks=[quiet, loud, tally])

    @worker.task(name="t")
    async def t() -> None: ...

    async with worker, running(worker):
        task = await t.enqueue()
        await task.result(3)
        await until(lambda: bool(loud.ended) and tally.done.total() == 1)
    assert loud.started == loud.entered == [task.id]
    assert loud.ended[0].duration_s == tally.seconds[0][0], "both know the same"


def test_a_hook_that_cannot_say_is_taken_to_watch(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Quiet):
        def is_quiet(self) -> bool:
            raise ValueError("no idea")

    hooks = Dispatcher([Broken()])
    hooks.look()
    assert hooks.watching
    assert hooks.errors == 1
    assert "Broken.is_quiet" in caplog.text


def test_hooks_that_are_not_about_single_attempts_do_not_watch() -> None:
    class Fails(Hook):
        def on_fail(self, e: Ending) -> None: ...

    hooks = Dispatcher([Fails(), Tally()])
    hooks.look()
    assert not hooks.watching


async def test_arguments_that_cannot_be_decoded_have_begun(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook, tally = Quiet(), Tally()
    worker = make_worker(hooks=[hook, tally])

    @worker.task(name="t")
    async def t() -> None: ...

    async with worker:
        task = await t.enqueue()
        redis_client.hset(Keys(queue).task(task.id), "args", b"garbage")
        async with running(worker):
            await until(lambda: bool(hook.ended))
    [end] = hook.ended
    assert (end.status, end.reason, end.attempt.args) == ("refused", "undecodable", ())
    assert (tally.begun.total(), tally.done.total()) == (1, 0)


async def test_a_reclaim_is_told_of_an_attempt_that_nobody_watches(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    reclaimed: list[Reclaim] = []

    class Reclaims(Hook):
        def on_reclaim(self, e: Reclaim) -> None:
            reclaimed.append(e)

    tally = Tally()
    worker = make_worker(idle_timeout=0.2, hooks=[Reclaims(), tally])

    @worker.task(name="t")
    async def t(x: int) -> int:
        return x

    async with worker:
        task = await t.enqueue(7)
        await claim_and_vanish(worker, "dead")
        async with running(worker):
            assert (await task.result(10)).result == 7
            await until(lambda: tally.done.total() == 1)
    [event] = reclaimed
    assert (event.attempt.task_id, event.attempt.args) == (task.id, (7,))
    assert event.attempt.try_number == 2
    assert event.lost_worker == "dead"


async def test_a_reclaim_is_all_that_is_told_of_a_quiet_attempt(make_worker: MakeWorker) -> None:
    class Reclaims(Quiet):
        reclaimed = 0

        def on_reclaim(self, e: Reclaim) -> None:
            self.reclaimed += 1

    hook = Reclaims()
    worker = make_worker(idle_timeout=0.2, hooks=[hook])

    @worker.task(name="t")
    async def t() -> None: ...

    async with worker:
        task = await t.enqueue()
        await claim_and_vanish(worker, "dead")
        async with running(worker):
            await task.result(10)
            await until(lambda: worker.counters == {"completed": 1})
    assert hook.reclaimed == 1
    assert (hook.started, hook.entered, hook.ended) == ([], [], [])


async def test_a_success_that_is_fenced_is_told(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    """Its worker stood still, and another has the task: nothing says so but the settle."""
    fenced: list[Fence] = []

    class Fences(Quiet):
        def on_fenced(self, e: Fence) -> None:
            fenced.append(e)

    hook, tally, store = Fences(), Tally(), LocalStore()
    metrics = MetricsHook(store, queue)
    worker = make_worker(hooks=[hook, tally, metrics], idle_timeout=0.2)

    @worker.task(name="t")
    async def t(x: int) -> int:
        if t.context.tries == 1:
            redis_client.hset(Keys(queue).task(t.context.task_id), "who", "another")
        return x + 1

    async with worker:
        task = await t.enqueue(4)
        async with running(worker):
            await until(lambda: bool(fenced))
            assert (await task.result(10)).tries == 2
            await until(lambda: tally.done.total() == 1)
    [event] = fenced
    assert (event.ending.attempt.task_id, event.ending.attempt.args) == (task.id, (4,))
    assert (event.ending.status, event.ending.result) == ("success", 5)
    assert event.ending.duration_s > 0
    assert worker.counters == {"fenced": 1, "completed": 1}
    assert (hook.ended, tally.begun.total()) == ([], 2)
    values = {b.metric.name: b.values[0] for b in store.blocks() if not b.metric.buckets}
    assert values[names.TASKS_FENCED.name] == 1
    assert values[names.TASKS_RUNNING.name] == 0


async def test_headers_that_nobody_can_read_stall_no_worker(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Quiet()
    worker = make_worker(hooks=[hook])

    @worker.task(name="t")
    async def t() -> None:
        raise ValueError("mine")

    async with worker:
        task = await t.enqueue()
        redis_client.hset(Keys(queue).task(task.id), "head", b"[" * 200_000)
        async with running(worker):
            assert str((await task.result(3)).exception) == "mine"
            await until(lambda: bool(hook.ended))
    assert hook.ended[0].attempt.headers == {}


class Names(Hook):
    """Sets a variable for the lane, and one for the attempt."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []

    def on_lane(self, e: Lane) -> None:
        self.lanes.append(e)
        LANE.set(f"{e.task}/{e.priority}")

    def on_enter(self, e: Entry) -> None:
        TASK.set(f"{e.task_id}/{e.try_number}")


async def test_context_variables_of_the_lane_and_of_the_attempt(
    make_worker: MakeWorker, queue: str
) -> None:
    """They are there in the body and in threads, each attempt has its own, and what the worker
    was started with is there too.
    """
    hook = Names()
    worker = make_worker(hooks=[hook], id="w1")
    seen: list[tuple[str, str, str]] = []

    @worker.task(name="a", max_tries=2)
    async def a() -> None:
        seen.append((LANE.get(), TASK.get(), OUTSIDE.get()))
        TASK.set("spoilt")
        if len(seen) == 1:
            raise StreaqRetry(delay=0)

    @worker.task(name="b")
    def b() -> tuple[str, str, str]:
        return (LANE.get(), TASK.get(), OUTSIDE.get())

    OUTSIDE.set("here")
    async with worker, running(worker):
        first = await a.enqueue()
        await first.result(3)
        second = await a.enqueue()
        await second.result(3)
        in_thread = await b.enqueue().start(priority="high")
        found = (await in_thread.result(3)).result
    assert seen == [
        ("a/normal", f"{first.id}/1", "here"),
        ("a/normal", f"{first.id}/2", "here"),
        ("a/normal", f"{second.id}/1", "here"),
    ]
    assert found == ("b/high", f"{in_thread.id}/1", "here")
    assert (LANE.get(), TASK.get()) == ("", ""), "nothing leaks out of the attempts"
    assert hook.lanes == [Lane(queue, "a", "normal", "w1"), Lane(queue, "b", "high", "w1")]


async def test_a_hook_that_cannot_enter_harms_nothing(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Hook):
        def on_lane(self, e: Lane) -> None:
            raise ValueError("lane")

        def on_enter(self, e: Entry) -> None:
            raise ValueError("enter")

    worker = make_worker(hooks=[Broken(), Names()])

    @worker.task(name="t")
    async def t() -> str:
        return LANE.get() + TASK.get()

    async with worker, running(worker):
        task = await t.enqueue()
        assert (await task.result(3)).result == f"t/normal{task.id}/1"
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert sorted(message.split(" raised")[0] for message in messages) == [
        "hook Broken.on_enter", "hook Broken.on_lane",
    ]  # fmt: skip


async def test_the_oldest_that_runs_is_known_and_gone_when_it_ends(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker()
    go = {1: anyio.Event(), 2: anyio.Event()}

    @worker.task(name="t")
    async def t(x: int) -> None:
        await go[x].wait()

    health: Health = worker.health
    async with worker, running(worker):
        assert health.oldest_running_s == 0
        before = anyio.current_time()
        first = await t.enqueue(1)
        await until(lambda: health.oldest_running_s > 0)
        oldest_s = health.oldest_running_s
        await anyio.sleep(0.01)
        second = await t.enqueue(2)
        await until(lambda: worker.running() == 2)
        assert health.oldest_running_s == oldest_s
        go[1].set()
        await first.result(3)
        await until(lambda: health.oldest_running_s > oldest_s)
        assert health.oldest_running_s - oldest_s < anyio.current_time() - before + 0.01
        go[2].set()
        await second.result(3)
        await until(lambda: health.oldest_running_s == 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_factory_of_the_old_kind(make_worker: MakeWorker) -> None:
    """It takes a loop and a coroutine; and one that runs tasks at once runs none before it is
    told that they begin.
    """
    told: list[str] = []

    class Begun(Names):
        def on_starts(self, e: Starts) -> None:
            told.append("begins")

    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any]
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop)

    worker = make_worker(hooks=[Begun()])

    @worker.task(name="t")
    async def t() -> str:
        told.append("runs")
        return LANE.get() + TASK.get()

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        async with worker, running(worker):
            task = await t.enqueue()
            assert (await task.result(3)).result == f"t/normal{task.id}/1"
    finally:
        loop.set_task_factory(None)
    assert told == ["begins", "runs"]


async def claim_and_vanish(worker: Worker[Any], name: str) -> None:
    """Claim a task in the name of another worker, of which nothing is ever heard again."""
    broker = worker._session.broker()
    await broker.register(name, "digest", 200, ["normal"], {"t": "3||0|300000"})
    claim = broker.exchanger(name, 200, ["normal"])
    reply = await claim("digest", Request([], [], 1, 0, False, False))
    assert len(reply.claimed) == 1
