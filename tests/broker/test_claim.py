"""exchange.lua, claiming: queued -> running, and why a task may not start."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ResponseError

from streaq.wire import error_without_value
from tests.broker.bench import FUNCTIONS, LONG_MS, Bench, Options, task

pytestmark = pytest.mark.anyio


async def test_a_claim_starts_the_task(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", args=b"x")
    reply = await worker.exchange(want=5)
    (claimed,) = reply.claimed
    assert (claimed.task_id, claimed.try_number, claimed.args) == ("a", 1, b"x")
    assert (claimed.kind, claimed.lost_worker, claimed.log) == ("immediate", "", "")
    assert claimed.started_ms == reply.now_ms
    assert reply.short
    fields = await bench.fields("a")
    assert (fields["state"], fields["who"], fields["try"]) == ("running", "w1", "1")
    assert int(fields["began"]) == reply.now_ms
    assert await bench.pending() == {"a": "w1"}


async def test_no_more_than_wanted(bench: Bench) -> None:
    worker = await bench.worker()
    for i in range(10):
        await bench.enqueue(f"t{i}")
    reply = await worker.exchange(want=3)
    assert [c.task_id for c in reply.claimed] == ["t0", "t1", "t2"]
    assert not reply.short
    reply = await worker.exchange(want=7)
    assert len(reply.claimed) == 7
    assert not reply.short
    assert (await worker.exchange(want=1)).short


async def test_wanting_nothing_takes_nothing(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    reply = await worker.exchange()
    assert (reply.claimed, reply.reserved, reply.short) == ([], [], False)
    assert await bench.waiting() == ["a"]


async def test_two_workers_never_get_the_same_task(bench: Bench) -> None:
    ids = [f"t{i}" for i in range(300)]
    await bench.broker.publish([[task(task_id)] for task_id in ids])
    workers = [await bench.worker(f"w{i}") for i in range(6)]

    async def drain(worker: object) -> list[str]:
        assert isinstance(worker, type(workers[0]))
        got: list[str] = []
        while claimed := await worker.claim(7):
            got += [c.task_id for c in claimed]
        return got

    shares = await asyncio.gather(*map(drain, workers))
    assert sorted(task_id for share in shares for task_id in share) == sorted(ids)
    assert set((await bench.pending()).values()) <= {w.worker_id for w in workers}


async def test_higher_priorities_come_first(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high", "mid", "low"))
    for priority in ("low", "mid", "high"):
        await bench.enqueue(f"{priority}0", priority=priority)
        await bench.enqueue(f"{priority}1", priority=priority)
    claimed = [c.task_id for c in await worker.claim(5)]
    assert claimed == ["high0", "high1", "mid0", "mid1", "low0"]


async def test_a_worker_sees_only_its_priorities(bench: Bench) -> None:
    worker = await bench.worker(priorities=("high",))
    await bench.enqueue("a", priority="low")
    assert await worker.claim(5) == []


async def test_a_queue_that_was_there_before_its_first_worker(bench: Bench) -> None:
    await bench.enqueue("early")
    worker = await bench.worker()
    assert (await worker.claim_one("early")).try_number == 1


# ---------------------------------------------------------------------------- refusals


async def test_an_expired_task_is_refused(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("late", expires_in="-1000"), task("fresh", expires_in="60000"))
    reply = await worker.exchange(want=2)
    assert [c.task_id for c in reply.claimed] == ["fresh"]
    (refused,) = reply.refused
    assert (refused.task_id, refused.status, refused.reason) == ("late", "refused", "expired")
    record = await bench.record("late")
    assert (record.status, record.reason, record.tries, record.worker_id) == (
        "failed", "expired", 0, "",
    )  # fmt: skip
    assert record.started_ms == 0 < record.enqueued_ms
    await worker.settle(worker.end(reply.claimed[0]))
    await bench.assert_nothing_is_left()


async def test_a_task_that_started_once_no_longer_expires(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", expires_in="60000"))
    await worker.settle(worker.retry(await worker.claim_one("a")))
    await bench.raw("HSET", f"{bench.base}task:a", "till", 1)
    assert (await worker.claim_one("a")).try_number == 2


async def test_an_unknown_function_is_refused(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", "nobody", keep="1000")
    (refused,) = (await worker.exchange(want=1)).refused
    assert (refused.reason, refused.fn) == ("unknown", "nobody")
    assert (await bench.record("a")).reason == "unknown"
    assert 0 < await bench.ttl_ms("result:a") <= 1000  # as its envelope says; nobody else does
    await bench.assert_nothing_is_left()


async def test_a_late_firing_is_refused(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("late", "punctual", due="1"), task("now", "punctual"))
    reply = await worker.exchange(want=2)
    assert [c.task_id for c in reply.claimed] == ["now"]
    (refused,) = reply.refused
    assert refused.reason == "drift"
    assert int(refused.text) == reply.now_ms - 1


async def test_refused_tasks_do_not_use_up_what_is_wanted(bench: Bench) -> None:
    """And the reply does not claim the queue were empty, or a burst would end too early."""
    worker = await bench.worker()
    for i in range(4):
        await bench.publish(task(f"x{i}", expires_in="-1"))
    await bench.enqueue("good")
    reply = await worker.exchange(want=2)
    assert (len(reply.refused), reply.claimed, reply.short) == (2, [], False)
    reply = await worker.exchange(want=2)
    assert (len(reply.refused), reply.short) == (2, False)
    assert [c.task_id for c in await worker.claim(2)] == ["good"]


async def test_the_end_of_a_refused_task_reaches_its_dependents(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", expires_in="-1"), task("b", then="a"), task("c", otherwise="a"))
    reply = await worker.exchange(want=1)
    assert {(c.what, c.task_id, c.by) for c in reply.changes} == {
        ("failed", "b", "a"),
        ("released", "c", "a"),
    }
    assert await bench.states("a", "b", "c") == ["done", "done", "queued"]


async def test_options_are_those_of_the_worker_that_claims(bench: Bench) -> None:
    """Two versions of the code share the queue while a deploy rolls."""
    old = await bench.worker("old", {"work": Options(tries=1)}, digest="v1")
    new = await bench.worker("new", {"work": Options(tries=2)}, digest="v2")
    await bench.publish(task("a"), task("b"))
    await old.settle(*map(old.retry, await old.claim(2)))
    assert (await old.exchange(want=1)).refused[0].reason == "exhausted"
    assert (await new.claim_one("b")).try_number == 2


@pytest.mark.parametrize("tries", [None, 5])
async def test_tries_are_counted_up_to_the_limit(bench: Bench, tries: int | None) -> None:
    worker = await bench.worker(functions={"work": Options(tries=tries)})
    await bench.enqueue("a")
    for n in range(1, 6):
        claimed = await worker.claim_one("a")
        assert claimed.try_number == n
        await worker.settle(worker.retry(claimed))
    reply = await worker.exchange(want=1)
    assert len(reply.claimed) == (tries is None)
    assert [r.reason for r in reply.refused] == ([] if tries is None else ["exhausted"])


# --------------------------------------------------------------------------- the registry


async def test_without_its_registry_a_worker_claims_nothing(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await bench.enqueue("b")
    running = await worker.claim_one("a")
    await bench.raw("DEL", f"{bench.base}registry:d1")
    with pytest.raises(ResponseError, match="STREAQ_REGISTRY"):
        await worker.exchange(worker.end(running), want=1)
    # Nothing at all was done, so the same exchange may be sent again.
    assert await bench.states("a", "b") == ["running", "queued"]
    await worker.register()
    reply = await worker.exchange(worker.end(running), want=1)
    assert reply.codes == [1]
    assert [c.task_id for c in reply.claimed] == ["b"]


async def test_settling_needs_no_registry(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    running = await worker.claim_one("a")
    await bench.raw("DEL", f"{bench.base}registry:d1")
    assert await worker.settle(worker.end(running)) == [1]


async def test_a_worker_without_functions_refuses_what_it_meets(bench: Bench) -> None:
    worker = await bench.worker(functions={})
    await bench.enqueue("a")
    assert (await worker.exchange(want=1)).refused[0].reason == "unknown"


# --------------------------------------------------------------------- lost groups and data


async def test_a_stream_whose_group_is_gone_is_given_a_new_one(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    await bench.raw("XGROUP", "DESTROY", f"{bench.base}stream:default", "workers")
    assert (await worker.claim_one("a")).try_number == 1


async def test_tasks_that_ran_when_the_group_was_lost_start_again(bench: Bench) -> None:
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue("a")
    first = await worker.claim_one("a")
    await bench.raw("XGROUP", "DESTROY", f"{bench.base}stream:default", "workers")
    second = await other.claim_one("a")
    assert (second.try_number, second.lost_worker) == (2, "w1")
    assert await worker.settle(worker.end(first)) == [0]
    assert await other.settle(other.end(second)) == [1]
    await bench.assert_nothing_is_left()


async def test_a_flushed_server_is_settled_in(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    running = await worker.claim_one("a")
    await bench.raw("FLUSHALL")
    await bench.raw("SCRIPT", "FLUSH")
    assert await worker.settle(worker.end(running)) == [0]
    with pytest.raises(ResponseError, match="STREAQ_REGISTRY"):
        await worker.claim()
    await worker.register()
    await bench.enqueue("b")
    await worker.run_one("b")
    await bench.assert_nothing_is_left()


async def test_the_group_may_be_gone_with_messages_to_drop(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.enqueue("a")
    running = await worker.claim_one("a")
    await bench.raw("XGROUP", "DESTROY", f"{bench.base}stream:default", "workers")
    assert await worker.settle(worker.end(running)) == [1]
    await bench.assert_nothing_is_left()


async def test_a_message_without_a_task_is_thrown_away(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.raw("XADD", f"{bench.base}stream:default", "*", "id", "ghost")
    reply = await worker.exchange(want=1)
    assert (reply.claimed, reply.refused) == ([], [])
    await bench.assert_nothing_is_left()


async def test_a_dependents_value_comes_with_the_claim(bench: Bench) -> None:
    worker = await bench.worker()
    value = bytes(range(256))
    await bench.publish(task("a"), task("b", then="a", headers='{"k":"v"}'))
    await worker.run_one("a", value=value)
    claimed = await worker.claim_one("b")
    assert (claimed.input, claimed.headers) == (value, b'{"k":"v"}')


async def test_claims_do_not_disturb_what_is_scheduled(bench: Bench) -> None:
    worker = await bench.worker(functions=FUNCTIONS)
    await bench.publish(task("a", due=f"+{LONG_MS}"))
    assert await worker.claim(10, reclaim=True) == []
    assert await bench.state("a") == "scheduled"


# ------------------------------------------------------------------- what somebody changed


@pytest.mark.parametrize("field", ["fn", "args", "made", "due"])
async def test_a_task_that_lacks_something_fails_and_holds_up_nobody(
    bench: Bench, field: str
) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"), task("c", then="a"))
    await bench.raw("HDEL", bench.broker.keys.task("a"), field)
    reply = await worker.exchange(want=10)
    assert [claimed.task_id for claimed in reply.claimed] == ["b"]
    (refused,) = reply.refused
    assert (refused.task_id, refused.reason) == ("a", "undecodable")
    assert [(change.what, change.task_id) for change in reply.changes] == [("failed", "c")]
    record = await bench.record("a")
    assert (record.status, record.reason) == ("failed", "undecodable")
    assert "was changed" in str(error_without_value(record))
    await worker.settle(worker.end(reply.claimed[0]))
    await bench.assert_nothing_is_left()


@pytest.mark.parametrize("field", ["made", "due", "first", "try"])
@pytest.mark.parametrize("number", ["soon", "1.5", "nan", "inf", ""])
async def test_numbers_that_are_none_hold_up_nobody(bench: Bench, field: str, number: str) -> None:
    worker = await bench.worker()
    for fn in ("work", "nobody's"):
        await bench.enqueue("a", fn)
        await bench.raw("HSET", bench.broker.keys.task("a"), field, number)
        reply = await worker.exchange(want=1)
        assert len(reply.claimed + reply.refused) == 1
        for claimed in reply.claimed:
            await bench.broker.abort("a")
            assert await worker.settle(worker.retry(claimed)) == [1]
            (refused,) = (await worker.exchange(want=1)).refused
            assert refused.status == "aborted"
        await bench.raw("DEL", bench.broker.keys.result("a"))
    await bench.assert_nothing_is_left()


@pytest.mark.parametrize(("field", "fn"), [("till", "work"), ("due", "punctual")])
async def test_a_limit_that_is_none_has_passed(bench: Bench, field: str, fn: str) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", fn)
    await bench.raw("HSET", bench.broker.keys.task("a"), field, "x")
    (refused,) = (await worker.exchange(want=1)).refused
    assert refused.reason in {"expired", "drift"}
    await bench.assert_nothing_is_left()


@pytest.mark.parametrize("action", ["end", "retry", "hand_back"])
@pytest.mark.parametrize("field", ["fn", "due", "began", "log", "args"])
async def test_a_task_that_is_changed_while_it_runs_can_be_settled(
    bench: Bench, action: str, field: str
) -> None:
    worker = await bench.worker()
    await bench.enqueue("a", "sole")
    claimed = await worker.claim_one("a")
    key = bench.broker.keys.task("a")
    await (bench.raw("HSET", key, field, "{") if field == "log" else bench.raw("HDEL", key, field))
    assert await worker.settle(getattr(worker, action)(claimed)) == [1]


async def test_a_changed_task_is_queued_when_it_is_due(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a", due=f"+{LONG_MS}"))
    await bench.raw("HDEL", bench.broker.keys.task("a"), "fn")
    await bench.becomes_due("a")
    await bench.broker.tick(10, worker.priorities)
    reply = await worker.exchange(want=1)
    assert [refused.reason for refused in reply.refused] == ["undecodable"]
    await bench.assert_nothing_is_left()
