"""Every edge a task can take, end to end: its spans, their parents, links and status."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from streaq import StreaqCancelled, StreaqRetry, Worker
from streaq.telemetry import Telemetry
from tests.support import MakeWorker, cut_short, running
from tests.telemetry.conftest import Stage

pytestmark = pytest.mark.anyio

OK, ERROR = StatusCode.UNSET, StatusCode.ERROR


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def outcome(span: ReadableSpan) -> tuple[Any, ...]:
    return (
        attribute(span, "streaq.task.try"),
        attribute(span, "streaq.task.kind"),
        attribute(span, "streaq.task.outcome"),
        attribute(span, "streaq.task.reason"),
        span.status.status_code,
    )


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.parent.span_id == span_id(parent)
        and trace_id(span) == trace_id(parent)
    )


def links(span: ReadableSpan) -> list[tuple[str, int]]:
    return [(str((li.attributes or {})["streaq.link"]), li.context.span_id) for li in span.links]


def spans(stage: Stage, name: str) -> list[ReadableSpan]:
    return [span for span in stage.seen.spans if span.name == name]


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that another task or thread brings about."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - nobody could tell an event
            await anyio.sleep(0.005)


async def test_immediate(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> int:
        return 1

    async with running(worker):
        task = await t.enqueue()
        await task.result(5)
        await until(lambda: spans(stage, "process t"))
    send, process = stage.seen.span("send t"), stage.seen.span("process t")
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert send.parent is None
    assert is_child(process, send)
    assert links(process) == []
    assert outcome(process) == (1, "immediate", "success", "ok", OK)
    for span in (send, process):
        assert attribute(span, "messaging.destination.name") == worker.queue_name
        assert attribute(span, "messaging.message.id") == task.id
        assert attribute(span, "messaging.client.id") == worker.id
        assert attribute(span, "server.address") == worker.connector.address[0]


async def test_delayed_for_a_moment_is_a_child_and_for_long_is_linked(stage: Stage) -> None:
    worker = stage.worker(Telemetry(link_after=0.05))

    @worker.task(name="t")
    async def t() -> None: ...

    async with running(worker):
        short = await t.enqueue().start(delay=0.02)
        long = await t.enqueue().start(delay=timedelta(milliseconds=80))
        for task in (short, long):
            await task.result(5)
        await until(lambda: len(spans(stage, "process t")) == 2)
    by_id = {
        (span.name, attribute(span, "messaging.message.id")): span for span in stage.seen.spans
    }
    send, process = by_id["send t", short.id], by_id["process t", short.id]
    assert is_child(process, send)
    assert attribute(process, "streaq.task.kind") == "delayed"
    assert attribute(process, "streaq.task.queue_wait_ms") < 1000
    send, process = by_id["send t", long.id], by_id["process t", long.id]
    assert process.parent is None
    assert trace_id(process) != trace_id(send)
    assert links(process) == [("producer", span_id(send))]


async def test_batches(stage: Stage) -> None:
    worker = stage.worker(Telemetry(link_batches_over=3))

    @worker.task(name="t")
    async def t() -> None: ...

    async with running(worker):
        for count in (3, 4):
            tasks = [t.enqueue() for _ in range(count)]
            await worker.enqueue_many(tasks)
            for task in tasks:
                await task.result(5)
        await until(lambda: len(spans(stage, "process t")) == 7)
    small, big = spans(stage, "send t")
    assert [attribute(s, "messaging.batch.message_count") for s in (small, big)] == [3, 4]
    assert sum(is_child(span, small) for span in spans(stage, "process t")) == 3
    linked = [span for span in spans(stage, "process t") if span.parent is None]
    assert [links(span) for span in linked] == [[("producer", span_id(big))]] * 4
    assert len({trace_id(span) for span in linked}) == 4


async def test_retry(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None:
        if t.context.tries < 3:
            raise StreaqRetry("again", delay=0)

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: len(spans(stage, "process t")) == 3)
    send = stage.seen.span("send t")
    first, second, third = spans(stage, "process t")
    assert all(is_child(span, send) for span in (first, second, third))
    assert outcome(first) == (1, "immediate", "retried", "asked", OK)
    assert outcome(second) == (2, "retry", "retried", "asked", OK)
    assert outcome(third) == (3, "retry", "success", "ok", OK)
    assert [event.name for event in first.events] == ["exception"]
    assert links(second) == [("previous_attempt", span_id(first))]
    assert links(third) == [("previous_attempt", span_id(second))]


async def test_a_retry_that_waits_for_long_begins_a_trace(stage: Stage) -> None:
    worker = stage.worker(Telemetry(link_after=0.05))

    @worker.task(name="t", max_tries=4)
    async def t() -> None:
        if t.context.tries < 4:
            raise StreaqRetry("again", delay=(0, 0.08, 0)[t.context.tries - 1])

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: len(spans(stage, "process t")) == 4)
    send = stage.seen.span("send t")
    first, second, third, fourth = spans(stage, "process t")
    assert is_child(first, send)
    assert is_child(second, send)
    assert third.parent is None
    assert trace_id(third) != trace_id(send)
    producer = ("producer", span_id(send))
    assert links(third) == [producer, ("previous_attempt", span_id(second))]
    assert is_child(fourth, third), "the tries after it go on with its trace"
    assert links(fourth) == [producer, ("previous_attempt", span_id(third))]


async def test_failure(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None:
        raise KeyError("sku")

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: spans(stage, "process t"))
    span = stage.seen.span("process t")
    assert outcome(span) == (1, "immediate", "failed", "error", ERROR)
    assert attribute(span, "error.type") == "KeyError"
    assert [event.name for event in span.events] == ["exception"]


async def test_tries_run_out(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t", max_tries=2)
    async def t() -> None:
        raise StreaqRetry("never", delay=0)

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: len(spans(stage, "process t")) == 2)
    first, last = spans(stage, "process t")
    assert outcome(first)[2:] == ("retried", "asked", OK)
    assert outcome(last)[2:] == ("failed", "exhausted", ERROR)
    assert links(last) == [("previous_attempt", span_id(first))]


async def test_timeout(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t", timeout=0.05)
    async def t() -> None:
        await anyio.sleep(30)

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: spans(stage, "process t"))
    span = stage.seen.span("process t")
    assert outcome(span) == (1, "immediate", "failed", "timeout", ERROR)
    assert attribute(span, "error.type") == "TimeoutError"


async def test_abort_while_running(stage: Stage) -> None:
    worker = stage.worker()
    begun = anyio.Event()

    @worker.task(name="t")
    async def t() -> None:
        begun.set()
        await anyio.sleep(30)

    async with running(worker):
        task = await t.enqueue()
        await begun.wait()
        assert await task.abort(5)
        await until(lambda: spans(stage, "process t"))
    span = stage.seen.span("process t")
    assert outcome(span) == (1, "immediate", "aborted", "user", OK)


async def test_abort_before_the_start(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None: ...

    async with worker:
        task = await t.enqueue().start(delay=60)
        assert await task.abort(0)
    send, process = stage.seen.span("send t"), stage.seen.span("process t")
    assert outcome(process)[2:] == ("aborted", "user", OK)
    assert is_child(process, send)
    assert process.start_time == process.end_time
    assert attribute(process, "streaq.task.max_tries") == 3


async def test_abort_of_what_waits_in_the_queue(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t", max_tries=None)
    async def t() -> None: ...

    async with worker:
        task = await t.enqueue()
        await anyio.sleep(0.05)  # that is what it waits for
        assert await task.abort(0)
    process = stage.seen.span("process t")
    assert outcome(process)[2:] == ("aborted", "user", OK)
    assert attribute(process, "streaq.task.queue_wait_ms") >= 40
    assert attribute(process, "streaq.task.max_tries") is None


async def test_shutdown_hands_back(stage: Stage) -> None:
    worker = stage.worker()
    t, begun = cut_short(worker)
    async with worker:
        task = await t.enqueue()
        async with running(worker):
            await begun.wait()
        async with running(worker):
            await task.result(5)
            await until(lambda: len(spans(stage, "process t")) == 2)
    first, second = spans(stage, "process t")
    assert outcome(first)[2:] == ("returned", "shutdown", OK)
    assert outcome(second)[2:] == ("success", "ok", OK)
    assert attribute(second, "streaq.task.try") == 1, "the try was refunded"
    assert links(second) == [("previous_attempt", span_id(first))]


async def test_refused_because_it_expired(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t", expire=0.02)
    async def t() -> None: ...

    async with worker:
        task = await t.enqueue()
        await anyio.sleep(0.05)
        async with running(worker):
            await task.result(5)
            await until(lambda: spans(stage, "process t"))
    assert_refused(stage, "expired")
    span = stage.seen.span("process t")
    assert attribute(span, "streaq.task.queue_wait_ms") >= 40
    assert attribute(span, "streaq.task.max_tries") == 3


async def test_refused_because_nobody_knows_the_function(stage: Stage) -> None:
    worker = stage.worker()
    async with running(worker):
        await (await worker.enqueue_unsafe("t")).result(5)
        await until(lambda: spans(stage, "process t"))
    assert_refused(stage, "unknown")


async def test_refused_because_it_cannot_be_read(stage: Stage) -> None:
    def unreadable(raw: bytes) -> Any:
        raise ValueError("not today")

    producer = stage.worker()
    stage.capture()
    worker = stage._make_worker(telemetry=stage._captured[0].telemetry, deserializer=unreadable)

    @worker.task(name="t")
    async def t(x: int) -> None: ...

    async with producer, running(worker):
        await producer.enqueue_unsafe("t", 1)
        await until(lambda: spans(stage, "process t"))
    assert_refused(stage, "undecodable")


async def test_refused_because_of_a_clash(stage: Stage) -> None:
    worker = stage.worker()
    begun, go = anyio.Event(), anyio.Event()

    @worker.task(name="t", unique=True)
    async def t() -> None:
        begun.set()
        await go.wait()

    async with running(worker):
        first = await t.enqueue()
        await begun.wait()
        second = await t.enqueue()
        await second.result(5)
        go.set()
        await first.result(5)
        await until(lambda: len(spans(stage, "process t")) == 2)
    by_id = {attribute(s, "messaging.message.id"): s for s in spans(stage, "process t")}
    assert outcome(by_id[second.id])[2:] == ("refused", "unique", ERROR)
    assert outcome(by_id[first.id])[2:] == ("success", "ok", OK)


async def test_refused_because_it_killed_its_worker_at_every_try(stage: Stage) -> None:
    first = stage.worker(idle_timeout=0.15, concurrency=1)
    second = stage.worker(idle_timeout=0.15)
    begun = anyio.Event()

    @first.task(name="t", max_tries=1)
    async def kills() -> None:
        begun.set()
        await anyio.sleep(30)

    @second.task(name="t", max_tries=1)
    async def never() -> None:
        raise AssertionError

    async with running(first):
        task = await kills.enqueue()
        await begun.wait()
        life = first._session._life
        assert life is not None
        await anyio.to_thread.run_sync(life._leases.stop)
        async with running(second):
            assert not (await task.result(5)).success
            seen = stage._captured[1]
            await until(lambda: seen.spans)
    span = seen.span("process t")
    send = stage.seen.span("send t")
    assert is_child(span, send)
    assert outcome(span) == (1, "immediate", "refused", "exhausted", ERROR)
    assert span.start_time == span.end_time


async def test_refused_because_a_schedule_is_too_late(stage: Stage) -> None:
    worker = stage.worker()

    @worker.cron("* * * * * *", name="t", max_schedule_drift=0)
    async def t() -> None: ...

    @worker.task(name="hogs")
    async def hogs() -> None:
        time.sleep(1.3)  # noqa: ASYNC251 - so that the next firing is late

    async with running(worker):
        await hogs.enqueue()
        await until(lambda: any(outcome(s)[3] == "drift" for s in spans(stage, "process t")))
    span = next(s for s in spans(stage, "process t") if outcome(s)[3] == "drift")
    assert outcome(span)[1:] == ("cron", "refused", "drift", ERROR)
    assert span.parent is None


async def test_a_timeout_that_is_retried(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t", timeout=0.05, retry_timeouts=True)
    async def t() -> None:
        if t.context.tries == 1:
            await anyio.sleep(30)

    async with running(worker):
        assert (await (await t.enqueue()).result(5)).success
        await until(lambda: len(spans(stage, "process t")) == 2)
    first, second = spans(stage, "process t")
    assert outcome(first) == (1, "immediate", "retried", "timeout", OK)
    assert outcome(second) == (2, "retry", "success", "ok", OK)
    assert [event.name for event in first.events] == ["exception"]
    assert links(second) == [("previous_attempt", span_id(first))]


async def test_a_task_that_ends_itself(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None:
        raise StreaqCancelled

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: spans(stage, "process t"))
    assert outcome(stage.seen.span("process t"))[2:] == ("aborted", "raised", OK)


def assert_refused(stage: Stage, reason: str) -> None:
    send, span = stage.seen.span("send t"), stage.seen.span("process t")
    assert is_child(span, send)
    assert span.kind is SpanKind.CONSUMER
    assert span.start_time == span.end_time
    assert outcome(span)[2:] == ("refused", reason, ERROR)
    assert attribute(span, "error.type") == reason


async def test_a_dependent_links_to_what_it_waited_for(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="a")
    async def a() -> None: ...

    @worker.task(name="b")
    async def b() -> None: ...

    @worker.task(name="c")
    async def c() -> None: ...

    async with running(worker):
        first, second = await a.enqueue().start(delay=0.05), await b.enqueue().start(delay=0.05)
        last = await c.enqueue().start(after=[first.id, second.id])
        await last.result(5)
        await until(lambda: spans(stage, "process c"))
    process = stage.seen.span("process c")
    assert is_child(process, stage.seen.span("send c"))
    assert outcome(process) == (1, "dependent", "success", "ok", OK)
    waited_for = {span_id(stage.seen.span(f"process {name}")) for name in "ab"}
    assert {reason for reason, _ in links(process)} == {"dependency"}
    assert {found for _, found in links(process)} == waited_for


async def test_a_pipeline_is_one_trace(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="a")
    async def a() -> int:
        return 1

    @worker.task(name="b")
    async def b(x: int) -> int:
        return x + 1

    async with running(worker):
        with stage.seen.tracer_provider.get_tracer("web").start_as_current_span("request"):
            task = await (a.enqueue() | b)
        assert (await task.result(5)).result == 2
        await until(lambda: spans(stage, "process b"))
    request = stage.seen.span("request")
    [send] = [span for span in stage.seen.spans if span.kind is SpanKind.PRODUCER]
    first, second = stage.seen.span("process a"), stage.seen.span("process b")
    assert is_child(send, request)
    assert attribute(send, "messaging.batch.message_count") == 2
    assert is_child(first, send)
    assert is_child(second, send)
    assert links(second) == [("dependency", span_id(first))]


async def test_a_dependency_that_fails_refuses_its_dependent(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="bad")
    async def bad() -> None:
        raise KeyError

    @worker.task(name="t")
    async def t() -> None: ...

    async with running(worker):
        first = await bad.enqueue().start(delay=0.05)
        task = await t.enqueue().start(after=first.id)
        await task.result(5)
        await until(lambda: spans(stage, "process t"))
    assert_refused(stage, "dependency")
    failed = stage.seen.span("process bad")
    assert links(stage.seen.span("process t")) == [("dependency", span_id(failed))]


async def test_fail_over(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="bad")
    async def bad(x: int) -> int:
        raise KeyError(x)

    @worker.task(name="t")
    async def t(x: int) -> int:
        return x * 2

    async with running(worker):
        task = await (bad.enqueue(3) ^ t)
        assert (await task.result(5)).result == 6
        await until(lambda: spans(stage, "process t"))
    first, second = stage.seen.span("process bad"), stage.seen.span("process t")
    assert outcome(first)[2:] == ("failed", "error", ERROR)
    assert outcome(second) == (1, "dependent", "success", "ok", OK)
    assert trace_id(first) == trace_id(second)
    assert links(second) == [("dependency", span_id(first))]


async def test_static_cron(stage: Stage) -> None:
    worker = stage.worker()

    @worker.cron("* * * * * *", name="t")
    async def t() -> None:
        if t.context.tries == 1:
            raise StreaqRetry(delay=0)

    async with running(worker):
        await until(lambda: len(spans(stage, "process t")) >= 4)
    first, again, third, _ = spans(stage, "process t")[:4]
    assert outcome(first)[:3] == (1, "cron", "retried")
    assert outcome(again)[:3] == (2, "retry", "success")
    assert outcome(third)[:3] == (1, "cron", "retried")
    assert first.parent is None
    assert third.parent is None
    assert trace_id(first) == trace_id(again) != trace_id(third), "one trace for each firing"
    assert links(first) == []
    assert links(again) == [("previous_attempt", span_id(first))]
    assert spans(stage, "send t") == [], "nobody sent it"


async def test_dynamic_cron(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None: ...

    async with running(worker):
        task = await t.enqueue().start(schedule="* * * * * *")
        await until(lambda: len(spans(stage, "process t")) >= 2)
        assert await task.unschedule()
    send = stage.seen.span("send t")
    assert attribute(send, "streaq.task.kind") == "cron"
    first, second = spans(stage, "process t")[:2]
    for span in (first, second):
        assert outcome(span)[1:] == ("cron", "success", "ok", OK)
        assert span.parent is None
        assert links(span) == [("schedule", span_id(send))]
    assert len({trace_id(span) for span in (send, first, second)}) == 3


async def test_a_sync_task_sees_its_span_in_its_thread(stage: Stage) -> None:
    worker = stage.worker()
    seen: list[Any] = []

    @worker.task(name="t")
    def t() -> None:
        tracer = stage.seen.tracer_provider.get_tracer("mine")
        with tracer.start_as_current_span("inner"):
            seen.append(baggage.get_baggage("tenant"))

    async with running(worker):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        task = await t.enqueue()
        context.detach(token)
        await task.result(5)
        await until(lambda: spans(stage, "process t"))
    assert is_child(stage.seen.span("inner"), stage.seen.span("process t"))
    assert seen == ["acme"]


async def test_an_enqueue_inside_a_task_nests_under_it(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="inner")
    async def inner() -> None: ...

    @worker.task(name="outer")
    async def outer() -> str:
        return (await inner.enqueue()).id

    async with running(worker):
        result = await (await outer.enqueue()).result(5)
        await worker.result_by_id(result.result, 5)
        await until(lambda: spans(stage, "process inner"))
    outer_span = stage.seen.span("process outer")
    assert is_child(stage.seen.span("send inner"), outer_span)
    assert is_child(stage.seen.span("process inner"), stage.seen.span("send inner"))


async def test_the_users_own_spans_nest_under_the_attempt(stage: Stage) -> None:
    worker = stage.worker()
    tracer = stage.seen.tracer_provider.get_tracer("mine")

    @worker.task(name="t")
    async def t() -> None:
        with tracer.start_as_current_span("query"):
            await anyio.lowlevel.checkpoint()

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: spans(stage, "process t"))
    assert is_child(stage.seen.span("query"), stage.seen.span("process t"))


async def test_attempts_side_by_side_do_not_mix(stage: Stage) -> None:
    worker = stage.worker(concurrency=8)
    tracer = stage.seen.tracer_provider.get_tracer("mine")

    @worker.task(name="t")
    async def t(n: int) -> None:
        for _ in range(3):
            with tracer.start_as_current_span(f"query {n}"):
                await anyio.sleep(0.001)

    async with running(worker):
        tasks = [await t.enqueue(n) for n in range(8)]
        for task in tasks:
            await task.result(5)
        await until(lambda: len(spans(stage, "process t")) == 8)
    by_id = {attribute(s, "messaging.message.id"): s for s in spans(stage, "process t")}
    for n, task in enumerate(tasks):
        inner = spans(stage, f"query {n}")
        assert len(inner) == 3
        assert all(is_child(span, by_id[task.id]) for span in inner)


async def test_nothing_is_current_after_an_attempt(stage: Stage) -> None:
    worker = stage.worker()
    seen: list[bool] = []

    @worker.middleware
    def look(call: Any) -> Any:
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            seen.append(trace.get_current_span().get_span_context().is_valid)
            return await call(*args, **kwargs)

        return wrapped

    @worker.task(name="t")
    async def t() -> None: ...

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: spans(stage, "process t"))
        assert not trace.get_current_span().get_span_context().is_valid
    assert seen == [True], "middleware runs inside"


async def test_two_processes_one_trace(stage: Stage) -> None:
    """Two captures stand for two processes; the real thing is in ``test_otlp_end_to_end``."""
    producer, consumer = stage.worker(), stage.worker()

    @consumer.task(name="t")
    async def t() -> None: ...

    async with producer, running(consumer):
        await (await producer.enqueue_unsafe("t")).result(5)
        await until(lambda: stage._captured[1].spans)
    [send] = stage._captured[0].spans
    [process] = stage._captured[1].spans
    assert (send.name, process.name) == ("send t", "process t")
    assert is_child(process, send)


async def test_a_producer_without_telemetry(stage: Stage, make_worker: MakeWorker) -> None:
    producer: Worker[Any] = make_worker()
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None:
        if t.context.tries == 1:
            raise StreaqRetry(delay=0)

    async with producer, running(worker):
        await (await producer.enqueue_unsafe("t")).result(5)
        await until(lambda: len(spans(stage, "process t")) == 2)
    first, second = spans(stage, "process t")
    assert first.parent is None
    assert links(first) == []
    assert trace_id(first) == trace_id(second)
    assert links(second) == [("previous_attempt", span_id(first))]


async def test_a_consumer_without_telemetry(stage: Stage, make_worker: MakeWorker) -> None:
    producer = stage.worker()
    worker: Worker[Any] = make_worker()

    @worker.task(name="t")
    async def t() -> int:
        return 1

    async with producer, running(worker):
        result = await (await producer.enqueue_unsafe("t")).result(5)
    assert result.success


async def test_propagation_link(stage: Stage) -> None:
    worker = stage.worker(Telemetry(propagation="link"))

    @worker.task(name="t")
    async def t() -> None:
        if t.context.tries == 1:
            raise StreaqRetry(delay=0)

    async with running(worker):
        await (await t.enqueue()).result(5)
        await until(lambda: len(spans(stage, "process t")) == 2)
    send = stage.seen.span("send t")
    first, second = spans(stage, "process t")
    assert (first.parent, second.parent) == (None, None)
    assert links(first) == [("producer", span_id(send))]
    assert links(second) == [("producer", span_id(send)), ("previous_attempt", span_id(first))]
    assert len({trace_id(span) for span in (send, first, second)}) == 3


@pytest.mark.parametrize(
    ("producer", "worker", "delay", "is_linked"),
    [
        (Telemetry(propagation="link"), Telemetry(), 0, True),
        (Telemetry(), Telemetry(propagation="link"), 0, True),
        (Telemetry(link_after=10), Telemetry(link_after=0.01), 0.03, False),
        (Telemetry(link_after=0.01), Telemetry(link_after=10), 0.03, True),
    ],
    ids=["all, says the producer", "all, says the worker", "not this one", "this one"],
)
async def test_who_enqueues_decides_and_a_worker_may_have_all_linked(
    stage: Stage, producer: Telemetry, worker: Telemetry, delay: float, is_linked: bool
) -> None:
    sending, working = stage.worker(producer), stage.worker(worker)
    seen = stage.captured(1)

    @working.task(name="t")
    async def t() -> None: ...

    async with sending, running(working):
        task = sending.enqueue_unsafe("t")
        await (await (task.start(delay=delay) if delay else task)).result(5)
        await until(lambda: seen.spans)
    send, process = stage.seen.span("send t"), seen.span("process t")
    assert is_child(process, send) is not is_linked
    assert links(process) == ([("producer", span_id(send))] if is_linked else [])


async def test_no_spans_for_an_idle_worker(stage: Stage) -> None:
    worker = stage.worker()

    @worker.task(name="t")
    async def t() -> None: ...

    began = time.monotonic()
    async with running(worker):
        await until(lambda: time.monotonic() - began > 0.3)
    assert stage.seen.spans == ()
