"""Status, results and exceptions, waited for or looked up; info; lists of tasks by status."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from typing import Any

import anyio
import pytest
import redis

from streaq import StreaqCancelled, StreaqError, StreaqRetry, TaskInfo, TaskResult, TaskStatus
from streaq.utils import gather
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def test_the_promised_example(
    make_worker: MakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = make_worker(id="ca5bd9eb")

    @worker.task(name="sleeper")
    async def sleeper(time: int) -> int:
        return time

    before = time.time() * 1000
    async with running(worker):
        task = await sleeper.enqueue(3).start(delay=timedelta(seconds=0.2))
        print(await task.status())
        print(await task.result())
        print(await task.status())
        result = await task.result()
    scheduled, shown, done = capsys.readouterr().out.splitlines()
    assert scheduled == "TaskStatus.SCHEDULED"
    assert done == "TaskStatus.DONE"
    assert shown == (
        f"TaskResult(task_id={task.id!r}, fn_name='sleeper', created_time={result.created_time}, "
        f"enqueue_time={result.enqueue_time}, success=True, start_time={result.start_time}, "
        f"finish_time={result.finish_time}, tries=1, worker_id='ca5bd9eb', _result=3)"
    )
    # Queued 200 ms after it was made, and started at once.
    assert before - 50 <= result.created_time <= result.enqueue_time - 200
    assert result.enqueue_time <= result.start_time <= result.finish_time
    assert result.finish_time <= time.time() * 1000 + 50


async def test_each_status(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, go = anyio.Event(), anyio.Event()

    @worker.task
    async def waits() -> None:
        started.set()
        await go.wait()

    async with worker:
        unknown = waits.enqueue()
        assert await unknown.status() is TaskStatus.NOT_FOUND
        assert await worker.status_by_id("no such task") is TaskStatus.NOT_FOUND
        task = await waits.enqueue()
        assert await task.status() is TaskStatus.QUEUED
        dependent = await waits.enqueue().start(after=task.id)
        assert await dependent.status() is TaskStatus.SCHEDULED
        async with running(worker):
            await started.wait()
            assert await task.status() is TaskStatus.RUNNING
            assert worker.running() == 1
            assert await worker.status_by_id(dependent.id) is TaskStatus.SCHEDULED
            go.set()
            await dependent.result(3)
            assert await task.status() is TaskStatus.DONE
            assert await dependent.status() is TaskStatus.DONE


@pytest.mark.parametrize(
    ("status", "value", "shown"),
    [
        (TaskStatus.NOT_FOUND, "missing", "TaskStatus.NOT_FOUND"),
        (TaskStatus.QUEUED, "queued", "TaskStatus.QUEUED"),
        (TaskStatus.RUNNING, "running", "TaskStatus.RUNNING"),
        (TaskStatus.SCHEDULED, "scheduled", "TaskStatus.SCHEDULED"),
        (TaskStatus.DONE, "done", "TaskStatus.DONE"),
    ],
)
def test_a_status_prints_its_name(status: TaskStatus, value: str, shown: str) -> None:
    assert (str(status), f"{status}", status.value, TaskStatus(value)) == (
        shown, shown, value, status,
    )  # fmt: skip
    assert len(TaskStatus) == 5


async def test_exceptions(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def fails() -> int:
        raise ValueError("Oh no!", 42)

    @worker.task
    def plain() -> int:
        raise KeyError("lost")

    async with running(worker):
        task = await fails.enqueue()
        result = await task.result(3)
        if not result.success:
            assert isinstance(result.exception, ValueError)
            assert result.exception.args == ("Oh no!", 42)
        assert result.tries == 1
        with pytest.raises(StreaqError, match="exception"):
            result.result  # noqa: B018 - asking raises
        in_thread = await (await plain.enqueue()).result(3)
        assert isinstance(in_thread.exception, KeyError)


async def test_a_success_has_no_exception(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def returns(value: Any) -> Any:
        return value

    async with running(worker):
        values: list[Any] = [None, 0, "", {"a": [1, 2.5]}, (1, 2), b"\0\n\xff", ValueError("mine")]
        for value in values:
            result = await (await returns.enqueue(value)).result(3)
            assert result.success
            if isinstance(value, ValueError):
                assert isinstance(result.result, ValueError)
            else:
                assert result.result == value
            with pytest.raises(StreaqError, match="succeeded"):
                result.exception  # noqa: B018 - asking raises


class Unpicklable(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Secretive(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("I do not travel")


async def test_exceptions_that_pickle_cannot_carry_survive_as_text(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker()

    @worker.task
    async def fails(how: str) -> None:
        if how == "local":

            class Local(Exception):
                pass

            raise Local("in here")
        raise Unpicklable(404, "gone") if how == "unpicklable" else Secretive("hush")

    async with running(worker):
        for how, text in (
            ("local", "Local: in here"),
            ("unpicklable", "Unpicklable: 404: gone"),
            ("secretive", "Secretive: hush"),
        ):
            result = await (await fails.enqueue(how)).result(3)
            assert isinstance(result.exception, StreaqError)
            assert str(result.exception) == text


async def test_a_task_may_raise_what_it_likes(make_worker: MakeWorker) -> None:
    worker = make_worker()
    errors = [SystemExit(3), BaseException("base"), GeneratorExit(), StopIteration(1)]

    @worker.task
    async def fails(i: int) -> None:
        raise errors[i]

    @worker.task
    def plain(i: int) -> None:
        raise errors[i]

    @worker.task
    async def fine() -> int:
        return 1

    async with running(worker):
        for task in (fails, plain):
            for i, error in enumerate(errors):
                result = await (await task.enqueue(i)).result(3)
                # Python itself does not let a coroutine raise StopIteration.
                expected = RuntimeError if isinstance(error, StopIteration) else type(error)
                assert type(result.exception) is expected
        assert (await (await fine.enqueue()).result(3)).result == 1


async def test_an_exception_group_comes_through(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def fails() -> None:
        async with anyio.create_task_group() as group:
            for i in (1, 2):
                group.start_soon(_raise, ValueError(i))

    async with running(worker):
        result = await (await fails.enqueue()).result(3)
        assert isinstance(result.exception, ExceptionGroup)
        assert all(isinstance(e, ValueError) for e in result.exception.exceptions)


async def _raise(error: Exception) -> None:
    await anyio.lowlevel.checkpoint()
    raise error


TBLIB_SCRIPT = """
import sys, traceback, anyio
from tblib import pickling_support
from streaq import Worker

