"""register.lua: a worker's functions under a name made of their content, and its streams."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tests.broker.bench import LEASE_MS, Bench, Options, task

pytestmark = pytest.mark.anyio


async def test_what_a_registration_leaves(bench: Bench) -> None:
    await bench.worker(priorities=("high", "low"))
    keys = {"registry:d1", "stream:high", "stream:low", "priorities", "workers"}
    assert await bench.keys() == keys
    assert 0 < await bench.ttl_ms("registry:d1") <= LEASE_MS * 10
    assert await bench.ttl_ms("workers") > 0
    assert int(await bench.raw("ZSCORE", f"{bench.base}workers", "w1")) > 0
    await bench.assert_nothing_is_left()


async def test_registering_again_changes_nothing(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.publish(task("a"), task("b"))
    claimed = await worker.claim_one("a")
    await worker.register()
    assert await bench.pending() == {"a": "w1"}
    assert await worker.settle(worker.end(claimed)) == [1]
    await worker.run_one("b")


async def test_two_versions_live_side_by_side(bench: Bench) -> None:
    old = await bench.worker("old", {"work": Options(), "gone": Options()}, digest="v1")
    new = await bench.worker("new", {"work": Options(), "added": Options()}, digest="v2")
    assert {"registry:v1", "registry:v2"} <= await bench.keys()
    for fn, runs_at in (("gone", old), ("added", new)):
        await bench.enqueue(fn, fn)
        await runs_at.run_one(fn)


async def test_a_worker_without_functions_has_a_registry(bench: Bench) -> None:
    worker = await bench.worker(functions={})
    assert await worker.claim() == []
    assert "registry:d1" in await bench.keys()


async def test_a_stream_without_its_group_is_given_one(bench: Bench) -> None:
    await bench.enqueue("early")
    worker = await bench.worker()
    await worker.run_one("early")


async def test_a_key_of_another_kind_is_told(bench: Bench) -> None:
    await bench.raw("SET", f"{bench.base}stream:default", "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await bench.worker()
