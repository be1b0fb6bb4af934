"""Attempts whose worker was killed, or whose lease went to another: spans, numbers and links."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from streaq import StreaqRetry, Worker
from tests.support import running, until
from tests.telemetry.conftest import Stage

pytestmark = pytest.mark.anyio


def leases_of(worker: Worker[Any]) -> Any:
    life = worker._session._life
    assert life is not None
    return life._leases


def look_now(leases: Any) -> None:
    """Renew, as the thread does."""
    with leases._connector.open_sync() as client:
        leases._renew(client)


def context_of(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


async def test_an_attempt_that_was_taken_over_is_no_failure(stage: Stage) -> None:
    first = stage.worker(idle_timeout=0.2, concurrency=1)
    second = stage.worker(idle_timeout=0.2)
    begun = anyio.Event()

    @first.task(name="t")
    async def hangs() -> None:
        begun.set()
        await anyio.sleep(30)

    @second.task(name="t")
    async def t() -> int:
        return t.context.tries

    seen = stage.seen
    async with running(first):
        task = await hangs.enqueue()
        await begun.wait()
        await anyio.to_thread.run_sync(leases_of(first).stop)  # it hears of nothing any more
        async with running(second):
            assert (await task.result(5)).result == 2
        await anyio.to_thread.run_sync(look_now, leases_of(first))
        await until(lambda: seen.metric("streaq_tasks_fenced_total", task="t") == 1)
        assert seen.metric("streaq_tasks_running", task="t") == 0
    [span] = [span for span in seen.spans if span.name == "process t"]
    attributes = span.attributes or {}
    said = attributes["streaq.task.outcome"], attributes["streaq.task.reason"]
    assert (*said, span.status.status_code) == ("lost", "lost", StatusCode.UNSET)
    assert "error.type" not in attributes
    for name in ("finished_total", "failed_total"):
        assert seen.metric(f"streaq_tasks_{name}", task="t") == 0
    assert seen.metric("streaq_task_duration_seconds_count", task="t") == 0
    [line] = [line for line in seen.logs if line["event"] == "task.fenced"]
    assert (line["outcome"], line["reason"]) == ("lost", "lost")


async def test_redis_knows_the_trace_of_what_runs_for_a_moment(stage: Stage) -> None:
    """So that the attempt after it links to it, should its worker be killed. Leases are renewed
    every 15 s here: it is not by that.
    """
    worker = stage.worker(idle_timeout=60)
    begun, go = anyio.Event(), anyio.Event()

    @worker.task(name="t")
    async def t() -> None:
        if t.context.tries == 1:
            raise StreaqRetry("again", delay=0)
        begun.set()
        await go.wait()

    async with running(worker):
        task = await t.enqueue()
        await begun.wait()
        history = await worker.history_by_id(task.id)
        with anyio.fail_after(5):
            while history is None or not history.attempts[-1].trace_id:
                await anyio.sleep(0.01)
                history = await worker.history_by_id(task.id)
        go.set()
        await task.result(5)
        await until(lambda: len([s for s in stage.seen.spans if s.name == "process t"]) == 2)
    traces = [f"{context_of(s).trace_id:032x}" for s in stage.seen.spans if s.name == "process t"]
    assert [attempt.outcome for attempt in history.attempts] == ["retried", "running"]
    assert [attempt.trace_id for attempt in history.attempts] == traces
