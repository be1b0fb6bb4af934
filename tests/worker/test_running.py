"""How a worker runs: at least once, handing back what it does not finish, bursts, prefetching,
signals, and leases."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import redis

from streaq import Hook, StreaqError, TaskStatus, Worker
from streaq.broker.keys import Keys
from streaq.hooks import Ending, Fence, Reclaim, WorkerEvent
from tests.support import MakeWorker, running, until
from tests.worker.processes import next_line, worker_process

pytestmark = pytest.mark.anyio


class Log(Hook):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_return(self, e: Ending) -> None:
        self.seen.append(f"return {e.attempt.try_number} {e.reason}")

    def on_finish(self, e: Ending) -> None:
        self.seen.append(f"finish {e.attempt.try_number}")

    def on_reclaim(self, e: Reclaim) -> None:
        self.seen.append(f"reclaim from {e.lost_worker}")

    def on_fenced(self, e: Fence) -> None:
        self.seen.append(f"fenced {e.ending.attempt.try_number}")

    def on_refuse(self, e: Ending) -> None:
        self.seen.append(f"refuse {e.reason}")

    def on_worker_stop(self, e: WorkerEvent) -> None:
        self.seen.append(f"stop {e.reason}")


async def test_a_task_stays_until_it_ended(make_worker: MakeWorker) -> None:
    """A worker that shuts down leaves its tasks for others, with the try refunded."""
    log = Log()
    first, second = make_worker(hooks=[log]), make_worker(hooks=[log])
    started = [anyio.Event(), anyio.Event()]

    async def body() -> int:
        tries = first.registry["task"].context.tries
        started[0 if not started[0].is_set() else 1].set()
        if not started[1].is_set():
            await anyio.sleep_forever()
        return tries

    tasks = [worker.task(name="task")(body) for worker in (first, second)]
    async with second:
        async with running(first):
            task = await tasks[0].enqueue()
            await started[0].wait()
        assert await second.status_by_id(task.id) is TaskStatus.QUEUED
        info = await second.info_by_id(task.id)
        assert info is not None
        assert info.tries == 0
        async with running(second):
            result = await second.result_by_id(task.id, 3)
            assert (result.result, result.tries, result.worker_id) == (1, 1, second.id)
    assert log.seen == ["return 1 shutdown", "stop cancelled", "finish 1", "stop cancelled"]
    assert first.counters == {"relinquished": 1}


async def test_handed_back_tasks_are_taken_at_once(make_worker: MakeWorker) -> None:
    """By a worker that idles already: it is told, and does not wait for a lease to run out."""
    first, second = make_worker(), make_worker()
    started, other = anyio.Event(), anyio.Event()

    @first.task(name="task", unique=True)
    async def hangs() -> None:
        started.set()
        await anyio.sleep_forever()

    @second.task(name="task", unique=True)
    async def works() -> str:
        other.set()
        return works.context.fn_name

    async with second, running(first):
        task = await hangs.enqueue()
        await started.wait()
        async with running(second):
            await anyio.wait_all_tasks_blocked()
            assert not other.is_set()
            stop(first, grace=False)
            result = await second.result_by_id(task.id, 3)
            assert result.result == "task"


def stop(worker: Worker, *, grace: bool = True) -> None:
    """As a signal does it."""
    life = worker._session._life
    assert life is not None
    life.pump.drain()
    if not grace:
        life.pump.cancel_running()


async def test_a_task_that_blocks_its_shutdown_for_a_while_is_waited_for(
    make_worker: MakeWorker,
) -> None:
    log = Log()
    worker = make_worker(hooks=[log])
    started = anyio.Event()

    @worker.task
    async def cleans_up() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)

    async with worker:
        async with running(worker):
            task = await cleans_up.enqueue()
            await started.wait()
        assert log.seen == ["return 1 shutdown", "stop cancelled"]
        assert await task.abort()


async def test_burst(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=2)
    worker.burst = True
    ran: list[int] = []

    @worker.task
    async def note(i: int) -> None:
        await anyio.sleep(0.002)
        ran.append(i)
        if i == 0:  # what tasks enqueue is done as well
            await note.enqueue(10)

    async with worker:
        await worker.run_async()  # nothing to do
        due = await note.enqueue(6).start(delay=0.001)
        await worker.enqueue_many([note.enqueue(i) for i in range(5)])
        dependent = await note.enqueue(5).start(after=due.id)
        later = await note.enqueue(7).start(delay=60)
        await anyio.sleep(0.01)
        await worker.run_async()
        assert sorted(ran) == [0, 1, 2, 3, 4, 5, 6, 10]
        assert (await dependent.result(0.5)).success
        assert await later.status() is TaskStatus.SCHEDULED
        assert await later.abort()


async def test_burst_finds_what_is_due_and_nothing_else(make_worker: MakeWorker) -> None:
    worker = make_worker()
    worker.burst = True
    ran: list[int] = []

    @worker.task
    async def note(i: int) -> None:
        ran.append(i)

    async with worker:
        for i in range(5):
            await note.enqueue(i).start(delay=0.001)
            await anyio.sleep(0.005)
            await worker.run_async()
            assert ran == list(range(i + 1))


async def test_prefetch(make_worker: MakeWorker, redis_client: redis.Redis, queue: str) -> None:
    """What a worker holds beyond those that run is held without a counted try, and given back."""
    worker = make_worker(concurrency=2, prefetch=3)
    other = make_worker()
    go = anyio.Event()
    ran: list[int] = []

    async def note(i: int) -> None:
        ran.append(i)
        await go.wait()

    tasks = [w.task(name="note")(note) for w in (worker, other)]
    async with worker, other:
        await worker.enqueue_many([tasks[0].enqueue(i) for i in range(10)])
        async with running(worker):
            stream = f"{Keys(queue).base}stream:normal"
            await until(lambda: len(ran) == 2)
            await until(lambda: redis_client.xpending(stream, "workers")["pending"] == 5)
            queued = await worker.get_tasks_by_status(TaskStatus.QUEUED)
            assert len(queued) == 8
            assert {info.tries for info in queued} == {0}
        assert sorted(ran) == [0, 1]
        go.set()
        async with running(other):
            for info in queued:
                assert (await other.result_by_id(info.task_id, 3)).tries == 1
    assert sorted(ran) == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("prefetch", [0, 3])
async def test_a_worker_that_stops_keeps_nothing_from_others(
    make_worker: MakeWorker, redis_client: redis.Redis, queue: str, prefetch: int
) -> None:
    """While it waits for its last tasks, however long the grace period."""
    first = make_worker(concurrency=1 if prefetch else 2, prefetch=prefetch)
    second = make_worker()
    started, go = anyio.Event(), anyio.Event()

    async def body(wait: bool) -> None:
        if wait:
            started.set()
            await go.wait()

    task, _ = [worker.task(name="task")(body) for worker in (first, second)]
    stream = f"{Keys(queue).base}stream:normal"

    def pending() -> int:
        return redis_client.xpending(stream, "workers")["pending"]

    async with first:
        last, *tasks = [task.enqueue(wait=i == 0) for i in range(1 + prefetch)]
        await first.enqueue_many([last, *tasks])
        async with running(first):
            await started.wait()
            await until(lambda: pending() == 1 + prefetch)
            if not prefetch:
                await until(lambda: redis_client.info("clients")["blocked_clients"] > 0)
            stop(first)
            tasks.append(await task.enqueue(wait=False))
            async with running(second):
                for one in tasks:
                    assert (await one.result(5)).worker_id == second.id
            go.set()
            assert (await last.result(3)).worker_id == first.id


async def test_concurrency(make_worker: MakeWorker) -> None:
    worker = make_worker(concurrency=3)
    now = most = 0

    @worker.task
    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.002)
        now -= 1

    async with worker:
        tasks = [count.enqueue() for _ in range(20)]
        await worker.enqueue_many(tasks)
        async with running(worker):
            for task in tasks:
                await task.result(3)
            assert worker.running() == 0
    assert most == 3
    assert str(worker) == f"worker {worker.id} {{completed: 20}}"
    assert worker.queue_name in repr(worker)


async def test_an_idle_worker_asks_nothing(
    make_worker: MakeWorker, redis_client: redis.Redis
) -> None:
    worker = make_worker()

    @worker.task
    async def step() -> None: ...

    @worker.cron("0 0 1 1 *")
    async def yearly() -> None: ...

    async with running(worker):
        later = await step.enqueue().start(delay=60)
        await (await step.enqueue()).result(3)
        await until(lambda: redis_client.info("clients")["blocked_clients"] > 0)
        await anyio.sleep(0.05)  # what follows from the start and the task is over
        before = redis_client.info("stats")["total_commands_processed"]
        await anyio.sleep(0.2)
        after = redis_client.info("stats")["total_commands_processed"]
        # Neither for tasks, nor for what is due, nor whether it still runs.
        assert after - before <= 2
        assert await later.abort()


async def test_queues_do_not_see_each_other(make_worker: MakeWorker) -> None:
    one, two = make_worker(queue_name="-one"), make_worker(queue_name="-two")

    @one.task(name="who")
    async def who() -> str:
        return "one"

    @two.task(name="who")
    async def who_else() -> str:
        return "two"

    async with running(one, two):
        assert (await (await who.enqueue()).result(3)).result == "one"
        assert (await (await who_else.enqueue()).result(3)).result == "two"


async def lose_the_lease(worker: Worker) -> None:
    """The thread that keeps its leases dies; the worker itself does not notice."""
    life = worker._session._life
    assert life is not None
    await anyio.to_thread.run_sync(life._leases.stop)


async def test_a_lost_lease(make_worker: MakeWorker) -> None:
    """Another worker takes over, and what the first makes of it later changes nothing."""
    log, fenced = Log(), anyio.Event()

    class Fenced(Hook):
        def on_fenced(self, e: Fence) -> None:
            fenced.set()

    # Without another slot it can't take the task over from itself.
    first = make_worker(hooks=[log, Fenced()], idle_timeout=0.15, concurrency=1)
    second = make_worker(hooks=[log], idle_timeout=0.15)
    started, go = anyio.Event(), anyio.Event()

    @first.task(name="task")
    async def slow() -> str:
        started.set()
        with anyio.move_on_after(10, shield=True):
            await go.wait()
        return "too late"

    @second.task(name="task")
    async def quick() -> str:
        return f"try {quick.context.tries}"

    async with running(first):
        task = await slow.enqueue()
        await started.wait()
        await lose_the_lease(first)
        async with running(second):
            result = await task.result(5)
            assert (result.result, result.worker_id) == ("try 2", second.id)
            go.set()
            with anyio.fail_after(5):
                await fenced.wait()
            assert first.counters == {"fenced": 1}
            assert await task.result(1) == result
    assert log.seen[:3] == [f"reclaim from {first.id}", "finish 2", "fenced 1"]


async def test_tries_are_counted_when_they_start(make_worker: MakeWorker) -> None:
    """So a task that kills its worker every time does not do it for ever."""
    log = Log()
    first = make_worker(idle_timeout=0.15, concurrency=1)
    second = make_worker(hooks=[log], idle_timeout=0.15)
    started, go = anyio.Event(), anyio.Event()

    @first.task(name="task", max_tries=1)
    async def kills() -> None:
        started.set()
        with anyio.move_on_after(10, shield=True):
            await go.wait()

    @second.task(name="task", max_tries=1)
    async def never() -> None:
        raise AssertionError

    async with running(first):
        task = await kills.enqueue()
        await started.wait()
        await lose_the_lease(first)
        async with running(second):
            result = await task.result(5)
            assert isinstance(result.exception, StreaqError)
            assert "died during every one of its 1 tries" in str(result.exception)
            await until(lambda: log.seen == ["refuse exhausted"])
            go.set()


# ------------------------------------------------------------- signals, in real processes


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("child", "signum"), [("asyncio", signal.SIGTERM), ("trio", signal.SIGINT)]
)
async def test_grace_period(
    make_worker: MakeWorker, redis_url: str, queue: str, child: str, signum: signal.Signals
) -> None:
    async with make_worker() as producer:
        task = await producer.enqueue_unsafe("slow", 0.3)
        waiting = await producer.enqueue_unsafe("slow", 0).start(delay=60)
        with worker_process(redis_url, queue, anyio_backend=child, grace_period=20) as process:
            assert next_line(process) == "started"
            process.send_signal(signum)
            assert next_line(process).startswith(f"received {signum.name}: worker ")
            next_one = await producer.enqueue_unsafe("slow", 0)
            out, err = process.communicate(timeout=15)
            assert process.returncode == 0, err
            assert out.startswith("left in good order")
            assert "'completed': 1" in out
            assert (await task.result(1)).result == "finished"
            # Nothing new was begun; what was claimed in that moment was handed back.
            assert await next_one.status() is TaskStatus.QUEUED
        assert await next_one.abort()
        assert await waiting.abort()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("grace", "signals"), [(0, 1), (0.1, 1), (60, 2)], ids=["none", "short", "second signal"]
)
async def test_what_does_not_finish_is_handed_back(
    make_worker: MakeWorker, redis_url: str, queue: str, grace: float, signals: int
) -> None:
    async with make_worker() as producer:
        task = await producer.enqueue_unsafe("slow", 60)
        with worker_process(redis_url, queue, grace_period=grace) as process:
            assert next_line(process) == "started"
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                assert next_line(process).startswith("received SIGTERM")
            out, err = process.communicate(timeout=15)
            assert (process.returncode, out) == (0, "left in good order {'relinquished': 1}\n"), err
        info = await task.info()
        assert info is not None
        assert (info.status, info.tries) == (TaskStatus.QUEUED, 0)
        assert await task.abort()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_among_others_stops_by_itself(
    make_worker: MakeWorker, signum: signal.Signals
) -> None:
    """In a user's own process, ``run_async`` returns and what was set up before is set up again."""
    log = Log()
    worker = make_worker(handle_signals=True, hooks=[log])
    before = signal.getsignal(signum)
    async with anyio.create_task_group() as group:
        await group.start(worker.run_async)
        await until(lambda: signal.getsignal(signum) is not before)
        signal.raise_signal(signum)
    assert signal.getsignal(signum) is before
    assert log.seen == [f"stop {signum.name}"]


