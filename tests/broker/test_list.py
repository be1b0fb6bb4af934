"""list.lua: ids of tasks in a state, without a scan of the keyspace."""

from __future__ import annotations

import pytest

from tests.broker.bench import DEFAULT, LONG_MS, Bench, task

pytestmark = pytest.mark.anyio

PRIORITIES = ("high", DEFAULT)


async def ids(bench: Bench, status: str, limit: int = 1_000) -> list[str]:
    return await bench.broker.list_ids(status, limit, PRIORITIES)


@pytest.mark.parametrize("status", ["scheduled", "queued", "running", "done"])
async def test_an_empty_queue(bench: Bench, status: str) -> None:
    assert await ids(bench, status) == []


async def test_queued_before_any_worker_came(bench: Bench) -> None:
    await bench.publish(task("a"), task("b"), task("c", priority="high"))
    assert await ids(bench, "queued") == ["c", "a", "b"]
    assert await ids(bench, "running") == []


async def test_queued_ones_that_somebody_holds_are_queued(bench: Bench) -> None:
    """Handed back, reserved and new."""
    w1, w2 = await bench.worker("w1"), await bench.worker("w2")
    await bench.publish(*(task(f"t{i}") for i in range(5)))
    t0, _ = await w1.claim(2)
    await w2.exchange(reserve=1)
    await w1.settle(w1.hand_back(t0))
    assert await ids(bench, "queued") == ["t0", "t2", "t3", "t4"]
    assert await ids(bench, "running") == ["t1"]


async def test_running_in_every_priority_and_of_dead_workers_too(bench: Bench) -> None:
    worker = await bench.worker(priorities=PRIORITIES)
    await bench.publish(task("a"), task("b", priority="high"), task("c"))
    await worker.claim(2)
    await worker.dies()
    assert await ids(bench, "running") == ["b", "a"]
    assert await ids(bench, "queued") == ["c"]


async def test_scheduled_are_those_due_later_blocked_and_repeating(bench: Bench) -> None:
    await bench.publish(
        task("later", due=f"+{2 * LONG_MS}"), task("sooner", due=f"+{LONG_MS}"),
        task("a"), task("blocked", after=["a"]),
    )  # fmt: skip
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    assert await ids(bench, "scheduled") == ["sooner", "later", "blocked", "s"]
    await bench.becomes_due("s")
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "m")
    assert await ids(bench, "scheduled") == ["sooner", "later", "blocked"]
    assert await ids(bench, "queued") == ["a", "s"]


async def test_done_newest_first(bench: Bench) -> None:
    worker = await bench.worker()
    for task_id in ("a", "b", "c"):
        await bench.enqueue(task_id, "secret" if task_id == "b" else "work")
        await worker.run_one(task_id)
    assert await ids(bench, "done") == ["c", "a"]
    assert await ids(bench, "done", 1) == ["c"]


@pytest.mark.parametrize("status", ["scheduled", "queued", "running", "done"])
async def test_no_more_than_the_limit(bench: Bench, status: str) -> None:
    worker = await bench.worker()
    due = f"+{LONG_MS}" if status == "scheduled" else ""
    await bench.publish(*(task(f"t{i}", due=due) for i in range(450)))
    if status in {"running", "done"}:
        claimed = await worker.claim(450)
        if status == "done":
            await worker.settle(*map(worker.end, claimed))
    assert len(await ids(bench, status)) == 450
    for limit in (0, 1, 200, 201, 449):
        found = await ids(bench, status, limit)
        assert len(found) == len(set(found)) == limit


async def test_what_ended_is_remembered_up_to_ten_thousand(bench: Bench) -> None:
    worker = await bench.worker()
    for start in range(0, 12_000, 4_000):
        numbers = range(start, start + 4_000)
        await bench.broker.publish([[task(f"t{i}")] for i in numbers])
        await worker.settle(*map(worker.end, await worker.claim(4_000)))
    found = await ids(bench, "done", 20_000)
    assert found == [f"t{i}" for i in range(11_999, 1_999, -1)]
