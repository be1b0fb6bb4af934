"""What ever came in and what ever ended, counted by the scripts that do it."""

from __future__ import annotations

import pytest

from streaq.broker.link import CronFiring
from tests.broker.bench import DEFAULT, LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def totals(bench: Bench, priority: str = DEFAULT) -> dict[str, int]:
    """Those that are not 0; and what came in is what ended and what is still there."""
    snapshot = await bench.broker.snapshot()
    (p,) = [p for p in snapshot.priorities if p.priority == priority]
    live = p.depth + p.scheduled + p.blocked + p.running
    assert p.enqueued == sum(p.finished.values()) + live
    return {name: n for name, n in {"enqueued": p.enqueued, **p.finished}.items() if n}


async def test_every_way_in(bench: Bench) -> None:
    await bench.publish(
        task("a"), task("b", due=f"+{LONG_MS}"), task("c", after=["a"]), task("h", priority="high")
    )
    assert await totals(bench) == {"enqueued": 3}
    assert await totals(bench, "high") == {"enqueued": 1}


async def test_a_task_that_is_there_already_does_not_come_in_again(bench: Bench) -> None:
    await bench.publish(task("a"))
    assert await bench.publish(task("a"), task("a", due=f"+{LONG_MS}")) == ["exists", "exists"]
    assert await totals(bench) == {"enqueued": 1}


async def test_firings_come_in_and_their_registration_does_not(bench: Bench) -> None:
    await bench.publish(task("s", kind="cron", crontab="* * * * *", due="1000"))
    firing = CronFiring("work", "* * * * *", 0, LONG_MS, 0, "c1", DEFAULT, b"", "", "")
    await bench.broker.cron(firing)
    assert await totals(bench) == {}
    assert await bench.broker.fire("s", 1000, LONG_MS, "s1") == "s"
    for _ in range(2):  # two workers, one firing
        await bench.broker.cron(firing._replace(due_ms=LONG_MS * 1_000_000))
        await bench.broker.fire("s", 1000, LONG_MS, "s1")
    assert await totals(bench) == {"enqueued": 2}


async def test_every_way_out(bench: Bench) -> None:
    worker = await bench.worker()
    for _ in range(4):
        await bench.enqueue()
    done, failed, aborted, again = await worker.claim(4)
    await worker.settle(
        worker.end(done), worker.fail(failed), worker.end(aborted, "aborted", reason="user")
    )
    await worker.settle(worker.retry(again, when=f"+{LONG_MS}"))
    assert await totals(bench) == {"enqueued": 4, "success": 1, "failed": 1, "aborted": 1}


async def test_a_fenced_or_repeated_settle_counts_nothing(bench: Bench) -> None:
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue()
    claimed = await worker.claim_one()
    await worker.dies()
    (taken,) = await other.claim(1, reclaim=True)
    assert await worker.settle(worker.end(claimed)) == [0]
    assert await totals(bench) == {"enqueued": 1}
    assert await other.settle(other.end(taken)) == [1]
    assert await other.settle(other.end(taken), resent=True) == [2]
    assert await totals(bench) == {"enqueued": 1, "success": 1}


async def test_those_that_never_ran(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("late", expires_in="-1000")
    await bench.enqueue("strange", "nobody")
    await bench.publish(task("gone", due=f"+{LONG_MS}"))
    await bench.publish(task("after", after=["strange"]), task("spare", otherwise="strange"))
    await bench.broker.abort("gone")
    await worker.claim(2)
    assert await totals(bench) == {"enqueued": 5, "aborted": 1, "expired": 1, "failed": 2}
    await worker.run_one("spare")
    assert (await totals(bench))["success"] == 1


async def test_a_fail_over_that_is_not_needed_succeeds(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await bench.publish(task("spare", otherwise="a"))
    await worker.run_one("a")
    assert await totals(bench) == {"enqueued": 2, "success": 2}


async def test_a_task_whose_fate_is_known_when_it_comes_in(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    (claimed,) = await worker.claim()
    await worker.settle(worker.fail(claimed))
    assert await bench.publish(task("b", after=["a"])) == ["done"]
    assert await totals(bench) == {"enqueued": 2, "failed": 2}