async def test_a_burst_stops_because_the_queue_is_drained(make_worker: MakeWorker) -> None:
    log = Log()
    worker = make_worker(hooks=[log])
    worker.burst = True
    await worker.run_async()
    assert log.seen == ["stop drained"]


# ----------------------------------------------------------- functions that come late


async def test_what_is_registered_while_the_worker_runs_is_refused(make_worker: MakeWorker) -> None:
    """It would be unknown to this run, and its tasks refused."""
    worker, other = make_worker(id="w1"), make_worker()

    @other.task(name="other")
    async def task() -> None: ...

    async with running(worker):
        for what, register in {
            "Task late": lambda: worker.task(name="late")(task.fn),
            "Task often": lambda: worker.cron("* * * * *", name="often")(task.fn),
            "This middleware": lambda: worker.middleware(lambda call: call),
            f"Worker {other.id}, to be included,": lambda: worker.include(other),
        }.items():
            with pytest.raises(StreaqError) as e:
                register()
            assert str(e.value).startswith(f"{what} comes too late: worker w1 runs already.")
    assert (worker.registry, worker.middlewares) == ({}, [])
    worker.include(other)

    async with running(worker):
        assert (await (await task.enqueue()).result(5)).success
        with pytest.raises(StreaqError, match="comes too late"):
            other.task(name="late")(task.fn)


async def test_the_lifespan_may_register(make_worker: MakeWorker) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        worker.task(name="late")(late)
        yield

    async def late() -> str:
        return "late"

    worker = make_worker(lifespan=lifespan)
    async with running(worker):
        assert (await (await worker.enqueue_unsafe("late")).result(5)).result == "late"
