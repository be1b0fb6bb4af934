"""_finish.lua: what the end of a task means for those that wait for it, however deep."""

from __future__ import annotations

import asyncio

import pytest

from streaq.broker.exchange import Reply
from tests.broker.bench import LONG_MS, Bench, Hand, chain, task

pytestmark = pytest.mark.anyio


async def run_all(worker: Hand, *failing: str) -> list[str]:
    """Claim and end until nothing is left to claim; ids in the order they ran."""
    ran: list[str] = []
    while claimed := await worker.claim(100):
        for c in claimed:
            ran.append(c.task_id)
            end = worker.fail(c) if c.task_id in failing else worker.end(c)
            assert await worker.settle(end) == [1]
    return ran


def told(reply: Reply) -> set[tuple[str, str, str]]:
    return {(change.what, change.task_id, change.by) for change in reply.changes}


async def test_success_releases_with_everything_a_hook_wants_to_know(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a", headers='{"k":"v"}', kind="dependent"))
    reply = await worker.run_one("a", trace="tr")
    (change,) = reply.changes
    assert (change.what, change.task_id, change.by, change.fn, change.priority) == (
        "released", "b", "a", "work", "default",
    )  # fmt: skip
    assert (change.kind, change.headers) == ("dependent", b'{"k":"v"}')
    claimed = await worker.claim_one("b")
    assert (claimed.input, claimed.links, claimed.kind) == (b"value", "tr", "dependent")
    assert claimed.due_ms == reply.now_ms
    keys = await bench.keys()
    assert not {"dependents:a", "dependencies:b", "blocked:default"} & keys


async def test_after_gives_no_value(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", after=["a"]))
    await worker.run_one("a")
    assert (await worker.claim_one("b")).input == b""


async def test_an_empty_value_is_a_value(bench: Bench) -> None:
    """A custom serializer may write None as nothing; what matters is that there was one."""
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a"))
    await worker.run_one("a", value=b"")
    await worker.claim_one("b")


async def test_a_diamond_is_released_once(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(
        task("top"), task("left", then="top"), task("right", after=["top"]),
        task("bottom", then="left", after=["right"]),
    )  # fmt: skip
    reply = await worker.run_one("top")
    assert told(reply) == {("released", "left", "top"), ("released", "right", "top")}
    left, right = sorted(await worker.claim(2), key=lambda c: c.task_id)
    first = await worker.exchange(worker.end(left, value=b"of left", trace="l"))
    assert told(first) == set()
    second = await worker.exchange(worker.end(right, trace="r"))
    assert told(second) == {("released", "bottom", "right")}
    bottom = await worker.claim_one("bottom")
    assert (bottom.input, bottom.links) == (b"of left", "l r")
    await worker.settle(worker.end(bottom))
    await bench.assert_nothing_is_left()


async def test_a_diamond_fails_once(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(
        task("top"), task("left", then="top"), task("right", then="top"),
        task("bottom", after=["left", "right"]),
    )  # fmt: skip
    reply = await worker.exchange(worker.fail(await worker.claim_one("top")))
    assert sorted(change.task_id for change in reply.changes) == ["bottom", "left", "right"]
    assert (await bench.record("left")).text == "task top failed"
    assert (await bench.record("bottom")).text in {
        f"task {side} failed because a task before it did" for side in ("left", "right")
    }
    await bench.assert_nothing_is_left()


async def test_racing_ends_release_a_fan_in_exactly_once(bench: Bench) -> None:
    workers = [await bench.worker(f"w{i}") for i in range(20)]
    ids = [f"t{i}" for i in range(20)]
    await bench.broker.publish([[task(task_id)] for task_id in ids])
    await bench.publish(task("all", after=ids))
    claimed = [(await w.claim())[0] for w in workers]
    replies = await asyncio.gather(
        *(w.exchange(w.end(c)) for w, c in zip(workers, claimed, strict=True))
    )
    assert [change.task_id for reply in replies for change in reply.changes] == ["all"]
    assert await bench.waiting() == ["all"]
    await workers[0].run_one("all")
    await bench.assert_nothing_is_left()


async def test_one_failure_of_a_fan_in_fails_it_while_others_still_run(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"), task("all", after=["a", "b"]))
    a, b = await worker.claim(2)
    assert told(await worker.exchange(worker.fail(a))) == {("failed", "all", "a")}
    assert await bench.state("all") == "done"
    assert (await bench.seen("b")).dependents == set()
    assert told(await worker.exchange(worker.end(b))) == set()
    await bench.assert_nothing_is_left()


async def test_many_wait_for_one(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), *(task(f"d{i}", after=["a"]) for i in range(1_000)))
    reply = await worker.run_one("a")
    assert len(told(reply)) == 1_000
    assert len(await bench.waiting()) == 1_000


async def test_a_dependent_goes_to_its_own_priority(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "default"))
    await bench.publish(task("a"), task("b", then="a", priority="high"))
    assert "blocked:high" in await bench.keys()
    await worker.run_one("a")
    assert await bench.waiting("high") == ["b"]


# ----------------------------------------------------------------------------------- cascades


async def test_a_failure_runs_down_a_chain_of_two_thousand(bench: Bench) -> None:
    worker = await bench.worker()
    links = chain(2_000)
    await bench.publish(*links)
    first = await worker.claim_one(links[0].task_id)
    reply = await worker.exchange(worker.fail(first))
    assert [change.task_id for change in reply.changes] == [link.task_id for link in links[1:]]
    assert (await bench.record(links[1].task_id)).text == f"task {links[0].task_id} failed"
    record = await bench.record(links[-1].task_id)
    assert (record.status, record.reason, record.tries) == ("failed", "dependency", 0)
    assert record.text == f"task {links[-2].task_id} failed because a task before it did"
    await bench.assert_nothing_is_left()


async def test_a_success_runs_down_a_chain_of_fallbacks_as_the_value_of_all(bench: Bench) -> None:
    worker = await bench.worker()
    ids = [f"f{i}" for i in range(2_000)]
    fallbacks = [task(ids[i], otherwise=ids[i - 1], needs="1") for i in range(1, 2_000)]
    await bench.publish(task(ids[0]), *fallbacks, task("last", then=ids[-1]))
    reply = await worker.run_one("f0", value=b"of f0")
    assert [change.what for change in reply.changes] == [*["skipped"] * 1_999, "released"]
    record = await bench.record("f1999")
    assert (record.status, record.reason, record.value) == ("success", "skipped", b"of f0")
    assert (await worker.claim_one("last")).input == b"of f0"


async def test_every_fallback_gets_what_the_first_task_was_given(bench: Bench) -> None:
    """`a | (b ^ c ^ d)`: when b fails c has b's input, and when c fails so has d."""
    worker = await bench.worker()
    await bench.publish(
        task("a"), task("b", then="a"), task("c", otherwise="b", needs="1"),
        task("d", otherwise="c", needs="1"), task("e", then="d"),
    )  # fmt: skip
    await worker.run_one("a", value=b"of a")
    for task_id in ("b", "c", "d"):
        claimed = await worker.claim_one(task_id)
        assert claimed.input == b"of a"
        if task_id != "d":
            await worker.settle(worker.fail(claimed))
    await worker.settle(worker.end(claimed, value=b"of d"))
    assert (await worker.claim_one("e")).input == b"of d"


async def test_a_fallback_without_input_has_its_own_arguments(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", args=b"1"), task("b", otherwise="a", args=b"2"))
    await worker.settle(worker.fail(await worker.claim_one("a")))
    claimed = await worker.claim_one("b")
    assert (claimed.input, claimed.args) == (b"", b"2")


async def test_a_fallback_of_what_never_got_its_input_fails_clearly(bench: Bench) -> None:
    """`(a | b) ^ c`: b never ran, so there is nothing to give c."""
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a"), task("c", otherwise="b", needs="1"))
    reply = await worker.exchange(worker.fail(await worker.claim_one("a")))
    assert told(reply) == {("failed", "b", "a"), ("failed", "c", "b")}
    assert (await bench.record("c")).text == "task b failed because a task before it did"
    await bench.assert_nothing_is_left()


async def test_a_fallback_that_needs_nothing_runs_when_the_chain_before_it_failed(
    bench: Bench,
) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a"), task("c", otherwise="b"))
    await worker.settle(worker.fail(await worker.claim_one("a")))
    await worker.claim_one("c")


async def test_a_skipped_fallback_forgets_what_else_it_waited_for(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("z", due=f"+{LONG_MS}"))
    await bench.publish(task("b", otherwise="a", after=["z"]))
    assert told(await worker.run_one("a")) == {("skipped", "b", "a")}
    assert (await bench.seen("z")).dependents == set()


async def test_a_fallback_waits_for_everything_it_comes_after(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("z"), task("b", otherwise="a", after=["z"]))
    a, z = await worker.claim(2)
    assert told(await worker.exchange(worker.fail(a))) == set()
    assert told(await worker.exchange(worker.end(z))) == {("released", "b", "z")}


async def test_an_aborted_task_fails_its_dependents_and_frees_its_fallback(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", then="a"), task("c", otherwise="a"))
    claimed = await worker.claim_one("a")
    reply = await worker.exchange(worker.end(claimed, "aborted", reason="user", value=b""))
    assert told(reply) == {("failed", "b", "a"), ("released", "c", "a")}
    assert (await bench.record("b")).text == "task a was aborted"


async def test_a_wide_and_deep_graph_ends_every_task_once(bench: Bench) -> None:
    """Ten layers of twenty, each task after two of the layer before it; one fails."""
    worker = await bench.worker()
    await bench.publish(
        *(
            task(
                f"{layer}-{i}",
                after=[f"{layer - 1}-{i}", f"{layer - 1}-{(i + 1) % 20}"] if layer else [],
            )
            for layer in range(10)
            for i in range(20)
        )
    )
    failing = "3-10"
    ran = await run_all(worker, failing)
    assert len(ran) == len(set(ran))
    doomed = {failing}
    for layer in range(4, 10):
        doomed |= {
            f"{layer}-{i}"
            for i in range(20)
            if {f"{layer - 1}-{i}", f"{layer - 1}-{(i + 1) % 20}"} & doomed
        }
    everyone = {f"{layer}-{i}" for layer in range(10) for i in range(20)}
    assert set(ran) == everyone - (doomed - {failing})
    for task_id in everyone:
        expected = "failed" if task_id in doomed else "success"
        assert (await bench.record(task_id)).status == expected
    await bench.assert_nothing_is_left()


async def test_a_dependent_published_while_its_dependency_ends_is_never_lost(bench: Bench) -> None:
    """The race of every graph: waiting for what ends at the same moment."""
    worker = await bench.worker()
    for n in range(50):
        await bench.enqueue(f"a{n}")
        claimed = await worker.claim_one(f"a{n}")
        await asyncio.gather(
            worker.exchange(worker.end(claimed, value=b"of a")),
            bench.publish(task(f"b{n}", then=f"a{n}")),
        )
        (dependent,) = await worker.claim()
        assert (dependent.task_id, dependent.input) == (f"b{n}", b"of a")
        await worker.settle(worker.end(dependent))
    await bench.assert_nothing_is_left()


async def test_results_of_dependents_that_never_ran_have_their_own_ttl(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(
        task("a"), task("b", then="a", keep="5000"), task("c", after=["a"], keep="0")
    )
    await worker.settle(worker.fail(await worker.claim_one("a")))
    assert 0 < await bench.ttl_ms("result:b") <= 5_000
    assert "result:c" not in await bench.keys()


async def test_what_is_failed_is_told_the_traces_of_what_it_waited_for(bench: Bench) -> None:
    """And so is what waits for that in turn: the attempt that failed is the same."""
    worker = await bench.worker()
    await bench.publish(task("good"), task("bad"))
    await bench.publish(task("b", after=("good", "bad")))
    await bench.publish(task("c", after=("b",)))
    good, bad = await worker.claim(2)
    await worker.settle(worker.end(good, trace="trace of good"))
    reply = await worker.exchange(worker.fail(bad, trace="trace of bad"))
    assert [(change.what, change.task_id, change.links) for change in reply.changes] == [
        ("failed", "b", "trace of good trace of bad"),
        ("failed", "c", "trace of bad"),
    ]


async def test_what_failed_before_it_was_waited_for_has_a_trace_as_well(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await worker.settle(worker.fail(await worker.claim_one("a"), trace="trace of a"))
    published = await bench.broker.publish([[task("b", after=("a",))]])
    assert [(change.what, change.links) for change in published.changes] == [
        ("failed", "trace of a")
    ]


async def test_what_was_aborted_between_two_tries_has_a_trace_as_well(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b", otherwise="a"))
    retry = worker.retry(await worker.claim_one("a"), f"+{LONG_MS}", trace="trace of a")
    await worker.settle(retry)
    assert (await bench.broker.abort("a")).word == "aborted"
    assert (await worker.claim_one("b")).links == "trace of a"
    assert (await bench.record("a")).trace == "", "no attempt ended it"


async def test_what_killed_its_workers_has_a_trace_as_well(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", "once"), task("b", otherwise="a"))
    worker.trace = "trace of a"
    await worker.renew(await worker.claim_one("a"))
    await worker.dies()
    reply = await worker.exchange(want=2, reclaim=True)
    assert [(r.reason, r.previous) for r in reply.refused] == [("exhausted", "trace of a")]
    assert [c.links for c in reply.claimed] == ["trace of a"]
