"""What a running task can reach: its own context, the worker's, contextvars (in threads too), and
the middleware around it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import anyio
import anyio.from_thread
import pytest

from streaq import StreaqError, StreaqRetry, TaskContext
from streaq.types import ReturnCoroutine
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio

flavour: ContextVar[str] = ContextVar("flavour", default="plain")


async def test_task_context(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def get_id() -> str:
        return get_id.context.task_id

    @worker.task(name="whole", timeout=7, ttl=timedelta(hours=1))
    async def whole() -> TaskContext:
        if whole.context.tries < 2:
            raise StreaqRetry(delay=0)
        return whole.context

    @worker.task
    def in_thread() -> tuple[str, int]:
        return in_thread.context.task_id, in_thread.context.tries

    async with running(worker):
        task = await get_id.enqueue()
        assert (await task.result(3)).result == task.id
        task2 = await whole.enqueue()
        assert (await task2.result(3)).result == TaskContext(
            fn_name="whole", task_id=task2.id, timeout=7, tries=2, ttl=timedelta(hours=1)
        )
        task3 = await in_thread.enqueue()
        assert (await task3.result(3)).result == (task3.id, 1)


async def test_context_outside_of_a_task_is_an_error(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def task() -> None: ...

    @worker.middleware
    def middleware(call: ReturnCoroutine) -> ReturnCoroutine:
        return call

    async with running(worker):
        await (await task.enqueue()).result(3)
        for owner in (task, middleware):
            with pytest.raises(StreaqError, match="only available in running tasks"):
                owner.context  # noqa: B018 - asking raises


async def test_concurrent_tasks_have_contexts_of_their_own(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=8)
    barrier = Barrier(8)

    @worker.task
    async def mine() -> bool:
        before = mine.context.task_id
        flavour.set(before)
        await barrier.wait()
        return mine.context.task_id == before == flavour.get()

    async with running(worker):
        tasks = [await mine.enqueue() for _ in range(8)]
        assert all([(await task.result(3)).result for task in tasks])
    assert flavour.get() == "plain"


@dataclass
class Barrier:
    """Lets ``size`` tasks through at once."""

    size: int
    opened: anyio.Event = field(default_factory=anyio.Event)
    inside: int = 0

    async def wait(self) -> None:
        self.inside += 1
        if self.inside == self.size:
            self.opened.set()
        await self.opened.wait()


async def test_lifespan_and_worker_context(make_worker: MakeWorker) -> None:
    events: list[str] = []

    @dataclass
    class Context:
        clients: dict[str, int]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Context]:
        events.append("in")
        await anyio.lowlevel.checkpoint()
        yield Context({"http": 1})
        events.append("out")

    worker = make_worker(lifespan=lifespan)

    @worker.task
    async def fetch(url: str) -> int:
        events.append("task")
        return worker.context.clients["http"] + len(url)

    @worker.task
    def plain() -> int:
        return worker.context.clients["http"]

    async with worker:
        await fetch.enqueue("x").then(_register(worker))
        assert events == []  # enqueuing does not need it
        with pytest.raises(StreaqError, match="only available in running workers"):
            worker.context  # noqa: B018 - asking raises
    async with running(worker):
        assert (await (await fetch.enqueue("xyz")).result(3)).result == 4
        assert (await (await plain.enqueue()).result(3)).result == 1
        assert worker.context.clients == {"http": 1}
    assert events[0] == "in"
    assert set(events[1:]) == {"task"}
    with pytest.raises(StreaqError, match="only available in running workers"):
        worker.context  # noqa: B018 - asking raises


def _register(worker: Any) -> Any:
    @worker.task
    async def after(val: int) -> int:
        return val

    return after


async def test_lifespan_ends_after_the_last_task_and_wraps_its_errors(
    make_worker: MakeWorker,
) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        events.append("in")
        try:
            yield "context"
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            events.append("out")

    worker = make_worker(lifespan=lifespan)

    @worker.task
    async def slow() -> None:
        await anyio.sleep(0.01)
        events.append(worker.context)

    worker.burst = True
    async with worker:
        await slow.enqueue()
    for _ in range(2):  # a worker may run again
        await worker.run_async()
    assert events == ["in", "context", "out", "in", "out"]

    @asynccontextmanager
    async def broken() -> AsyncIterator[str]:
        raise ValueError("no database")
        yield ""

    with pytest.raises(ValueError, match="no database"):
        await make_worker(lifespan=broken).run_async()


async def test_one_worker_object_runs_once_at_a_time(make_worker: MakeWorker) -> None:
    worker = make_worker()
    async with running(worker):
        with pytest.raises(StreaqError, match="runs already"):
            await worker.run_async()


async def test_sync_functions_run_in_threads(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=3)
    barrier = threading.Barrier(3, timeout=5)

    @worker.task
    def sync_sleep(seconds: int) -> tuple[int, bool]:
        barrier.wait()  # passes only if three of them run at once
        return seconds, threading.current_thread() is threading.main_thread()

    async with running(worker):
        tasks = [await sync_sleep.enqueue(i) for i in range(3)]
        assert [(await task.result(5)).result for task in tasks] == [(i, False) for i in range(3)]


async def test_sync_concurrency(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=8, sync_concurrency=2)
    lock, now, most = threading.Lock(), 0, 0
    two = threading.Barrier(2, timeout=5)

    @worker.task
    def count() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        two.wait()
        with lock:
            now -= 1

    async with worker:
        tasks = [count.enqueue() for _ in range(8)]
        await worker.enqueue_many(tasks)
        async with running(worker):
            for task in tasks:
                assert (await task.result(5)).success
    assert most == 2


async def test_contextvars_reach_the_thread(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.middleware
    def flavoured(call: ReturnCoroutine) -> ReturnCoroutine:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            flavour.set(f"of {flavoured.context.task_id}")
            return await call(*args, **kwargs)

        return wrapper

    @worker.task
    def plain() -> str:
        return flavour.get()

    async with running(worker):
        task = await plain.enqueue()
        assert (await task.result(3)).result == f"of {task.id}"


async def test_a_cancelled_sync_task_runs_its_course_and_is_ignored(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker()
    go, ended = threading.Event(), threading.Event()

    @worker.task(timeout=0.02)
    def slow() -> int:
        go.wait(5)
        ended.set()
        return 1

    async with running(worker):
        result = await (await slow.enqueue()).result(3)
        assert isinstance(result.exception, TimeoutError)
        assert not ended.is_set()
        go.set()
        assert await anyio.to_thread.run_sync(ended.wait, 5)


async def test_sync_tasks_can_call_back(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def echo(val: int) -> int:
        return val

    @worker.task
    def parent() -> int:
        async def ask() -> int:
            return (await (await echo.enqueue(5)).result(3)).result

        return anyio.from_thread.run(ask)

    async with running(worker):
        assert (await (await parent.enqueue()).result(3)).result == 5


async def test_middleware(make_worker: MakeWorker) -> None:
    worker = make_worker()
    events: list[str] = []

    @worker.middleware
    def first(call: ReturnCoroutine) -> ReturnCoroutine:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            events.append(f"first {first.context.fn_name} {args} {kwargs}")
            try:
                return await call(*args, **kwargs) + 1
            finally:
                events.append(f"first out, try {first.context.tries}")

        return wrapper

    @worker.middleware
    def second(call: ReturnCoroutine) -> ReturnCoroutine:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            events.append("second")
            return await call(*args, **kwargs) * 10

        return wrapper

    @worker.task(name="body")
    async def body(a: int, *, b: int) -> int:
        events.append("body")
        return a + b

    @worker.task(name="plain")
    def plain(a: int, *, b: int) -> int:
        return a * b

    async with running(worker):
        # The first that is registered is the outermost.
        assert (await (await body.enqueue(1, b=2)).result(3)).result == 31
        assert events == ["first body (1,) {'b': 2}", "second", "body", "first out, try 1"]
        assert (await (await plain.enqueue(3, b=4)).result(3)).result == 121
        assert await body(1, b=2) == 3  # not when it is called locally


async def test_what_middleware_raises_is_what_the_task_raises(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.middleware
    def guard(call: ReturnCoroutine) -> ReturnCoroutine:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            if guard.context.tries == 1:
                raise StreaqRetry("not yet", delay=0)
            try:
                return await call(*args, **kwargs)
            except ZeroDivisionError as e:
                raise ValueError("translated") from e

        return wrapper

    @worker.task
    async def body() -> None:
        _ = 1 / 0

    async with running(worker):
        result = await (await body.enqueue()).result(3)
        assert (str(result.exception), result.tries) == ("translated", 2)


async def test_include(make_worker: MakeWorker) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        yield "the main one's"

    main, mail, templates = make_worker(lifespan=lifespan), make_worker(), make_worker()

    @main.task(name="own")
    async def own() -> str:
        return main.context

    @templates.task(name="render")
    async def render() -> str:
        return templates.context

    @mail.task(name="send", max_tries=1)
    async def send(to: str) -> tuple[str, str]:
        return mail.context, to

    @mail.cron("0 0 1 1 *", name="digest")
    async def digest() -> None: ...

    mail.include(templates)
    main.include(mail)
    assert set(main.registry) == {"own", "send", "digest", "render"}
    async with running(main):
        for task, value in (
            (own.enqueue(), "the main one's"),
            (send.enqueue("a"), ("the main one's", "a")),
            (render.enqueue(), "the main one's"),
        ):
            result = await (await task).result(3)
            assert result._result == value
        assert send.max_tries == 1


async def test_include_takes_all_or_nothing(make_worker: MakeWorker) -> None:
    main, other = make_worker(), make_worker()

    @main.task(name="same")
    async def one() -> None: ...

    @other.task(name="different")
    async def two() -> None: ...

    @other.task(name="same")
    async def three() -> None: ...

    with pytest.raises(StreaqError, match="same"):
        main.include(other)
    assert main.registry == {"same": one}
    assert (two.worker, three.worker) == (other, other)
    empty = make_worker()
    main.include(empty)
    for outer in (main, empty):
        with pytest.raises(StreaqError, match="included already"):
            outer.include(empty)
    empty.include(innermost := make_worker())
    assert innermost.owner() is main
