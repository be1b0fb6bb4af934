"""inspect.lua: everything known of a task, in any state, without touching it."""

from __future__ import annotations

import pytest

from tests.broker.bench import LONG_MS, Bench, task

pytestmark = pytest.mark.anyio


async def test_nothing_asked(bench: Bench) -> None:
    assert await bench.broker.look([]) == []


async def test_many_at_once_in_their_order(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("ended"), task("running"), task("queued"))
    await bench.publish(task("later", due=f"+{LONG_MS}"), task("blocked", after=["running"]))
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await worker.run_one("ended")
    await worker.claim_one("running")
    ids = ["blocked", "nobody", "s", "later", "queued", "running", "ended"]
    assert await bench.states(*ids) == [
        "blocked", "", "scheduled", "scheduled", "queued", "running", "done",
    ]  # fmt: skip


async def test_arguments_only_if_asked_for(bench: Bench) -> None:
    await bench.enqueue("a", args=b"\xff", headers='{"k":"v"}')
    (quick,) = await bench.broker.look(["a"])
    assert not {"args", "head"} & set(quick.fields)
    assert (quick.text("fn"), quick.text("pri"), quick.number("try")) == ("work", "default", 0)
    whole = await bench.seen("a")
    assert (whole.fields["args"], whole.fields["head"]) == (b"\xff", b'{"k":"v"}')


async def test_a_running_task(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    claimed = await worker.claim_one("a")
    await bench.broker.abort("a")
    (seen,) = await bench.broker.look(["a"])
    assert (seen.text("who"), seen.number("try"), seen.number("began"), seen.text("stop")) == (
        "w1", 1, claimed.started_ms, "1",
    )  # fmt: skip
    assert seen.scheduled_ms is None


async def test_who_waits_for_whom(bench: Bench) -> None:
    await bench.publish(task("a"), task("b", then="a"), task("c", after=["a", "b"]))
    a, b, c = await bench.broker.look("abc")
    assert (a.dependencies, a.dependents) == (set(), {"b", "c"})
    assert (b.dependencies, b.dependents) == ({"a"}, {"c"})
    assert (c.dependencies, c.dependents) == ({"a", "b"}, set())


async def test_a_schedule_and_who_waits_for_it(bench: Bench) -> None:
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly", tz="UTC", args=b"x"))
    await bench.publish(task("d", after=["s"]))
    seen = await bench.seen("s")
    assert (seen.text("tab"), seen.text("tz"), seen.fields["args"]) == ("@hourly", "UTC", b"x")
    assert seen.dependents == {"d"}
    assert seen.scheduled_ms is not None


async def test_a_schedule_is_seen_as_its_first_firing_while_that_lives(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("s", due=f"+{LONG_MS}", crontab="@hourly"))
    await bench.becomes_due("s")
    await bench.broker.fire("s", 1, LONG_MS * 10**6, "m")
    assert await bench.state("s") == "queued"
    await worker.run_one("s")
    assert await bench.state("s") == "done"
    await bench.raw("DEL", f"{bench.base}result:s")
    assert await bench.state("s") == "scheduled"


async def test_the_head_of_a_result(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.run_one("a", value=b"x" * 100_000)
    (seen,) = await bench.broker.look(["a"])
    assert seen.record.startswith(b"1\nsuccess\nok\nwork\na\n")
    assert len(seen.record) == 8_192


async def test_looking_changes_nothing(bench: Bench) -> None:
    await bench.publish(task("a"), task("b", then="a"))
    before = await bench.keys(), await bench.fields("a")
    await bench.broker.look(["a", "b", "c"], arguments=True)
    assert (await bench.keys(), await bench.fields("a")) == before
