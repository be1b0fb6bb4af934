"""Another task with the same arguments if one fails: otherwise, ^, chains, and inside pipelines."""

from __future__ import annotations

import anyio
import pytest

from streaq import StreaqError, StreaqRetry, TaskStatus, Worker
from streaq.task import AsyncRegisteredTask
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio

Step = AsyncRegisteredTask[[int], int]


def steps(worker: Worker) -> tuple[Step, Step, list[str]]:
    ran: list[str] = []

    @worker.task(name="fails")
    async def fails(val: int) -> int:
        ran.append(f"fails {val}")
        raise Exception("Oh no!")  # noqa: TRY002 - as the page has it

    @worker.task(name="double")
    async def double(val: int) -> int:
        ran.append(f"double {val}")
        return val * 2

    return fails, double, ran


async def test_otherwise(make_worker: MakeWorker) -> None:
    worker = make_worker()
    fails, double, ran = steps(worker)
    async with running(worker):
        task = await fails.enqueue(3).otherwise(double)
        result = await task.result(3)
        assert (result.fn_name, result.result) == ("double", 6)
        first = task.previous
        assert first is not None
        assert str((await first.result(3)).exception) == "Oh no!"
    assert ran == ["fails 3", "double 3"]


async def test_the_operator(make_worker: MakeWorker) -> None:
    worker = make_worker()
    fails, double, _ = steps(worker)
    async with running(worker):
        task = await (fails.enqueue(3) ^ double)
        assert (await task.result(3)).result == 6


async def test_a_success_is_the_result_of_both(make_worker: MakeWorker) -> None:
    worker = make_worker()
    fails, double, ran = steps(worker)
    async with running(worker):
        task = await (double.enqueue(3) ^ fails)
        result = await task.result(3)
        assert (result.success, result.result, result.tries) == (True, 6, 0)
        assert await task.status() is TaskStatus.DONE
    assert ran == ["double 3"]


@pytest.mark.parametrize(
    ("chain", "value", "ran"),
    [
        ("fff", None, ["fails 1", "fails 1", "fails 1"]),
        ("ffd", 2, ["fails 1", "fails 1", "double 1"]),
        ("fdf", 2, ["fails 1", "double 1"]),
        ("dff", 2, ["double 1"]),
        ("fdd", 2, ["fails 1", "double 1"]),
    ],
)
async def test_chains(
    make_worker: MakeWorker, chain: str, value: int | None, ran: list[str]
) -> None:
    worker = make_worker()
    fails, double, seen = steps(worker)
    by_letter = {"f": fails, "d": double}
    async with running(worker):
        task = by_letter[chain[0]].enqueue(1)
        for letter in chain[1:]:
            task ^= by_letter[letter]
        result = await (await task).result(3)
        assert (result.result if result.success else None) == value
    assert seen == ran


async def test_inside_a_pipeline(make_worker: MakeWorker) -> None:
    worker = make_worker()
    fails, double, ran = steps(worker)
    async with running(worker):
        # 1 -> double -> (fails, otherwise double) -> double
        task = await double.enqueue(1).then(fails).otherwise(double).then(double)
        assert (await task.result(3)).result == 8
        assert ran == ["double 1", "fails 2", "double 2", "double 4"]
        ran.clear()
        # Not needed: the pipeline goes on with what the first returned.
        task = await double.enqueue(1).then(double).otherwise(fails).then(double)
        assert (await task.result(3)).result == 8
        assert ran == ["double 1", "double 2", "double 4"]
        ran.clear()
        # All of them fail, and with them what follows.
        task = await double.enqueue(1).then(fails).otherwise(fails).then(double)
        assert isinstance((await task.result(3)).exception, StreaqError)
        assert ran == ["double 1", "fails 2", "fails 2"]


async def test_a_pipeline_that_breaks_before_the_fail_over(make_worker: MakeWorker) -> None:
    """The fallback stands in for the task right before it; that one has no arguments to pass on
    when it never ran, so it all fails."""
    worker = make_worker()
    fails, double, ran = steps(worker)
    async with running(worker):
        task = await fails.enqueue(1).then(double).otherwise(double)
        assert not (await task.result(3)).success
    assert ran == ["fails 1"]


async def test_the_operators_together(make_worker: MakeWorker) -> None:
    worker = make_worker()
    fails, double, _ = steps(worker)
    async with running(worker):
        # ^ binds tighter than |, so without the parentheses there is no task to fail over from.
        with pytest.raises(TypeError):
            _ = double.enqueue(1) | fails ^ double  # type: ignore[operator]
        task = await ((double.enqueue(1) | fails) ^ double)
        assert (await task.result(3)).result == 4


async def test_after_retries_timeouts_and_refusals(make_worker: MakeWorker) -> None:
    worker = make_worker()
    _, double, _ = steps(worker)
    tries: list[int] = []

    @worker.task
    async def again(val: int) -> int:
        tries.append(again.context.tries)
        raise StreaqRetry(delay=0)

    @worker.task(timeout=0.02)
    async def slow(val: int) -> int:
        await anyio.sleep_forever()
        return val

    elsewhere = make_worker()

    @elsewhere.task(name="unknown to the worker")
    async def unknown(val: int) -> int:
        return val

    @elsewhere.task(name="double")
    async def stub(val: int) -> int:
        return val

    async with elsewhere, running(worker):
        assert (await (await again.enqueue(2).otherwise(double)).result(3)).result == 4
        assert tries == [1, 2, 3]
        assert (await (await slow.enqueue(2).otherwise(double)).result(3)).result == 4
        assert (await (await unknown.enqueue(2).otherwise(stub)).result(3)).result == 4


async def test_keyword_arguments_are_passed_on(make_worker: MakeWorker) -> None:
    worker = make_worker()
    _, double, _ = steps(worker)

    @worker.task
    async def fails(a: int, *, b: str) -> str:
        raise ValueError

    @worker.task
    def instead(a: int, *, b: str) -> str:
        return f"{a}{b}"

    async with running(worker):
        task = await fails.enqueue(1, b="x").otherwise(instead)
        assert (await task.result(3)).result == "1x"
        task = await double.enqueue(1).then(fails, b="y").otherwise(instead).start(priority="high")
        assert (await task.result(3)).result == "2y"
