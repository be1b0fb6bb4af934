"""Hooks and exporters that raise, block or are down never fail, delay or lose a task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import CollectorRegistry

from streaq import StreaqRetry, Worker
from streaq.hooks import SLOTS, Attempt, Hook
from streaq.telemetry import Telemetry
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio

COUNT = 30


async def works(worker: Worker[Any]) -> float:
    """Runs tasks that succeed, fail and retry; the longest anybody waited, in seconds."""

    @worker.task(name="ok")
    async def ok(x: int) -> int:
        return x

    @worker.task(name="fails")
    async def fails() -> None:
        raise KeyError

    @worker.task(name="retries")
    async def retries() -> int:
        if retries.context.tries == 1:
            raise StreaqRetry(delay=0)
        return 1

    began = time.monotonic()
    async with running(worker):
        tasks = [ok.enqueue(i) for i in range(COUNT)]
        await worker.enqueue_many(tasks)
        single = await ok.enqueue(-1)
        failing, retrying = await fails.enqueue(), await retries.enqueue()
        results = [(await task.result(15)).result for task in tasks]
        assert results == list(range(COUNT))
        assert (await single.result(5)).result == -1
        assert not (await failing.result(5)).success
        assert (await retrying.result(5)).tries == 2
        elapsed = time.monotonic() - began
    assert worker.counters == {"completed": COUNT + 2, "failed": 1, "retried": 1}
    return elapsed


def raising_hook(raises: type[BaseException] = RuntimeError) -> Hook:
    """Every event raises, and every context manager when it is entered."""

    def fail(self: Hook, event: object) -> Any:
        raise raises("hook")

    return type("Raising", (Hook,), dict.fromkeys(SLOTS, fail))()


class RaisesInside(Hook):
    """Its context manager raises when it is left."""

    def __init__(self, raises: type[BaseException] = RuntimeError) -> None:
        self.raises = raises

    @contextmanager
    def around_attempt(self, e: Attempt) -> Iterator[None]:
        yield
        raise self.raises("leaving")


@pytest.mark.parametrize("raises", [RuntimeError, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("make", [raising_hook, RaisesInside], ids=["every", "leaving"])
async def test_hooks_that_raise(
    make_worker: MakeWorker,
    make: Callable[[type[BaseException]], Hook],
    raises: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "streaq"):
        worker = make_worker(hooks=[make(raises)])
        await works(worker)
    assert worker._session.hooks().errors >= COUNT
    assert "the task is not affected" in caplog.text


class Exporter(SpanExporter):
    """One that raises, or takes a second, or says that it failed."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.calls = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls += 1
        if self.how == "raises":
            raise RuntimeError("exporter")
        if self.how == "blocks":
            time.sleep(1)
        return SpanExportResult.FAILURE


class Processor(SpanProcessor):
    """A span processor that raises: nothing in the SDK stands between it and us."""

    def on_start(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on_end")


class Sampler(type(ALWAYS_ON)):  # type: ignore[misc]
    """A sampler that raises."""

    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("sampler")


def settings(provider: TracerProvider) -> Telemetry:
    return Telemetry(tracer_provider=provider, registry=CollectorRegistry())


@pytest.mark.parametrize("how", ["raises", "fails"])
async def test_an_exporter_that_raises_or_fails(
    make_worker: MakeWorker, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Exporter(how)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    await works(make_worker(telemetry=settings(provider)))
    assert exporter.calls > COUNT


async def test_an_exporter_that_blocks(make_worker: MakeWorker) -> None:
    exporter = Exporter("blocks")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=10))
    try:
        elapsed = await works(make_worker(telemetry=settings(provider)))
    finally:
        provider.shutdown()
    assert exporter.calls > 0
    assert elapsed < 5, "tasks do not wait for the exporter, which takes a second each time"


async def test_a_collector_that_is_down(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint="http://127.0.0.1:1/v1/traces", timeout=0.2)
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=10)
    provider.add_span_processor(processor)
    try:
        elapsed = await works(make_worker(telemetry=settings(provider)))
    finally:
        exporter.shutdown()
        provider.shutdown()
    assert elapsed < 5


@pytest.mark.parametrize("part", ["processor", "sampler"])
async def test_an_sdk_that_raises(
    make_worker: MakeWorker, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider(sampler=Sampler(ALWAYS_ON._decision) if part == "sampler" else None)
    if part == "processor":
        provider.add_span_processor(Processor())
    with caplog.at_level(logging.ERROR, "streaq"):
        await works(make_worker(telemetry=settings(provider)))
    assert "the task is not affected" in caplog.text


class RaisingLogger:
    """A logger whose every line raises."""

    def __getattr__(self, name: str) -> Any:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError("logger")

        if name == "isEnabledFor":
            raise AttributeError(name)
        return fail


async def test_a_logger_that_raises(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry(logger=RaisingLogger(), registry=CollectorRegistry(), traces=False)
    with caplog.at_level(logging.ERROR, "streaq"):
        await works(make_worker(telemetry=telemetry))
    assert "the task is not affected" in caplog.text


class SlowHook(Hook):
    """Takes a while over each event it hears of, which is against the rules."""

    def on_finish(self, e: Any) -> None:
        time.sleep(0.02)


async def test_a_hook_that_blocks_loses_nothing(make_worker: MakeWorker) -> None:
    await works(make_worker(hooks=[SlowHook()]))


async def test_a_hook_that_blocks_for_a_second_costs_no_lease(make_worker: MakeWorker) -> None:
    class Blocks(Hook):
        blocked = False

        def on_start(self, e: Attempt) -> None:
            if not self.blocked:
                self.blocked = True
                time.sleep(1)

    worker = make_worker(hooks=[Blocks()], idle_timeout=3)
    other = make_worker(idle_timeout=3)
    ran: list[int] = []

    for one in (worker, other):

        @one.task(name="t")
        async def t(x: int) -> int:
            ran.append(x)
            return x

    async with running(worker, other):
        tasks = [worker.enqueue_unsafe("t", i) for i in range(8)]
        await worker.enqueue_many(tasks)
        for i, task in enumerate(tasks):
            result = await task.result(10)
            assert (result.result, result.tries) == (i, 1)
    assert sorted(ran) == list(range(8)), "none ran twice"
