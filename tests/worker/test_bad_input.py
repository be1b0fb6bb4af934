"""Bad input gets one clear line, at the place where it is written, and nothing is half-written."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import redis

from streaq import Hook, StreaqError, StreaqRetry, TaskStatus, Worker
from streaq.broker.keys import Keys
from streaq.hooks import Ending
from streaq.task import AsyncRegisteredTask
from tests.support import MakeWorker, bring_forward, running, until

pytestmark = pytest.mark.anyio

Step = AsyncRegisteredTask[[Any], Any]


@pytest.fixture
def worker(make_worker: MakeWorker) -> Worker[Any]:
    return make_worker()


@pytest.fixture
def step(worker: Worker[Any]) -> Step:
    @worker.task(name="step")
    async def step(val: Any) -> Any:
        return val

    return step


def tasks_in(client: redis.Redis, queue: str) -> int:
    """How many tasks the server has, in whatever state."""
    keys = list(client.scan_iter(f"{Keys(queue).base}*"))
    return len([key for key in keys if b"}:task:" in key or b"}:result:" in key])


def one_line(caught: pytest.ExceptionInfo[StreaqError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert 20 < len(text) < 400
    return text


async def test_arguments_that_cannot_be_serialised(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str
) -> None:
    bad = step.enqueue(lambda: 1)
    async with worker:
        for enqueue in (
            lambda: bad,
            # One bad task, or link, and none is enqueued.
            lambda: worker.enqueue_many([step.enqueue(1), bad, step.enqueue(2)]),
            lambda: step.enqueue(1).then(step, extra=lambda: 1),  # type: ignore[call-arg]
            lambda: bad.start(delay=5),
            lambda: bad.start(schedule="@hourly"),
        ):
            with pytest.raises(StreaqError, match="Can't serialise the arguments of task") as e:
                await enqueue()
            one_line(e)
        assert tasks_in(redis_client, queue) == 0
        assert await worker.queue_size() == 0


def test_an_unknown_priority(worker: Worker[Any], step: Step) -> None:
    with pytest.raises(StreaqError, match="no priority 'urgent'") as e:
        step.enqueue(1).start(priority="urgent")
    assert "low, normal, high" in one_line(e)


@pytest.mark.parametrize("delay", [-1, -0.001, timedelta(seconds=-1)])
def test_a_negative_delay(step: Step, delay: Any) -> None:
    with pytest.raises(StreaqError, match="can't be negative") as e:
        step.enqueue(1).start(delay=delay)
    one_line(e)


@pytest.mark.parametrize(
    "delay", ["5", float("inf"), float("nan"), datetime(2030, 1, 1, tzinfo=UTC)]
)
def test_a_delay_that_is_none(step: Step, delay: Any) -> None:
    with pytest.raises(StreaqError, match="delay is seconds or a timedelta") as e:
        step.enqueue(1).start(delay=delay)
    one_line(e)


@pytest.mark.parametrize("schedule", [5, 1893456000.0, date(2030, 1, 1), timedelta(1)])
def test_a_schedule_that_is_none(step: Step, schedule: Any) -> None:
    with pytest.raises(StreaqError, match="schedule is a datetime or a crontab") as e:
        step.enqueue(1).start(schedule=schedule)
    one_line(e)


async def test_naive_datetimes_mean_the_workers_time_zone(worker: Worker[Any], step: Step) -> None:
    assert "naive datetime" in (type(step.enqueue(1)).start.__doc__ or "")
    async with worker:
        task = await step.enqueue(1).start(schedule=datetime(2199, 1, 1))  # noqa: DTZ001
        info = await task.info()
        assert info is not None
        assert info.scheduled == datetime(2199, 1, 1, tzinfo=UTC)
        assert await task.abort()


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 1, "schedule": "@hourly"},
        {"delay": 1, "after": "id"},
        {"schedule": datetime(2030, 1, 1, tzinfo=UTC), "after": ["id"]},
        {"delay": 0, "schedule": "@hourly", "after": "id"},
    ],
)
def test_conflicting_start_options(step: Step, options: dict[str, Any]) -> None:
    task = step.enqueue(1)
    with pytest.raises(StreaqError, match="use one of 'after', 'delay' and 'schedule'") as e:
        task.start(**options)
    one_line(e)
    # What was refused has left nothing behind.
    assert (task.after, task.delay, task.schedule) == ((), None, None)
    with pytest.raises(StreaqError, match="use one of"):
        step.enqueue(1).start(after="id").start(delay=1)


@pytest.mark.parametrize("options", [{"delay": 1}, {"schedule": "@hourly"}, {"delay": 0}])
@pytest.mark.parametrize("how", ["then", "otherwise"])
def test_delaying_the_middle_of_a_pipeline(step: Step, how: str, options: dict[str, Any]) -> None:
    with pytest.raises(StreaqError, match="first task of the pipeline") as e:
        getattr(step.enqueue(1), how)(step).start(**options)
    one_line(e)


@pytest.mark.parametrize("tab", ["", "* * * *", "61 * * * *", "* * * * mun", "@never", "hello"])
def test_a_bad_crontab(worker: Worker[Any], step: Step, tab: str) -> None:
    with pytest.raises(StreaqError, match="crontab") as e:
        step.enqueue(1).start(schedule=tab)
    one_line(e)
    with pytest.raises(StreaqError, match="crontab") as e:
        worker.cron(tab)
    one_line(e)
    assert set(worker.registry) == {"step"}


async def test_a_crontab_that_never_fires_again(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str
) -> None:
    async with worker:
        with pytest.raises(StreaqError, match="no firing left") as e:
            await step.enqueue(1).start(schedule="0 0 0 1 1 * 2000")
        one_line(e)
    assert tasks_in(redis_client, queue) == 0


def test_duplicate_names(worker: Worker[Any], step: Step) -> None:
    async def other() -> None: ...

    for register in (worker.task(name="step"), worker.cron("@daily", name="step")):
        with pytest.raises(StreaqError, match="step is registered already") as e:
            register(other)
        one_line(e)
    assert worker.registry == {"step": step}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_tries": 0}, "max_tries must be at least 1"),
        ({"ttl": -1}, "ttl can't be negative"),
        ({"timeout": timedelta(seconds=-1)}, "timeout can't be negative"),
        ({"expire": -0.5}, "expire can't be negative"),
        ({"name": "two\nlines"}, "can't be the name"),
    ],
)
def test_task_options_that_cannot_work(
    worker: Worker[Any], options: dict[str, Any], text: str
) -> None:
    async def fn() -> None: ...

    with pytest.raises(StreaqError, match=text) as e:
        worker.task(**options)(fn)
    one_line(e)
    assert worker.registry == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"sync_concurrency": -1}, "sync_concurrency must be at least 1"),
        ({"prefetch": -1}, "prefetch must be at least 0"),
        ({"idle_timeout": 0.01}, "idle_timeout"),
        ({"priorities": "high"}, "must be a list"),
        ({"redis_url": "http://localhost"}, "redis_url must start with"),
    ],
)
def test_settings_that_cannot_work(
    make_worker: MakeWorker, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(StreaqError, match=text) as e:
        make_worker(**options)
    assert len(str(e.value)) < 400


def test_what_is_not_a_registered_task(worker: Worker[Any], step: Step) -> None:
    async def plain(val: int) -> int:
        return val

    for join in (
        lambda: step.enqueue(1).then(plain),  # type: ignore[call-overload]
        lambda: step.enqueue(1) | plain,  # type: ignore[operator]
        lambda: step.enqueue(1).otherwise(plain),  # type: ignore[arg-type]
        lambda: step.enqueue(1) ^ plain,  # type: ignore[operator]
    ):
        with pytest.raises(StreaqError, match="not a registered task") as e:
            join()
        one_line(e)


# ----------------------------------------------------------------- what can't be read


async def test_arguments_that_cannot_be_read_fail_that_task_only(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str
) -> None:
    keys = Keys(queue)
    garbage = [b"", b"\x80garbage", pickle.dumps("neither args nor kwargs"), pickle.dumps(([1], 2))]
    async with worker:
        bad = [await step.enqueue(1) for _ in garbage]
        for task, raw in zip(bad, garbage, strict=True):
            redis_client.hset(keys.task(task.id), "args", raw)
        follows = await step.enqueue(1).start(after=bad[0].id)
        good = await step.enqueue(2)
        async with running(worker):
            assert (await good.result(3)).result == 2
            for task in bad:
                result = await task.result(3)
                assert isinstance(result.exception, StreaqError)
                assert "arguments of task step" in str(result.exception)
            assert not (await follows.result(3)).success
    assert worker.counters["failed"] == 4


async def test_results_that_cannot_be_read(
    worker: Worker[Any], step: Step, make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    async with running(worker):
        task = await step.enqueue(1)
        await task.result(3)
        key = Keys(queue).result(task.id)
        record = redis_client.get(key)
        assert isinstance(record, bytes)
        redis_client.set(key, record[:-3] + b"xyz", keepttl=True)
        # Another one, because this one may be told the end of the task once more.
        async with make_worker() as reader:
            with pytest.raises(StreaqError, match="Can't read a result"):
                await reader.result_by_id(task.id, 3)
            then = await task.then(step)
            assert "Can't read a result" in str((await then.result(3)).exception)
            redis_client.set(key, b"not a record at all", keepttl=True)
            with pytest.raises(StreaqError, match="was not written by"):
                await reader.result_by_id(task.id, 3)
        assert (await (await step.enqueue(2)).result(3)).result == 2


async def test_a_class_that_the_worker_does_not_have(worker: Worker[Any], step: Step) -> None:
    class Local:
        pass

    Local.__qualname__ = "Gone"
    globals()["Gone"] = Local
    try:
        async with worker:
            task = await step.enqueue(Local())
            del globals()["Gone"]
            async with running(worker):
                result = await task.result(3)
                assert "Can't read the arguments of task step" in str(result.exception)
    finally:
        globals().pop("Gone", None)


async def test_messages_of_strangers_are_dropped(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str
) -> None:
    stream = f"{Keys(queue).base}stream:normal"
    async with worker:
        redis_client.xadd(stream, {"id": "no such task"})
        redis_client.xadd(stream, {"what": "ever", "more": "of it"})
        task = await step.enqueue(1)
        gone = await step.enqueue(2)
        redis_client.delete(Keys(queue).task(gone.id))
        async with running(worker):
            redis_client.xadd(stream, {"id": "no such task"})
            assert (await task.result(3)).result == 1
            assert (await (await step.enqueue(3)).result(3)).result == 3
    assert redis_client.xlen(stream) == 0


# -------------------------------------------------------------------------- too large


async def test_arguments_over_the_limit(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    worker = make_worker(max_payload_bytes=1000)

    @worker.task(name="grow")
    async def grow(text: str, times: int) -> str:
        return text * times

    async with worker:
        for enqueue in (
            lambda: grow.enqueue("x" * 1000, 1),
            lambda: worker.enqueue_many([grow.enqueue("x", 1), grow.enqueue("x" * 1000, 1)]),
        ):
            with pytest.raises(StreaqError, match="over the limit of 1,000") as e:
                await enqueue()
            one_line(e)
        assert tasks_in(redis_client, queue) == 0
        async with running(worker):
            assert (await (await grow.enqueue("x", 900)).result(3)).success
            result = await (await grow.enqueue("x", 1000)).result(3)
            assert "over the limit of 1,000" in str(result.exception)


async def test_no_limit_and_a_generous_one(make_worker: MakeWorker) -> None:
    megabyte = b"x" * 1024 * 1024
    unlimited, usual = make_worker(max_payload_bytes=None), make_worker(queue_name="-usual")

    @unlimited.task(name="size")
    async def size(raw: bytes) -> int:
        return len(raw)

    async with running(unlimited):
        task = await size.enqueue(megabyte * 20)
        assert (await task.result(10)).result == len(megabyte) * 20
    async with usual:
        with pytest.raises(StreaqError, match="over the limit of 16,777,216"):
            await usual.enqueue_unsafe("size", megabyte * 16)


async def test_an_exception_over_the_limit_survives_as_text(make_worker: MakeWorker) -> None:
    worker = make_worker(max_payload_bytes=1000)

    @worker.task
    async def fails() -> None:
        raise ValueError("x" * 5000)

    async with running(worker):
        result = await (await fails.enqueue()).result(3)
        assert str(result.exception).startswith("ValueError: xxx")
        assert len(str(result.exception)) <= 500


async def test_a_server_that_cannot_be_reached() -> None:
    worker = Worker("redis://:hunter2@localhost:1", telemetry=False)
    with pytest.raises(StreaqError, match=r"redis://:\*+@localhost:1") as e:
        async with worker:
            pass
    assert "hunter2" not in one_line(e)
    with pytest.raises(StreaqError, match="localhost:1"):
        await worker.run_async()


async def test_a_task_that_somebody_changed_in_redis_stalls_no_worker(
    make_worker: MakeWorker, redis_client: redis.Redis
) -> None:
    worker = make_worker()

    @worker.task
    async def work() -> str:
        return "done"

    async with worker:
        changed, next_one = await work.enqueue(), await work.enqueue()
        redis_client.hdel(Keys(worker.queue_name).task(changed.id), "fn", "made")
        async with running(worker):
            assert (await next_one.result(5)).result == "done"
            result = await changed.result(5)
    assert str(result.exception) == (
        "The task could not be read: what Redis holds of it was changed."
    )
    assert worker.counters == {"completed": 1, "failed": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "a\nb"}, "id must be text without line breaks; it is 'a\\nb'."),
        ({"queue_name": ""}, "queue_name must be text without line breaks; it is ''."),
        ({"queue_name": "a\n"}, "queue_name must be text without line breaks; it is 'a\\n'."),
        ({"priorities": ["x", ""]}, "a priority must be text without line breaks; it is ''."),
        ({"priorities": [1]}, "a priority must be text without line breaks; it is 1."),
        ({"concurrency": "4"}, "concurrency must be a whole number; it is '4'."),
        ({"sync_concurrency": 0}, "sync_concurrency must be at least 1; it is 0."),
        ({"grace_period": -1}, "grace_period (in ms) must be at least 0; it is -1000."),
        ({"max_payload_bytes": 0}, "max_payload_bytes must be at least 1; it is 0."),
        (
            {"signing_secret": ""},
            "signing_secret is empty; leave it out if nothing is to be signed.",
        ),
        (
            {"tz": "Europe/Berlin"},
            "tz must be a tzinfo, as ZoneInfo('Europe/Berlin'); it is 'Europe/Berlin'.",
        ),
    ],
)
def test_settings_that_would_break_things_later(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StreaqError) as e:
        Worker(**options)
    assert str(e.value) == message


def test_what_cannot_be_a_task() -> None:
    worker = Worker()
    register: Any = worker.task
    with pytest.raises(StreaqError, match="5 is not a function"):
        register(5)
    nameless = partial(print, "x")
    with pytest.raises(StreaqError, match="give it another with name="):
        register(nameless)
    assert register(name="named")(nameless).fn_name == "named"


@pytest.mark.parametrize("how", ["fail", "retry"])
async def test_an_error_that_says_what_cannot_be_encoded(worker: Worker[Any], how: str) -> None:
    """Half of a character: the worker that ran into it goes on, and so does the task."""

    @worker.task(name="half", max_tries=2)
    async def half() -> None:
        if how == "fail":
            raise ValueError("\udc80 is no text")
        raise StreaqRetry("\udc80 is no text", delay=0)

    async with worker, running(worker):
        result = await (await half.enqueue()).result(5)
    assert type(result.exception) is (ValueError if how == "fail" else StreaqRetry)
    assert result.tries == (1 if how == "fail" else 2)
    assert "is no text" in str(result.exception)


# ------------------------------------------------------------------- what is no UTF-8

BAD = b"\xff\xfe bad"
SHOWN = "\ufffd\ufffd bad"


class Refusals(Hook):
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def on_refuse(self, e: Ending) -> None:
        self.told.append((e.attempt.task, e.reason))


@pytest.mark.parametrize("how", ["queued", "scheduled", "repeating"])
async def test_a_name_that_is_no_text_is_refused_and_stops_no_worker(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str, how: str
) -> None:
    hook, keys = Refusals(), Keys(queue)
    worker = make_worker(hooks=[hook])

    @worker.task(name="work")
    async def work() -> str:
        return "done"

    start: dict[str, Any] = {
        "queued": {}, "scheduled": {"delay": 60}, "repeating": {"schedule": "@yearly"},
    }[how]  # fmt: skip
    async with worker:
        changed = await work.enqueue().start(**start)
        key = f"{keys.base}schedule:{changed.id}" if how == "repeating" else keys.task(changed.id)
        redis_client.hset(key, "fn", BAD)
        async with running(worker):
            bring_forward(redis_client, queue)
            result = await changed.result(5)
            assert (await (await work.enqueue()).result(5)).result == "done"
            await changed.unschedule()
    assert str(result.exception).endswith(f"is registered with the worker: {SHOWN}.")
    assert result.fn_name == SHOWN
    assert hook.told == [(SHOWN, "unknown")]
    assert worker.counters == {"completed": 1, "failed": 1}


@pytest.mark.parametrize("field", ["kind", "links", "trace", "log", "head", "try", "first"])
async def test_a_field_that_is_no_text_stops_no_worker(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str, field: str
) -> None:
    async with worker:
        changed = await step.enqueue(1)
        redis_client.hset(Keys(queue).task(changed.id), mapping={"kind": "retry", field: BAD})
        async with running(worker):
            await until(lambda: worker.counters.get("completed") == 1)
            assert (await (await step.enqueue(2)).result(5)).result == 2


async def test_a_schedule_whose_id_is_no_text_is_dropped(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str
) -> None:
    schedules = f"{Keys(queue).base}schedules"
    redis_client.zadd(schedules, {BAD: 1})
    async with worker, running(worker):
        await until(lambda: not redis_client.exists(schedules))
        assert (await (await step.enqueue(1)).result(5)).result == 1


async def test_names_that_are_no_text_can_be_looked_at(
    worker: Worker[Any], step: Step, redis_client: redis.Redis, queue: str
) -> None:
    keys = Keys(queue)
    async with worker:
        changed = await step.enqueue(1)
        follows = await step.enqueue(2).start(after=changed.id)
        for task in (changed, follows):
            redis_client.hset(keys.task(task.id), mapping={"fn": BAD, BAD: BAD, "head": BAD})
        redis_client.hset(f"{keys.base}dependents:{changed.id}", BAD, "after")
        job = f"{keys.base}cron:".encode() + BAD
        redis_client.hset(job, "tab", BAD)
        redis_client.zadd(f"{keys.base}crons", {BAD: 1})
        info, history = await changed.info(), await worker.history_by_id(changed.id)
        assert info is not None
        assert history is not None
        assert info.fn_name == history.fn_name == SHOWN
        assert info.dependents == {follows.id, SHOWN}
        assert SHOWN in await worker.explain_by_id(follows.id)
        listed = await worker.get_tasks_by_status(TaskStatus.QUEUED)
        assert [task.task_id for task in listed] == [changed.id]
        assert await worker.queue_size() == 1
        assert await changed.abort()
        assert not (await follows.result(3)).success
        redis_client.delete(job, f"{keys.base}crons")
