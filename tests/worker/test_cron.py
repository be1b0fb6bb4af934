"""Cron jobs written in the code, and tasks that are scheduled to repeat.

When crontabs fire is the matter of tests/engine; here it is what becomes of the firings.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import anyio
import pytest
import redis

from streaq import Hook, StreaqCancelled, StreaqRetry, TaskResult, TaskStatus
from streaq.broker.keys import Keys
from streaq.hooks import Cron, Ending, Enqueue
from tests.support import MakeWorker, bring_forward, running, until

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000


class Firings(Hook):
    """Everything that is told of schedules, and the ends of their tasks."""

    def __init__(self) -> None:
        self.crons: list[Cron] = []
        self.enqueued: list[Enqueue] = []
        self.ends: list[Ending] = []
        self.ended = anyio.Event()

    @property
    def fired(self) -> list[Cron]:
        return [e for e in self.crons if e.fired_ms]

    def on_cron(self, e: Cron) -> None:
        self.crons.append(e)

    def on_enqueued(self, e: Enqueue) -> None:
        self.enqueued.append(e)

    def on_finish(self, e: Ending) -> None:
        self.ends.append(e)
        self.ended.set()

    def on_refuse(self, e: Ending) -> None:
        self.on_finish(e)

    async def next_end(self) -> Ending:
        with anyio.fail_after(5):
            await self.ended.wait()
        self.ended = anyio.Event()
        return self.ends[-1]


def pretend_last_fired(client: redis.Redis, queue: str, fn: str, tab: str, last_ms: float) -> None:
    """As if a worker with this job had been alive at that time, and none since."""
    name = f"{Keys(queue).base}cron:{fn}"
    client.hset(name, mapping={"tab": tab, "last": int(last_ms)})
    client.expire(name, 60)


async def test_every_second(make_worker: MakeWorker) -> None:
    hook = Firings()
    worker = make_worker(hooks=[hook])
    ran: list[float] = []

    @worker.cron("* * * * * *", name="tick")
    async def cron() -> None:
        ran.append(time.time())
        if len(ran) == 1:
            assert cron.context.fn_name == "tick"

    async with running(worker):
        for _ in range(2):
            await hook.next_end()
    first, second = (e.fired_ms for e in hook.fired[:2])
    assert second - first == 1000
    assert first % 1000 == 0
    assert ran[0] * 1000 >= first
    assert [e.attempt.due_ms for e in hook.ends[:2]] == [first, second]
    assert [e.lag_s < 0.5 for e in hook.fired[:2]] == [True, True]
    registered = hook.crons[0]
    assert (registered.fired_ms, registered.next_ms, registered.task) == (0, first, "tick")
    # A firing tells of itself once.
    assert hook.enqueued == []
    assert {e.priority for e in hook.crons} == {"normal"}


async def test_options_are_those_of_a_task(make_worker: MakeWorker) -> None:
    worker = make_worker()

    # 9:30 on weekdays
    @worker.cron("30 9 * * mon-fri")
    async def cron() -> None:
        print("Kyrie eleison!")

    @worker.cron("@daily", name="nightly", unique=False, timeout=None, ttl=0, max_tries=1)
    def nightly() -> None: ...

    assert (cron.crontab, cron.unique, cron.timeout.total_seconds()) == (
        "30 9 * * mon-fri", True, 3600,
    )  # fmt: skip
    assert (cron.max_tries, cron.max_schedule_drift) == (3, None)
    assert (nightly.unique, nightly.timeout, nightly.ttl) == (False, None, 0)
    assert set(worker.registry) == {cron.fn_name, "nightly"}
    await cron()  # cron jobs can be called, and enqueued like any other task
    async with running(worker):
        assert (await (await cron.enqueue()).result(3)).success


async def test_a_job_knows_its_next_firing_in_the_workers_time_zone(
    make_worker: MakeWorker,
) -> None:
    hook = Firings()
    tokyo = ZoneInfo("Asia/Tokyo")
    worker = make_worker(hooks=[hook], tz=tokyo)

    @worker.cron("30 9 * * *")
    async def cron() -> None: ...

    async with running(worker):
        await until(lambda: bool(hook.crons))
    following = datetime.fromtimestamp(hook.crons[0].next_ms / 1000, tokyo)
    assert (following.hour, following.minute) == (9, 30)
    assert 0 < hook.crons[0].next_ms / 1000 - time.time() <= 86_400


async def test_several_workers_fire_once(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Firings()
    workers = [make_worker(hooks=[hook]) for _ in range(3)]
    ran: list[str] = []
    for worker in workers:

        @worker.cron("0 * * * *", name="report", unique=False)
        async def report() -> None:
            ran.append(report.context.task_id)

    hour = int(time.time() * 1000 // HOUR_MS * HOUR_MS)
    pretend_last_fired(redis_client, queue, "report", "0 * * * * UTC", hour - HOUR_MS)
    async with running(*workers):
        # Each of them has registered the job, and with that has had its chance to fire it.
        await until(lambda: len([e for e in hook.crons if not e.fired_ms]) == 3)
        await hook.next_end()
    assert len(ran) == 1
    assert [e.fired_ms for e in hook.fired] == [hour]


async def test_firings_missed_while_no_worker_lived(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    """The latest is run at once, the others are counted."""
    hook = Firings()
    worker = make_worker(hooks=[hook])
    now_ms = time.time() * 1000
    hour = int(now_ms // HOUR_MS * HOUR_MS)
    pretend_last_fired(redis_client, queue, "report", "0 * * * * UTC", hour - 3 * HOUR_MS)

    @worker.cron("0 * * * *", name="report")
    async def report() -> None: ...

    async with running(worker):
        ending = await hook.next_end()
    assert ending.attempt.due_ms == hour
    assert [(e.fired_ms, e.missed) for e in hook.fired] == [(hour, 2)]
    assert hook.fired[0].lag_s == pytest.approx((now_ms - hour) / 1000, abs=5)
    # Not once more after a restart.
    async with running(worker):
        await until(lambda: len(hook.crons) >= 3)
    assert len(hook.fired) == 1


async def test_what_others_fired_while_a_worker_stood_still_was_not_missed(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    """It goes on, and is the first to see that another firing is due."""
    hook = Firings()
    worker = make_worker(hooks=[hook])

    @worker.cron("0 * * * *", name="report")
    async def report() -> None: ...

    hour = int(time.time() * 1000 // HOUR_MS * HOUR_MS)
    async with running(worker):
        await until(lambda: len(hook.crons) == 1)
        life = worker._session._life
        assert life is not None
        pretend_last_fired(redis_client, queue, "report", "0 * * * * UTC", hour - HOUR_MS)
        life._scheduler._jobs[0].next_ms = hour - 5 * HOUR_MS
        life._scheduler.wake.ring()
        await hook.next_end()
    assert [(e.fired_ms, e.missed) for e in hook.fired] == [(hour, 0)]
    assert redis_client.hget(f"{Keys(queue).base}cron:report", "missed") is None


async def test_max_schedule_drift(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Firings()
    worker = make_worker(hooks=[hook])
    ran: list[str] = []

    @worker.cron("0 * * * *", name="late", max_schedule_drift=0)
    async def late() -> None:
        ran.append("late")

    @worker.cron("0 * * * *", name="in time", max_schedule_drift=timedelta(hours=2))
    async def in_time() -> None:
        ran.append("in time")

    last = int(time.time() * 1000 // HOUR_MS * HOUR_MS) - HOUR_MS
    for name in worker.registry:
        pretend_last_fired(redis_client, queue, name, "0 * * * * UTC", last)
    async with running(worker):
        await until(lambda: {e.attempt.task for e in hook.ends} == {"late", "in time"})
    refused = next(e for e in hook.ends if e.attempt.task == "late")
    assert (refused.status, refused.reason) == ("refused", "drift")
    assert "max_schedule_drift" in str(refused.error)
    assert ran == ["in time"]


async def test_a_job_retries(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Firings()
    worker = make_worker(hooks=[hook])

    @worker.cron("0 * * * *", name="report")
    async def report() -> int:
        if report.context.tries == 1:
            raise StreaqRetry(delay=0)
        return report.context.tries

    pretend_last_fired(redis_client, queue, "report", "0 * * * * UTC", 1)
    async with running(worker):
        assert (await hook.next_end()).result == 2


# ------------------------------------------------------------------------------ dynamic


async def test_repeating_tasks(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Firings()
    worker = make_worker(hooks=[hook], tz=ZoneInfo("Europe/Berlin"))

    @worker.task(name="sleeper")
    async def sleeper(time: int) -> int:
        return time

    async with running(worker):
        task = await sleeper.enqueue(1).start(schedule="*/5 * * * *")  # every 5 minutes
        assert [e.kind for e in hook.enqueued] == ["cron"]
        assert await task.status() is TaskStatus.SCHEDULED
        info = await task.info()
        assert info is not None
        assert (info.args, info.status) == ((1,), TaskStatus.SCHEDULED)
        assert info.scheduled is not None
        assert info.scheduled.minute % 5 == 0
        assert 0 < info.scheduled.timestamp() - time.time() <= 300
        # The first firing is the task itself, the later ones are tasks of their own.
        for firing in range(3):
            bring_forward(redis_client, queue)
            ending = await hook.next_end()
            assert (ending.result, ending.attempt.kind) == (1, "cron")
            assert (ending.attempt.task_id == task.id) is (firing == 0)
        assert (await task.result(3)).result == 1
        # It goes on, though the first is done.
        assert await task.unschedule() is True
        assert await task.unschedule() is False
        bring_forward(redis_client, queue)
        await anyio.lowlevel.checkpoint()
    assert len(hook.ends) == 3
    assert [e.priority for e in hook.fired] == ["normal"] * 3
    assert len(hook.enqueued) == 1


@pytest.mark.parametrize("how", ["unschedule_by_id", "abort"])
async def test_unscheduling_before_the_first_firing(make_worker: MakeWorker, how: str) -> None:
    worker = make_worker()

    @worker.task
    async def sleeper() -> None: ...

    async with worker:
        task = await sleeper.enqueue().start(schedule="@yearly")
        waiting: list[TaskResult[None]] = []

        async def wait() -> None:
            waiting.append(await task.result())

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                if how == "abort":
                    assert await task.abort() is True
                else:
                    assert await worker.unschedule_by_id(task.id) is True
            waiting.append(await task.result())  # who asks later is told too
        for result in waiting:
            assert not result.success
            assert isinstance(result.exception, StreaqCancelled)
            assert str(result.exception) == "The task was aborted before it ran."
            assert (result.fn_name, result.tries) == (sleeper.fn_name, 0)
        assert await task.status() is TaskStatus.DONE
        assert await task.abort() is False
        assert await worker.unschedule_by_id(task.id) is False
        assert await worker.unschedule_by_id("no such task") is False


async def test_a_schedule_keeps_arguments_priority_and_time_zone(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    hook = Firings()
    producer = make_worker(tz=ZoneInfo("Asia/Tokyo"))
    worker = make_worker(hooks=[hook], tz=UTC)

    @worker.task(name="note")
    async def note(a: int, *, b: str) -> str:
        return f"{a}{b}"

    async with producer, running(worker):
        task = producer.enqueue_unsafe("note", 1, b="x")
        await task.start(schedule="30 9 * * *", priority="high")
        bring_forward(redis_client, queue)
        ending = await hook.next_end()
        assert (ending.result, ending.attempt.priority) == ("1x", "high")
        # The next firing is half past nine in Tokyo, whoever fires it.
        assert hook.fired[0].priority == "high"
        following = datetime.fromtimestamp(hook.fired[0].next_ms / 1000, UTC)
        assert (following.hour, following.minute) == (0, 30)
        assert await task.unschedule()


async def test_repeating_tasks_obey_expire(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str
) -> None:
    producer = make_worker()

    @producer.task(expire=60)
    async def note() -> None: ...

    hook = Firings()
    worker = make_worker(hooks=[hook])

    @worker.task(name=note.fn_name, expire=60)
    async def same() -> None: ...

    async with producer:
        task = await note.enqueue().start(schedule="@yearly")
        async with running(worker):
            bring_forward(redis_client, queue)
            assert (await hook.next_end()).status == "success"
            assert await task.unschedule()
