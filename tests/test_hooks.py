"""Every event fires, once, with the right fields, after the settle has committed; and a hook that
raises harms nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import redis

from streaq import Hook, StreaqCancelled, StreaqError, StreaqRetry, Worker
from streaq.broker.keys import Keys
from streaq.hooks import SLOTS, Attempt, Complaints, Dispatcher, Ending, Enqueue, Publish
from streaq.testing import RecordingHook
from tests.servers import Server
from tests.support import MakeWorker, running, until

pytestmark = pytest.mark.anyio


class Recorder(RecordingHook):
    """Lets a test wait for an event: a result may be known before the hooks of it are told."""

    async def wait(self, hook: str, count: int = 1) -> Any:
        await until(lambda: len(self.of(hook)) >= count)
        return self.of(hook)[-1]


@pytest.fixture
def hook() -> Recorder:
    return Recorder()


async def test_enqueuing(make_worker: MakeWorker, hook: Recorder, queue: str) -> None:
    worker = make_worker(hooks=[hook], id="producer")

    @worker.task(name="step", silent=True)
    async def step(i: int) -> int:
        return i

    async with worker:
        first = step.enqueue(1).start(priority="high")
        second = first.then(step)
        await second
        (publish,) = hook.of("around_publish")
        assert (publish.queue, publish.client_id) == (queue, "producer")
        assert list(publish.tasks) == hook.of("on_enqueue") == hook.of("on_enqueued")
        assert publish.tasks == [
            Enqueue(queue, "step", first.id, "high", "immediate", 0, (), {}, True),
            Enqueue(queue, "step", second.id, "normal", "dependent", 0, (first.id,), {}, True),
        ]
        hook.clear()
        # What is there already is not enqueued again.
        await first
        assert (len(hook.of("on_enqueue")), hook.of("on_enqueued")) == (1, [])
        hook.clear()
        delayed = await step.enqueue(1).start(delay=60)
        cron = await step.enqueue(1).start(schedule="@yearly")
        seen = [(e.kind, e.delay_ms) for e in hook.of("on_enqueued")]
        assert seen == [("delayed", 60_000), ("cron", 0)]
        hook.clear()
        batch = [step.enqueue(i) for i in range(3)]
        await worker.enqueue_many(batch)
        assert [len(e.tasks) for e in hook.of("around_publish")] == [3]
        hook.clear()
        # Nothing is said to be enqueued that was not.
        with pytest.raises(StreaqError):
            await step.enqueue(lambda: 1)  # type: ignore[arg-type]
        assert hook.of("on_enqueued") == []
        for task in (delayed, first, *batch):
            await task.abort()
        await cron.unschedule()


async def test_headers_travel_with_the_task(make_worker: MakeWorker, hook: Recorder) -> None:
    class Tenant(Hook):
        def on_enqueue(self, e: Enqueue) -> None:
            e.headers["tenant"] = "é"

    worker = make_worker(hooks=[Tenant(), hook])

    @worker.task
    async def step(val: int) -> int:
        if step.context.tries == 1:
            raise StreaqRetry(delay=0)
        return val

    async with running(worker):
        await (await step.enqueue(1).then(step)).result(3)
        await hook.wait("on_finish", 2)
    assert [e.headers for e in hook.of("on_start")] == [{"tenant": "é"}] * 4


async def test_a_success(make_worker: MakeWorker, hook: Recorder, queue: str) -> None:
    ends: list[Ending | None] = []
    slept: list[float] = []

    class AtExit(Hook):
        @contextmanager
        def around_attempt(self, e: Attempt) -> Generator[None]:
            yield
            ends.append(e.mark.end)

    worker = make_worker(hooks=[hook, AtExit()], id="w1")

    @worker.task(name="add", max_tries=5)
    async def add(a: int, *, b: int) -> int:
        began = time.monotonic()
        await anyio.sleep(0.02)
        slept.append(time.monotonic() - began)  # a little less, on a loop whose clock is coarse
        return a + b

    before = round(time.time() * 1000)
    async with running(worker):
        task = await add.enqueue(1, b=2).start(priority="low")
        await task.result(3)
        ending = await hook.wait("on_finish")
    (attempt,) = hook.of("on_start")
    assert hook.of("around_attempt") == [attempt]
    assert (attempt.queue, attempt.task, attempt.task_id) == (queue, "add", task.id)
    assert (attempt.priority, attempt.kind, attempt.worker_id) == ("low", "immediate", "w1")
    assert (attempt.try_number, attempt.max_tries, attempt.silent) == (1, 5, False)
    assert (attempt.args, attempt.kwargs) == ((1,), {"b": 2})
    assert (attempt.headers, attempt.previous, attempt.links) == ({}, "", ())
    times = (attempt.created_ms, attempt.due_ms, attempt.enqueued_ms, attempt.started_ms)
    assert list(times) == sorted(times)
    assert before - 1000 <= times[0] <= times[-1] <= before + 10_000
    assert 0 <= attempt.wait_ms < 5000
    assert ending.attempt is attempt
    assert (ending.status, ending.reason, ending.error, ending.result) == ("success", "ok", None, 3)
    assert slept[0] <= ending.duration_s < 5
    assert ending.finished_ms - attempt.started_ms == round(ending.duration_s * 1000)
    assert ends == [ending]


async def test_failures(make_worker: MakeWorker, hook: Recorder) -> None:
    worker = make_worker(hooks=[hook])

    @worker.task(timeout=0.02)
    async def fails(how: str) -> object:
        if how == "timeout":
            await anyio.sleep_forever()
        if how == "exhausted":
            raise StreaqRetry("not now", delay=0) from KeyError("real")
        if how == "unserialisable":
            return lambda: 1
        raise ValueError("Oh no!")

    async with running(worker):
        for how in ("error", "timeout", "exhausted", "unserialisable"):
            await (await fails.enqueue(how)).result(3)
        await hook.wait("on_fail", 4)
    seen = [(e.status, e.reason, type(e.error)) for e in hook.of("on_fail")]
    assert seen == [
        ("failed", "error", ValueError),
        ("failed", "timeout", TimeoutError),
        ("failed", "exhausted", KeyError),
        ("failed", "error", StreaqError),
    ]
    assert hook.of("on_finish") == []
    retries = hook.of("on_retry")
    assert [(e.attempt.try_number, e.status, e.reason) for e in retries] == [
        (1, "retried", "asked"), (2, "retried", "asked"),
    ]  # fmt: skip
    assert [e.kind for e in hook.of("on_start")[2:5]] == ["immediate", "retry", "retry"]
    assert all(isinstance(e.error, StreaqRetry) for e in retries)
    assert all(e.retry_due_ms == e.finished_ms for e in retries)


async def test_aborts(make_worker: MakeWorker, hook: Recorder) -> None:
    worker = make_worker(hooks=[hook])
    started = anyio.Event()

    @worker.task(name="waits")
    async def waits(raises: bool = False) -> None:
        if raises:
            raise StreaqCancelled("enough")
        started.set()
        await anyio.sleep_forever()

    async with worker:
        queued = await waits.enqueue().start(priority="high")
        await queued.abort()
        (ending,) = hook.of("on_abort")
        attempt = ending.attempt
        assert (attempt.task, attempt.task_id, attempt.priority) == ("waits", queued.id, "high")
        assert (attempt.started_ms, attempt.try_number) == (0, 0)
        assert 0 <= attempt.wait_ms < 10_000, "it waited, if never for its body"
        assert (ending.status, ending.reason, ending.duration_s) == ("aborted", "user", 0.0)
        assert isinstance(ending.error, StreaqCancelled)
        assert attempt.created_ms <= ending.finished_ms
        assert attempt.created_ms > 1_600_000_000_000
        async with running(worker):
            task = await waits.enqueue()
            await started.wait()
            assert await task.abort()
            await (await waits.enqueue(raises=True)).result(3)
            await hook.wait("on_abort", 3)
    assert [(e.reason, e.attempt.try_number) for e in hook.of("on_abort")] == [
        ("user", 0), ("user", 1), ("raised", 1),
    ]  # fmt: skip
    assert hook.of("on_abort")[1].attempt.started_ms > 0


async def test_every_refusal(  # noqa: PLR0915 - seven of them, one queue
    make_worker: MakeWorker, hook: Recorder, redis_client: redis.Redis, queue: str
) -> None:
    worker, producer = make_worker(hooks=[hook], id="w1"), make_worker()
    go, started = anyio.Event(), anyio.Event()

    @worker.task(name="quick", expire=0.001)
    async def quick(val: int = 0) -> None: ...

    @worker.task(name="alone", unique=True)
    async def alone() -> None:
        started.set()
        await go.wait()

    @worker.cron("0 * * * *", name="late", max_schedule_drift=0)
    async def late() -> None: ...

    cron_key = f"{Keys(queue).base}cron:late"
    redis_client.hset(cron_key, mapping={"tab": "0 * * * * UTC", "last": 1})
    redis_client.expire(cron_key, 60)
    async with worker, producer:
        expired = await quick.enqueue()
        await anyio.sleep(0.005)
        unknown = await producer.enqueue_unsafe("nowhere")
        garbled = await producer.enqueue_unsafe("quick")
        redis_client.hset(Keys(queue).task(garbled.id), "args", b"garbage")
        dead = await producer.enqueue_unsafe("quick")
        redis_client.hset(Keys(queue).task(dead.id), "try", "3")
        failed = await producer.enqueue_unsafe("nowhere").start(delay=60)
        follows = await producer.enqueue_unsafe("quick").start(after=failed.id)
        await worker.abort_by_id(failed.id)
        async with running(worker):
            first = await alone.enqueue()
            await started.wait()
            clash = await alone.enqueue()
            await hook.wait("on_refuse", 7)
            go.set()
            await first.result(3)
    refused = {e.reason: e for e in hook.of("on_refuse")}
    tasks = {
        "expired": expired, "unknown": unknown, "undecodable": garbled, "exhausted": dead,
        "unique": clash, "dependency": follows,
    }  # fmt: skip
    assert set(refused) == {*tasks, "drift"}
    for reason, task in tasks.items():
        assert refused[reason].attempt.task_id == task.id, reason
    for reason, ending in refused.items():
        attempt = ending.attempt
        assert ending.status == "refused"
        assert isinstance(ending.error, StreaqError)
        assert (attempt.queue, attempt.worker_id, attempt.priority) == (queue, "w1", "normal")
        assert 0 < attempt.created_ms <= ending.finished_ms
        assert ending.result is None
        # Only arguments that can't be read are found out after the start.
        assert (attempt.started_ms > 0) is (reason == "undecodable")
        assert attempt.try_number == {"undecodable": 1, "exhausted": 3}.get(reason, 0)
    assert refused["drift"].attempt.kind == "cron"
    assert refused["dependency"].attempt.kind == "dependent"
    assert refused["unknown"].attempt.task == "nowhere"
    texts = {reason: str(e.error) for reason, e in refused.items()}
    assert "expired" in texts["expired"]
    assert "nowhere" in texts["unknown"]
    assert first.id in texts["unique"]
    assert failed.id in texts["dependency"]
    assert hook.of("on_fail") == []
    assert [e.task_id for e in hook.of("on_start")] == [first.id]


async def test_released_and_skipped_dependents(
    make_worker: MakeWorker, hook: Recorder, queue: str
) -> None:
    worker = make_worker(hooks=[hook])

    @worker.task(name="step")
    async def step(val: int) -> int:
        return val

    async with running(worker):
        first = step.enqueue(1)
        second = first.then(step).start(priority="high")
        skipped = second.otherwise(step)
        await skipped
        await skipped.result(3)
        await hook.wait("on_finish", 3)
    assert hook.of("on_release") == [(queue, "step", second.id, "high", first.id)]
    last = hook.of("on_finish")[-1]
    assert (last.attempt.task_id, last.reason, last.duration_s) == (skipped.id, "skipped", 0.0)


async def test_due_tasks(make_worker: MakeWorker, hook: Recorder, queue: str) -> None:
    worker = make_worker(hooks=[hook])

    @worker.task(name="step")
    async def step() -> None: ...

    async with running(worker):
        task = await step.enqueue().start(delay=0.03, priority="high")
        await task.result(3)
        await hook.wait("on_finish")
    (due,) = hook.of("on_due")
    (attempt,) = hook.of("on_start")
    assert (due.queue, due.task, due.task_id, due.priority) == (queue, "step", task.id, "high")
    assert due.due_ms == attempt.due_ms == attempt.created_ms + 30
    assert 0 <= due.lag_s < 3
    assert attempt.kind == "delayed"
    # The wait does not count the delay that was intended.
    assert attempt.wait_ms == attempt.started_ms - attempt.due_ms


async def test_the_life_of_a_worker(
    make_worker: MakeWorker, hook: Recorder, anyio_backend_name: str, queue: str
) -> None:
    worker = make_worker(hooks=[hook], id="w1", concurrency=3, priorities=["a", "b"])
    started = anyio.Event()

    @worker.task(name="hangs")
    async def hangs() -> None:
        started.set()
        await anyio.sleep_forever()

    async with worker:
        async with running(worker):
            (start,) = hook.of("on_worker_start")
            task = await hangs.enqueue()
            await started.wait()
        (stop,) = hook.of("on_worker_stop")
        assert (start.queue, start.worker_id, start.concurrency) == (queue, "w1", 3)
        assert (start.priorities, start.tasks, start.reason) == (("b", "a"), ("hangs",), "")
        assert anyio_backend_name in start.backend
        assert stop == start._replace(reason="cancelled")
        # What it handed back is told before, and what happens is told of Redis calls too.
        order = [name for name, _ in hook.recorded if name in {"on_return", "on_worker_stop"}]
        assert order == ["on_return", "on_worker_stop"]
        (returned,) = hook.of("on_return")
        assert (returned.status, returned.reason, returned.error) == ("returned", "shutdown", None)
        assert await task.abort()
    calls = {e.operation for e in hook.of("on_redis_call")}
    assert {"publish", "exchange", "tick", "register", "abort"} <= calls
    assert {e.error for e in hook.of("on_redis_call")} == {""}
    assert all(0 <= e.duration_s < 10 for e in hook.of("on_redis_call"))


async def test_a_blocked_event_loop(make_worker: MakeWorker, hook: Recorder, queue: str) -> None:
    worker = make_worker(hooks=[hook], idle_timeout=0.4, id="w1")

    @worker.task(name="hog")
    async def hog() -> None:
        deadline = time.monotonic() + 5
        while not hook.of("on_loop_blocked") and time.monotonic() < deadline:
            time.sleep(0.005)  # noqa: ASYNC251 - blocks the loop, which is the point

    async with running(worker):
        await (await hog.enqueue()).result(8)
    event = hook.of("on_loop_blocked")[0]
    assert (event.queue, event.worker_id, event.tasks) == (queue, "w1", ("hog",))
    assert 0.1 <= event.blocked_s < 5
    assert "test_hooks.py" in event.where


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_redis_lost_and_restored(hook: Recorder) -> None:
    with Server() as server:
        worker = Worker(
            server.url, telemetry=False, handle_signals=False, hooks=[hook], id="w1",
            queue_name="lost",
        )  # fmt: skip
        async with running(worker):
            server.kill()
            lost = await hook.wait("on_redis_lost")
            server.start()
            restored = await hook.wait("on_redis_restored")
    assert (lost.queue, lost.worker_id, lost.outage_s) == ("lost", "w1", 0.0)
    assert lost.error
    assert (restored.queue, restored.worker_id, restored.error) == ("lost", "w1", "")
    assert restored.outage_s > 0
    assert len(hook.of("on_redis_lost")) == len(hook.of("on_redis_restored"))
    assert any(e.error for e in hook.of("on_redis_call"))


async def test_outcomes_are_told_after_they_have_committed(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    keys = Keys(queue)
    seen: list[tuple[str, bool, bool]] = []

    class Look(Hook):
        def look(self, e: Ending) -> None:
            task_id = e.attempt.task_id
            there = (
                redis_client.exists(keys.task(task_id)),
                redis_client.exists(keys.result(task_id)),
            )
            seen.append((e.status, *map(bool, there)))

        on_finish = on_fail = on_abort = on_refuse = on_retry = look

    worker = make_worker(hooks=[Look()])
    started = anyio.Event()

    @worker.task
    async def step(how: str) -> None:
        if how == "fail":
            raise ValueError
        if how == "retry":
            raise StreaqRetry(delay=60)
        if how == "abort":
            started.set()
            await anyio.sleep_forever()

    async with running(worker):
        for how in ("", "fail"):
            await (await step.enqueue(how)).result(3)
        aborted = await step.enqueue("abort")
        await started.wait()
        assert await aborted.abort()
        retried = await step.enqueue("retry")
        refused = await worker.enqueue_unsafe("nowhere")
        await refused.result(3)
        await until(lambda: len(seen) == 5)
        assert await retried.abort()
    assert sorted(seen[:5]) == [
        ("aborted", False, True),
        ("failed", False, True),
        ("refused", False, True),
        ("retried", True, False),
        ("success", False, True),
    ]


class Broken(Hook):
    """Raises in every method, and in both halves of the context managers."""


def _breaking(name: str) -> Any:
    if not name.startswith("around_"):

        def on(self: Broken, e: Any) -> None:
            raise RuntimeError(f"broken {name}")

        return on

    @contextmanager
    def around(self: Broken, e: Any) -> Generator[None]:
        yield
        raise RuntimeError(f"broken {name}")

    return around


for _name in SLOTS:
    setattr(Broken, _name, _breaking(_name))


class BrokenAtOnce(Hook):
    def around_publish(self, e: Publish) -> Any:
        raise RuntimeError("no manager")

    def around_attempt(self, e: Attempt) -> Any:
        raise RuntimeError("no manager")


async def test_a_hook_that_raises_harms_nothing(
    make_worker: MakeWorker, hook: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    worker = make_worker(hooks=[Broken(), BrokenAtOnce(), hook])
    started = anyio.Event()

    @worker.task
    async def step(how: str) -> str:
        if how == "retry" and step.context.tries == 1:
            raise StreaqRetry(delay=0.01)
        if how == "fail":
            raise ValueError("mine")
        if how == "abort":
            started.set()
            await anyio.sleep_forever()
        return how

    async with running(worker):
        assert (await (await step.enqueue("ok").then(step)).result(3)).result == "ok"
        assert (await (await step.enqueue("retry")).result(3)).tries == 2
        assert str((await (await step.enqueue("fail")).result(3)).exception) == "mine"
        task = await step.enqueue("abort")
        await started.wait()
        assert await task.abort()
        refused = await (await worker.enqueue_unsafe("nowhere")).result(3)
        assert not refused.success
        await hook.wait("on_refuse")
    # The hook after the broken ones was told all the same.
    assert {name for name, _ in hook.recorded} >= {
        "around_publish", "on_enqueue", "on_enqueued", "around_attempt", "on_start", "on_retry",
        "on_fail", "on_finish", "on_abort", "on_refuse", "on_release", "on_due", "on_redis_call",
        "on_worker_start", "on_worker_stop",
    }  # fmt: skip
    assert worker.counters == {"completed": 3, "retried": 1, "failed": 2, "aborted": 1}


def test_what_hooks_raise_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = Dispatcher([Broken(), BrokenAtOnce()])
    dispatcher.emit(dispatcher.on_start, None)
    with dispatcher.around(dispatcher.around_attempt, None):
        pass
    assert dispatcher.errors == 3
    assert [record.getMessage() for record in caplog.records] == [
        "hook Broken.on raised; the task is not affected",
        "hook BrokenAtOnce.around_attempt raised; the task is not affected",
        "hook Broken.around raised; the task is not affected",
    ]
    assert all(record.exc_info for record in caplog.records)


def test_what_a_hook_raises_again_and_again_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dispatcher = Dispatcher([Broken()])
    for _ in range(1000):
        dispatcher.emit(dispatcher.on_start, None)
    assert dispatcher.errors == 1000
    assert len(caplog.records) == 1


def test_what_was_left_out_is_counted_and_told_later(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    complaints = Complaints(60, lambda: now)

    def fail(error: Exception) -> None:
        try:
            raise error
        except type(error):
            complaints.tell("it failed")

    for _ in range(3):
        fail(ValueError())
    fail(KeyError())  # another kind is another matter
    now = 59.9
    fail(ValueError())
    now = 60.0
    fail(ValueError())
    now = 200.0
    fail(ValueError())
    assert [(r.getMessage(), r.exc_info and r.exc_info[0]) for r in caplog.records] == [
        ("it failed", ValueError),
        ("it failed", KeyError),
        ("it failed (3 more since this was logged last)", ValueError),
        ("it failed", ValueError),
    ]


def test_hooks_do_not_swallow_what_the_body_raises() -> None:
    dispatcher = Dispatcher([Broken(), BrokenAtOnce()])
    with (
        pytest.raises(ValueError, match="body"),
        dispatcher.around(dispatcher.around_attempt, None),
    ):
        raise ValueError("body")


def test_only_methods_that_are_overridden_are_called() -> None:
    class Few(Hook):
        def on_start(self, e: Attempt) -> None: ...

    class Fewer(Few):
        pass

    dispatcher = Dispatcher([Hook(), Few(), Fewer()])
    assert len(dispatcher.on_start) == 2
    assert [name for name in SLOTS if getattr(dispatcher, name)] == ["on_start"]
    assert set(SLOTS) == {n for n in dir(Hook) if n.startswith(("on_", "around_"))}


def test_events_are_frozen() -> None:
    event = Enqueue("q", "t", "id", "p", "immediate", 0, (), {}, False)
    with pytest.raises(AttributeError):
        event.task = "other"  # type: ignore[misc]
