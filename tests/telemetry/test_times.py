"""What a task waited, and how long it took from end to end, whichever way it went: intended delays
are not counted, tries and lost leases are.
"""

from __future__ import annotations

import time
from typing import Any, Self

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from streaq import StreaqRetry, Worker
from tests.support import cut_short, running, until
from tests.telemetry.conftest import Stage

pytestmark = pytest.mark.anyio

DELAY_S = 0.4
AGAIN_S = 0.3
COARSE_S = 0.03
"""Times are whole milliseconds of two clocks."""


class Took:
    """How long a block took beyond what it slept: what a busy machine adds to any of the times."""

    def __init__(self, slept_s: float) -> None:
        self._slept_s = slept_s

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.slack_s = time.monotonic() - self._began - self._slept_s + COARSE_S


def end_to_end(stage: Stage, task: str = "t") -> tuple[float, float]:
    """How many ends were observed, and the sum of their seconds."""
    name = "streaq_task_end_to_end_seconds"
    count, total = (stage.seen.metric(f"{name}_{part}", task=task) for part in ("count", "sum"))
    return count, total


def waits_s(stage: Stage, task: str = "t") -> list[float]:
    """What each attempt waited, by its span, first attempt first."""
    found: list[ReadableSpan] = [s for s in stage.seen.spans if s.name == f"process {task}"]
    found.sort(key=lambda span: span.start_time or 0)
    return [(s.attributes or {})["streaq.task.queue_wait_ms"] / 1000 for s in found]


async def ended(stage: Stage, task: str = "t") -> None:
    await until(lambda: end_to_end(stage, task)[0] == 1)


def again_once(worker: Worker[Any], **options: Any) -> Any:
    """A task ``t`` that asks for another try at its first."""

    @worker.task(name="t", **options)
    async def t(x: int = 0) -> int:
        if t.context.tries == 1:
            raise StreaqRetry("again", delay=AGAIN_S)
        return x

    return t


async def test_a_retry_counts_from_the_first_time_it_was_due(stage: Stage) -> None:
    worker = stage.worker()
    t = again_once(worker)
    async with running(worker):
        with Took(AGAIN_S) as took:
            await (await t.enqueue()).result(5)
        await ended(stage)
    assert AGAIN_S <= end_to_end(stage)[1] < AGAIN_S + took.slack_s
    assert all(wait < took.slack_s for wait in waits_s(stage))
    assert stage.seen.metric("streaq_task_queue_wait_seconds_sum", task="t") < took.slack_s


async def test_an_intended_delay_is_nobodys_waiting(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None: ...

    async with running(worker):
        with Took(DELAY_S) as took:
            await (await t.enqueue().start(delay=DELAY_S)).result(5)
        await ended(stage)
    assert 0 <= end_to_end(stage)[1] < took.slack_s
    assert waits_s(stage)[0] < took.slack_s


async def test_a_delayed_task_that_is_retried(stage: Stage) -> None:
    """Its own delay does not count, that before its second try does."""
    worker = stage.worker()
    t = again_once(worker)
    async with running(worker):
        with Took(DELAY_S + AGAIN_S) as took:
            await (await t.enqueue().start(delay=DELAY_S)).result(5)
        await ended(stage)
    assert AGAIN_S <= end_to_end(stage)[1] < AGAIN_S + took.slack_s
    assert len(waits_s(stage)) == 2
    assert all(wait < took.slack_s for wait in waits_s(stage))


async def test_a_dependent_counts_from_its_release(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="first")
    async def first() -> int:
        await anyio.sleep(DELAY_S)
        return 1

    t = again_once(worker)
    async with running(worker):
        with Took(DELAY_S + AGAIN_S) as took:
            task = await (first.enqueue() | t)
            assert (await task.result(5)).result == 1
        await ended(stage)
    assert DELAY_S <= end_to_end(stage, "first")[1] < DELAY_S + took.slack_s
    assert AGAIN_S <= end_to_end(stage)[1] < AGAIN_S + took.slack_s
    assert all(wait < took.slack_s for wait in waits_s(stage))


@pytest.mark.parametrize("delay", [0, DELAY_S])
async def test_a_reclaimed_task_counts_the_lease_that_was_lost(stage: Stage, delay: float) -> None:
    """The attempt after it links to the lost one, whose span nobody may ever have seen."""
    lease_s = 0.3
    first = stage.worker(idle_timeout=lease_s, concurrency=1)
    second = stage.worker(idle_timeout=lease_s)
    begun = anyio.Event()

    @first.task(name="t")
    async def hangs() -> None:
        begun.set()
        await anyio.sleep(30)

    @second.task(name="t")
    async def t() -> int:
        return t.context.tries

    with Took(delay) as took:
        async with running(first):
            task = await (hangs.enqueue().start(delay=delay) if delay else hangs.enqueue())
            await begun.wait()
            life = first._session._life
            assert life is not None
            with anyio.fail_after(5):
                while not await shows_its_trace(first, task.id):  # noqa: ASYNC110 - there is no event
                    await anyio.sleep(0.01)
            # As if the process were gone.
            await anyio.to_thread.run_sync(life._leases.stop)
            async with running(second):
                assert (await task.result(5)).result == 2
    seen = stage._captured[1]
    await until(lambda: seen.metric("streaq_task_end_to_end_seconds_count", task="t") == 1)
    total = seen.metric("streaq_task_end_to_end_seconds_sum", task="t")
    assert lease_s <= total < took.slack_s
    assert seen.metric("streaq_tasks_reclaimed_total", task="t") == 1
    [process] = [span for span in seen.spans if span.name == "process t"]
    [lost] = [span for span in stage._captured[0].spans if span.name == "process t"]
    attributes = process.attributes or {}
    kind = "delayed" if delay else "immediate"
    assert (attributes["streaq.task.kind"], attributes["streaq.task.try"]) == (kind, 2)
    assert lost.context is not None
    assert process.parent is not None
    assert lost.parent is not None
    assert process.parent.span_id == lost.parent.span_id, "both under the span that sent it"
    assert [
        ((link.attributes or {})["streaq.link"], link.context.span_id) for link in process.links
    ] == [("previous_attempt", lost.context.span_id)]


async def shows_its_trace(worker: Worker[Any], task_id: str) -> bool:
    """Whether Redis knows the trace of the attempt that runs."""
    history = await worker.history_by_id(task_id)
    return history is not None and history.attempts[-1].trace_id != ""


async def test_what_a_returned_attempt_ran_is_no_waiting(stage: Stage) -> None:
    """A deploy would look like a queue that is late; from end to end it counts."""
    worker = stage.worker()
    t, begun = cut_short(worker)
    async with worker:
        with Took(DELAY_S) as took:
            task = await t.enqueue()
            async with running(worker):
                await begun.wait()
                await anyio.sleep(DELAY_S)
            async with running(worker):
                await task.result(5)
                await ended(stage)
    assert all(wait < took.slack_s for wait in waits_s(stage))
    assert len(waits_s(stage)) == 2
    assert stage.seen.metric("streaq_task_queue_wait_seconds_sum", task="t") < 2 * took.slack_s
    assert DELAY_S <= end_to_end(stage)[1] < DELAY_S + took.slack_s