worker = Worker(sys.argv[1], queue_name=sys.argv[2], telemetry=False)

# Declare your custom exceptions
class MyException(Exception): ...

# Finally, install tblib
pickling_support.install()

@worker.task
async def fails() -> None:
    deep_inside()

def deep_inside() -> None:
    raise MyException("Oh no!")

async def main() -> None:
    async with anyio.create_task_group() as group:
        await group.start(worker.run_async)
        result = await (await fails.enqueue()).result(5)
        traceback.print_exception(result.exception, file=sys.stdout)
        group.cancel_scope.cancel()

anyio.run(main)
"""


def test_tblib_keeps_tracebacks(redis_url: str, queue: str) -> None:
    # In a process of its own, because installing changes how every exception is pickled.
    ran = subprocess.run(
        [sys.executable, "-c", TBLIB_SCRIPT, redis_url, queue],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "in deep_inside" in ran.stdout
    assert "MyException: Oh no!" in ran.stdout


async def test_without_tblib_there_is_no_traceback(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def fails() -> None:
        raise ValueError("Oh no!")

    async with running(worker):
        error = (await (await fails.enqueue()).result(3)).exception
        assert "".join(traceback.format_exception(error)) == "ValueError: Oh no!\n"


async def test_waiting_has_a_timeout(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def echo(val: int) -> int:
        return val

    async with worker:
        task = await echo.enqueue(1)
        for timeout in (0.01, timedelta(milliseconds=10), 0):
            with pytest.raises(TimeoutError):
                await task.result(timeout)
        with pytest.raises(TimeoutError):
            await worker.result_by_id("no such task", timeout=0.01)
        async with running(worker):
            assert (await task.result()).result == 1
        # Nobody runs any more, but what is stored can be read.
        assert (await task.result(3)).result == 1
        assert (await worker.result_by_id(task.id)).result == 1


async def test_many_may_wait_for_one_result(make_worker: MakeWorker) -> None:
    producer, worker = make_worker(), make_worker()

    @worker.task(name="echo")
    async def echo(val: int) -> int:
        await anyio.sleep(0.01)
        return val

    async with producer, running(worker):
        task = await producer.enqueue_unsafe("echo", 7)
        waiters = [task.result(3) for _ in range(20)]
        assert [r.result for r in await gather(*waiters)] == [7] * 20


async def test_what_is_returned_and_raised_is_typed_as_told(make_worker: MakeWorker) -> None:
    result = TaskResult("id", "fn", 1, 2, True, 3, 4, 1, "w", 5)
    assert pickle.loads(pickle.dumps(result)) == result
    with pytest.raises(AttributeError):
        result.success = False  # type: ignore[misc]
    info = TaskInfo("id", "fn", 1)
    assert (info.args, info.kwargs, info.tries, info.scheduled) == ((), {}, 0, None)
    assert (info.dependencies, info.dependents, info.status) == (set(), set(), TaskStatus.NOT_FOUND)


async def test_a_task_that_is_printed_does_not_show_its_arguments(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task(name="login")
    async def login(user: str, password: str) -> str:
        return user

    @worker.task(name="greet")
    async def greet(user: str, pin: int = 0) -> None: ...

    async with worker:
        task = await login.enqueue("somebody", password="hunter2").start(delay=60)
        info = await task.info()
        assert info is not None
        for shown in (repr(task), str(task.then(greet, pin=4711)), repr(info), f"{info}"):
            assert task.id in shown
            assert "login" in shown
            assert not re.search("somebody|hunter2|4711", shown)
        assert (info.args, info.kwargs) == (task.args, task.kwargs)
        assert task.kwargs == {"password": "hunter2"}
        assert await task.abort()


async def test_info(make_worker: MakeWorker) -> None:
    worker = make_worker()
    started, go = anyio.Event(), anyio.Event()

    @worker.task(name="waits")
    async def waits(a: int, *, b: str) -> None:
        if waits.context.tries == 1:
            raise StreaqRetry(delay=0.01)
        started.set()
        await go.wait()

    async with worker:
        task = await waits.enqueue(1, b="x")
        dependent = await waits.enqueue(2, b="y").start(after=task.id)
        info = await task.info()
        assert info is not None
        assert info == TaskInfo(
            task_id=task.id, fn_name="waits", created_time=info.created_time, args=(1,),
            kwargs={"b": "x"}, tries=0, scheduled=None, dependencies=set(),
            dependents={dependent.id}, status=TaskStatus.QUEUED,
        )  # fmt: skip
        assert info.created_time == pytest.approx(time.time() * 1000, abs=5000)
        later = await dependent.info()
        assert later is not None
        assert (later.dependencies, later.dependents) == ({task.id}, set())
        assert (later.status, later.scheduled) == (TaskStatus.SCHEDULED, None)
        async with running(worker):
            await started.wait()
            info = await worker.info_by_id(task.id)
            assert info is not None
            assert (info.status, info.tries) == (TaskStatus.RUNNING, 2)
            go.set()
            await task.result(3)
            assert await task.info() is None
            await dependent.result(3)
        assert await worker.info_by_id("no such task") is None


async def test_lists_by_status(make_worker: MakeWorker, redis_client: redis.Redis) -> None:
    redis_client.config_resetstat()
    worker = make_worker(concurrency=2)
    go = anyio.Event()
    started = [anyio.Event(), anyio.Event()]

    @worker.task
    async def waits(i: int) -> int:
        if i < 2:
            started[i].set()
            await go.wait()
        return i

    async def ids(status: TaskStatus, **options: Any) -> list[str]:
        return [t.task_id for t in await worker.get_tasks_by_status(status, **options)]

    async with worker:
        running_tasks = [await waits.enqueue(i) for i in range(2)]
        async with running(worker):
            for event in started:
                await event.wait()
            queued = [await waits.enqueue(i).start(priority="low") for i in range(2, 5)]
            urgent = await waits.enqueue(5).start(priority="high")
            late = await waits.enqueue(6).start(delay=100)
            sooner = await waits.enqueue(7).start(delay=50)
            blocked = await waits.enqueue(8).start(after=late.id)
            repeating = await waits.enqueue(9).start(schedule="0 0 1 1 *")

            assert set(await ids(TaskStatus.RUNNING)) == {t.id for t in running_tasks}
            assert await ids(TaskStatus.QUEUED) == [urgent.id, *[t.id for t in queued]]
            assert await ids(TaskStatus.QUEUED, limit=2) == [urgent.id, queued[0].id]
            assert await ids(TaskStatus.QUEUED, priority="low") == [t.id for t in queued]
            assert await ids(TaskStatus.QUEUED, priority="normal") == []
            scheduled = await worker.get_tasks_by_status(TaskStatus.SCHEDULED)
            assert [t.task_id for t in scheduled] == [sooner.id, late.id, blocked.id, repeating.id]
            assert [t.args for t in scheduled] == [(7,), (6,), (8,), (9,)]
            assert {t.status for t in scheduled} == {TaskStatus.SCHEDULED}
            assert scheduled[0].scheduled is not None
            assert await ids(TaskStatus.DONE) == []

            go.set()
            for task in (*queued, urgent, *running_tasks):
                await task.result(3)
            done = await worker.get_tasks_by_status(TaskStatus.DONE)
            assert {t.task_id for t in done} == {t.id for t in (*queued, urgent, *running_tasks)}
            assert all(isinstance(t, TaskResult) and t.success for t in done)
            newest = await worker.get_tasks_by_status(TaskStatus.DONE, limit=2)
            assert [t.task_id for t in newest] == [t.task_id for t in done[:2]]
            assert await ids(TaskStatus.RUNNING) == []
            assert await late.abort()
            assert await sooner.abort()
            assert await repeating.unschedule()
        # However many keys the server has, none of this looks through them.
        used = {name.removeprefix("cmdstat_") for name in redis_client.info("commandstats")}
        assert not used & {"scan", "keys"}
        with pytest.raises(StreaqError, match="can't be listed"):
            await worker.get_tasks_by_status(TaskStatus.NOT_FOUND)


@pytest.mark.parametrize("wrong", [-1, 100_001, 10**17, 2.5, "10", None])
async def test_a_limit_that_is_none_is_refused(make_worker: MakeWorker, wrong: Any) -> None:
    async with make_worker() as worker:
        with pytest.raises(StreaqError, match="limit is a whole number up to 100,000; it is"):
            await worker.get_tasks_by_status(TaskStatus.QUEUED, limit=wrong)
        for limit in (0, 100_000):
            assert await worker.get_tasks_by_status(TaskStatus.DONE, limit=limit) == []
        with pytest.raises(StreaqError, match="no priority 'x'"):
            await worker.get_tasks_by_status(TaskStatus.QUEUED, priority="x")


async def test_one_result_that_cannot_be_read_does_not_hide_the_others(
    make_worker: MakeWorker,
) -> None:
    worker, reader = make_worker(), make_worker(deserializer=_picky)

    @worker.task(name="echo")
    async def echo(val: str) -> str:
        return val

    async with running(worker), reader:
        bad = await echo.enqueue("poison")
        good = await echo.enqueue("fine")
        for task in (bad, good):
            await task.result(3)
        done = {r.task_id: r for r in await reader.get_tasks_by_status(TaskStatus.DONE)}
        assert done[good.id].result == "fine"
        assert "Can't read a result" in str(done[bad.id].exception)
        with pytest.raises(StreaqError, match="Can't read a result"):
            await reader.result_by_id(bad.id)
        queued = [await echo.enqueue(val).start(delay=60) for val in ("poison", "fine")]
        listed = await reader.get_tasks_by_status(TaskStatus.SCHEDULED)
        assert {info.task_id: info.args for info in listed} == {
            queued[0].id: (), queued[1].id: ("fine",),
        }  # fmt: skip
        for task in queued:
            assert await task.abort()


def _picky(raw: bytes) -> Any:
    value = pickle.loads(raw)
    if value in ("poison", (("poison",), {})):
        raise ValueError("I will not")
    return value


async def test_cancelled_errors_are_told_apart(make_worker: MakeWorker) -> None:
    """Raising StreaqCancelled inside a task aborts it."""
    worker = make_worker()

    @worker.task
    async def gives_up() -> None:
        raise StreaqCancelled("not needed any more")

    async with running(worker):
        result = await (await gives_up.enqueue()).result(3)
        assert isinstance(result.exception, StreaqCancelled)
        assert str(result.exception) == "not needed any more"
    assert worker.counters == {"aborted": 1}
