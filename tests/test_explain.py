"""Why a task is not running: every reason, and the most serious one first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest
import redis

from streaq import Worker
from streaq.broker.exchange import Reserved
from streaq.broker.inspect import COUNT_BEFORE_UP_TO, QueueSnapshot, Standing
from streaq.broker.keys import GROUP
from streaq.explain import Dependency, explain
from streaq.history import PastAttempt, TaskHistory
from tests.support import MakeWorker, running

NOW = 1_000_000
TASK = TaskHistory(
    task_id="t1",
    fn_name="charge",
    priority="high",
    state="queued",
    outcome="",
    reason="",
    error="",
    created_ms=NOW - 5_000,
    due_ms=NOW - 5_000,
    enqueued_ms=NOW - 5_000,
    finished_ms=0,
    tries=0,
    attempts=(),
)
FREE = Standing(NOW, 0, "", "")
WORKER = {
    "id": "w1", "concurrency": 4, "running": 3, "priorities": ["high", "low"],
    "functions": ["charge", "receipt"],
}  # fmt: skip


def queue_of(*workers: dict[str, Any]) -> QueueSnapshot:
    return QueueSnapshot("orders", NOW, [], list(workers))


def test_an_unknown_task() -> None:
    line = explain(None, FREE, queue_of(WORKER))
    assert line == "There is no such task: it never was, or its result has expired."


@pytest.mark.parametrize(
    ("outcome", "error", "how"),
    [
        ("success", "", "successfully"),
        ("aborted", "StreaqCancelled: x", "because it was aborted"),
        ("failed", "ValueError: no", "in failure (ValueError: no)"),
    ],
)
def test_an_ended_task(outcome: str, error: str, how: str) -> None:
    ended = replace(TASK, state="done", outcome=outcome, error=error, finished_ms=NOW - 2000)
    assert explain(ended, FREE, queue_of()) == f"It ended 2 s ago, {how}."


def test_a_running_task() -> None:
    attempt = PastAttempt(2, "w1", NOW - 1500, None, "running", "", "")
    started = replace(TASK, state="running", attempts=(attempt,))
    assert explain(started, FREE, queue_of(WORKER)) == (
        "It runs: try 2 on worker w1, for 1.50 s now."
    )
    asked = replace(started, abort_asked=True)
    assert explain(asked, FREE, queue_of(WORKER)).endswith("; it was asked to abort.")


def test_a_task_whose_worker_died() -> None:
    attempt = PastAttempt(1, "gone", NOW - 1500, None, "running", "", "")
    started = replace(TASK, state="running", attempts=(attempt,))
    assert explain(started, FREE, queue_of(WORKER)) == (
        "It was started (try 1), but its worker gone gives no sign of life; "
        "another takes it over when the lease has run out."
    )


def test_a_delayed_task() -> None:
    later = replace(TASK, state="scheduled", due_ms=NOW + 90_000)
    assert explain(later, FREE, queue_of(WORKER)) == (
        "It is delayed: 1 min 30 s more until it is due."
    )
    again = replace(later, tries=2)
    assert explain(again, FREE, queue_of(WORKER)) == "It is delayed: 1 min 30 s more until try 3."


def test_a_due_task_that_nobody_queues() -> None:
    due = replace(TASK, state="scheduled", due_ms=NOW - 3000)
    assert explain(due, FREE, queue_of()) == (
        "It has been due for 3 s, and no worker lives to queue it."
    )
    assert explain(due, FREE, queue_of(WORKER)) == (
        "It is due now (3 s ago) and about to be queued."
    )


def test_a_due_task_at_a_priority_that_nobody_serves() -> None:
    due = replace(TASK, state="scheduled", priority="urgent", due_ms=NOW - 3000)
    assert explain(due, FREE, queue_of(WORKER)) == (
        "It has been due for 3 s, and no live worker serves its priority, urgent, to queue it."
    )
    fires = replace(due, crontab="* * * * *")
    assert explain(fires, FREE, queue_of(WORKER)) == (
        "It is due now (3 s ago) and about to be queued."
    )


def test_a_repeating_task() -> None:
    again = replace(TASK, state="scheduled", due_ms=NOW + 60_000, crontab="* * * * *")
    assert explain(again, FREE, queue_of(WORKER)) == (
        "It repeats by '* * * * *'; the next firing is in 1 min."
    )


def test_a_task_that_waits_for_others() -> None:
    blocked = replace(TASK, state="blocked")
    others = [Dependency(f"d{i}", "fetch", "running") for i in range(5)]
    assert explain(blocked, FREE, queue_of(WORKER), others[:1]) == (
        "It waits for 1 task to end first: fetch d0 (running)."
    )
    assert explain(blocked, FREE, queue_of(WORKER), others) == (
        "It waits for 5 tasks to end first: fetch d0 (running), fetch d1 (running), "
        "fetch d2 (running), 2 more."
    )


def test_no_worker() -> None:
    assert explain(TASK, FREE, queue_of()) == (
        "It is queued, and no worker of queue orders is alive."
    )


def test_no_worker_has_the_function() -> None:
    other = {**WORKER, "functions": ["receipt"]}
    assert explain(TASK, FREE, queue_of(other, other)) == (
        "It is queued, and none of 2 workers alive registers its function, charge."
    )


def test_no_worker_serves_the_priority() -> None:
    other = {**WORKER, "priorities": ["low"]}
    assert explain(TASK, FREE, queue_of(other)) == (
        "It is queued at priority high, which no live worker that has charge serves."
    )


def test_a_unique_task_beside_another() -> None:
    held = FREE._replace(locked_by="t0")
    assert explain(TASK, held, queue_of(WORKER)) == (
        "It is queued, and locked: charge is unique and task t0 runs; "
        "started now, it would be refused."
    )
    own = FREE._replace(locked_by="t1")
    assert "locked" not in explain(TASK, own, queue_of(WORKER))


def test_a_prefetched_task() -> None:
    held = FREE._replace(reserved_by="w1")
    assert explain(TASK, held, queue_of(WORKER)) == (
        "Worker w1 has prefetched it and starts it in its turn."
    )


def test_a_task_that_a_dead_worker_has_prefetched() -> None:
    held = FREE._replace(reserved_by="gone")
    assert explain(TASK, held, queue_of(WORKER)) == (
        "It is queued, but worker gone, which has prefetched it, gives no sign of life; "
        "another with a free slot takes it over when the lease has run out."
    )


def test_a_task_in_line() -> None:
    idle = {**WORKER, "functions": []}
    assert explain(TASK, FREE._replace(before=1234), queue_of(WORKER, WORKER, idle)) == (
        "It is queued, with 1,234 ahead of it at priority high; "
        "6 of 8 slots of 2 workers are taken."
    )
    crowd = FREE._replace(before=COUNT_BEFORE_UP_TO)
    assert "over 10,000 ahead of it" in explain(TASK, crowd, queue_of(WORKER))


# ------------------------------------------------------------------ and on a real queue


async def listed(worker: Worker[None]) -> None:
    """Until Redis lists the worker: a thread of its own sees to that."""
    while worker.id not in {w["id"] for w in (await worker.snapshot()).workers}:  # noqa: ASYNC110
        await anyio.sleep(0.005)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_place_in_the_line_is_counted(
    make_worker: MakeWorker, redis_client: redis.Redis
) -> None:
    worker: Worker[None] = make_worker()

    @worker.task
    async def wait() -> None: ...

    async with worker:
        tasks = [await wait.enqueue() for _ in range(4)]
        broker = worker._session.broker()
        stream = broker.keys.stream("normal")

        async def places() -> list[int]:
            return [(await broker.standing(task.id)).before for task in tasks]

        assert await places() == [0, 1, 2, 3]
        redis_client.xgroup_create(stream, GROUP, id="0")
        redis_client.xreadgroup(GROUP, "other", {stream: ">"}, count=1)
        assert await places() == [0, 0, 1, 2]
        assert (await broker.standing(tasks[0].id)).reserved_by == "other"
        assert (await broker.standing(tasks[1].id)).reserved_by == ""
        # What was handed back goes before what is new.
        held = redis_client.xpending_range(stream, GROUP, "-", "+", 1)[0]["message_id"]
        await broker.release("other", [Reserved(tasks[0].id, held, "normal")])
        assert await places() == [0, 1, 2, 3]
        assert (await broker.standing(tasks[0].id)).reserved_by == ""
        assert (await broker.standing("nothing"))[1:] == (0, "", "")
        for task in tasks:
            await task.abort()


@pytest.mark.anyio
async def test_a_task_is_explained_on_its_way(make_worker: MakeWorker) -> None:
    worker: Worker[None] = make_worker(concurrency=1)
    holding, release = anyio.Event(), anyio.Event()

    @worker.task
    async def hold() -> None:
        holding.set()
        await release.wait()

    async with worker:
        first = await hold.enqueue()
        assert await worker.explain_by_id(first.id) == (
            f"It is queued, and no worker of queue {worker.queue_name} is alive."
        )
        async with running(worker):
            await holding.wait()
            await listed(worker)
            second = await hold.enqueue()
            assert "It runs: try 1" in await worker.explain_by_id(first.id)
            assert "with 0 ahead of it" in await worker.explain_by_id(second.id)
            release.set()
            await second.result(5)
        assert "successfully" in await worker.explain_by_id(first.id)


@pytest.mark.anyio
async def test_a_lock_is_seen(make_worker: MakeWorker) -> None:
    worker: Worker[None] = make_worker(concurrency=1)
    holding, release = anyio.Event(), anyio.Event()

    @worker.task(unique=True)
    async def alone() -> None:
        holding.set()
        await release.wait()

    async with worker, running(worker):
        first = await alone.enqueue()
        await holding.wait()
        await listed(worker)
        second = await alone.enqueue()
        assert f"unique and task {first.id} runs" in await worker.explain_by_id(second.id)
        release.set()
        await first.result(5)
