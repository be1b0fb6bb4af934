"""The helper for users' tests: it sees what happened, and says so when a test asks wrongly."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, Counter

from streaq import Worker
from streaq.telemetry import Telemetry
from streaq.telemetry.testing import Captured, capture_telemetry
from streaq.testing import RecordingHook
from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def seen() -> Iterator[Captured]:
    with capture_telemetry() as captured:
        yield captured


def charging(make_worker: MakeWorker, seen: Captured, body: Any = None) -> Worker[Any]:
    worker = make_worker(telemetry=seen.telemetry)

    async def charge() -> None:
        if body:
            body()

    worker.task(name="charge")(charge)
    return worker


async def no_op() -> None: ...


BY_STDLIB: dict[str, Any] = {
    "logger_factory": structlog.stdlib.LoggerFactory(),
    "wrapper_class": structlog.stdlib.BoundLogger,
}


@contextmanager
def structlog_as(**configured: Any) -> Iterator[None]:
    structlog.configure(**configured)
    try:
        yield
    finally:
        structlog.reset_defaults()


async def run(worker: Worker[Any]) -> None:
    async with running(worker):
        assert (await (await worker.enqueue_unsafe("charge")).result(5)).success


async def test_it_sees_spans_metrics_and_lines(make_worker: MakeWorker, seen: Captured) -> None:
    await run(charging(make_worker, seen))
    span = seen.span("process charge")
    assert (span.attributes or {})["streaq.task.outcome"] == "success"
    assert seen.metric("streaq_tasks_finished_total", task="charge", status="success") == 1
    assert seen.metric("streaq_task_duration_seconds_count") == 1
    assert seen.metric("streaq_task_duration_seconds_bucket", le="+Inf") == 1
    assert seen.metric("streaq_tasks_failed_total") == 0
    assert seen.log("task.finished", task="charge")["outcome"] == "success"
    seen.clear()
    assert (list(seen.spans), seen.logs) == ([], [])
    assert seen.metric("streaq_tasks_finished_total") == 1


async def test_each_capture_of_one_worker_sees_what_happens_meanwhile(
    make_worker: MakeWorker,
) -> None:
    mine = RecordingHook()
    worker = make_worker(telemetry=Telemetry(registry=CollectorRegistry()), hooks=[mine])
    worker.task(name="charge")(no_op)
    await run(worker)  # entered before any capture
    for n in range(2, 4):
        with capture_telemetry() as seen:
            worker.telemetry = seen.telemetry
            await run(worker)
        assert seen.log("task.finished")["outcome"] == "success"
        assert seen.span("process charge")
        assert seen.metric("streaq_tasks_finished_total", task="charge", status="success") == 1
        assert mine.names("on_finish") == ["charge"] * n, "hooks of one's own stay"


async def test_what_was_counted_before_stays_where_it_was_counted(make_worker: MakeWorker) -> None:
    before = Captured()
    worker = charging(make_worker, before)
    await run(worker)
    worker.telemetry = False
    await run(worker)
    gc.collect()
    assert before.metric("streaq_tasks_finished_total") == 1


@pytest.mark.parametrize(
    "configured",
    [
        {"wrapper_class": structlog.make_filtering_bound_logger(logging.CRITICAL)},
        {"wrapper_class": structlog.BoundLogger},
        {"logger_factory": structlog.stdlib.LoggerFactory()},
    ],
    ids=["filtering", "generic", "stdlib"],
)
async def test_the_applications_structlog_hides_none_of_the_workers_lines(
    make_worker: MakeWorker, configured: dict[str, Any]
) -> None:
    def fail() -> None:
        raise ValueError("no")

    with structlog_as(**configured), capture_telemetry() as seen:
        worker = charging(make_worker, seen, fail)
        async with running(worker):
            assert not (await (await worker.enqueue_unsafe("charge")).result(5)).success
    events = [line["event"] for line in seen.logs if line["event"].startswith("task.")]
    assert events == ["task.enqueued", "task.started", "task.failed"]
    assert {line["event"].partition(".")[0] for line in seen.logs} == {"worker", "task"}


# --------------------------------------------------------------------- wrong questions


@pytest.mark.parametrize(
    ("name", "labels", "hint"),
    [
        ("streaq_task_failed_total", {}, "did you mean streaq_tasks_failed_total"),
        ("streaq_task_duration_seconds", {}, "streaq_task_duration_seconds_count"),
        ("shop_orders_total", {}, "There is no metric 'shop_orders_total'"),
        ("streaq_tasks_failed_total", {"tsk": "charge"}, "no label 'tsk'; it has queue, task"),
        ("streaq_tasks_finished_total", {"status": "sucess"}, "it is success or failed"),
        ("streaq_task_duration_seconds_count", {"le": "1.0"}, "no label 'le'"),
        ("streaq_queue_depth", {}, "read from Redis"),
    ],
)
def test_what_would_always_be_0_is_an_error(
    seen: Captured, name: str, labels: dict[str, str], hint: str
) -> None:
    with pytest.raises(ValueError, match=hint.replace("[", "\\[")):
        seen.metric(name, **labels)


async def test_wrong_labels_are_an_error_also_when_there_are_series(
    make_worker: MakeWorker, seen: Captured
) -> None:
    await run(charging(make_worker, seen))
    with pytest.raises(ValueError, match="no label 'name'"):
        seen.metric("streaq_tasks_finished_total", name="charge")


def test_metrics_of_ones_own_are_found(seen: Captured) -> None:
    orders = Counter("shop_orders_total", "Orders.", ["kind"], registry=seen.registry)
    orders.labels("gift").inc(2)
    assert seen.metric("shop_orders_total", kind="gift") == 2


async def test_missing_spans_and_lines_say_what_there_was(
    make_worker: MakeWorker, seen: Captured
) -> None:
    with pytest.raises(AssertionError, match="0 spans are called 'process charge'; seen: none"):
        seen.span("process charge")
    with pytest.raises(AssertionError, match=r"0 lines are 'task.failed'; seen: none"):
        seen.log("task.failed")
    await run(charging(make_worker, seen))
    with pytest.raises(AssertionError, match="0 spans are called 'x'; seen: send charge, process"):
        seen.span("x")
    with pytest.raises(AssertionError, match=r"0 lines are 'task.finished'.*task.started"):
        seen.log("task.finished", task="other")


# ------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_SAMPLER", "always_off"),
     ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1"), ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "1")],
)  # fmt: skip
async def test_the_environment_is_not_asked(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with capture_telemetry() as seen:
        await run(charging(make_worker, seen))
        assert (seen.span("process charge").attributes or {})["streaq.task.outcome"] == "success"
        seen.log("task.finished")
        assert [line for line in seen.logs if not line.get("trace_id", "x")] == []


def test_settings_to_start_from_are_kept() -> None:
    with capture_telemetry(Telemetry(log_args=True, traces=False)) as seen:
        assert (seen.telemetry.log_args, seen.telemetry.traces) == (True, False)


# ---------------------------------------------------------------------- users' own code


async def test_lines_of_ones_own_are_captured_inside_of_tasks(
    make_worker: MakeWorker, seen: Captured, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        logging.getLogger("shop").warning("charging %s", 42, extra={"amount": 3})
        logging.getLogger("shop").warning({"a": "dict"})
        with structlog.contextvars.bound_contextvars(order=7):
            structlog.get_logger().info("charged", amount=4)

    logging.getLogger("shop").warning("outside")
    structlog.get_logger().info("outside")
    await run(charging(make_worker, seen, body))
    line = seen.log("charging 42", task="charge")
    assert (line["amount"], line["log_level"], line["logger"]) == (3, "warning", "shop")
    assert line["trace_id"] == seen.log("task.finished")["trace_id"]
    assert seen.log("{'a': 'dict'}")["task_id"] == line["task_id"]
    charged = seen.log("charged", task="charge", order=7)
    assert (charged["amount"], charged["log_level"]) == (4, "info")
    assert "outside" not in {entry["event"] for entry in seen.logs}
    assert "charged" in capsys.readouterr().out, "structlog writes as before"


@pytest.mark.parametrize(
    "last",
    [
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        structlog.stdlib.render_to_log_kwargs,
        structlog.processors.JSONRenderer(),
    ],
    ids=["formatter", "kwargs", "json"],
)
async def test_structlog_by_way_of_the_standard_library_is_captured_once_and_whole(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture, last: Any
) -> None:
    def body() -> None:
        log = structlog.get_logger("shop.till")
        log.info("the level lets it not through")
        log.warning("charging %s", "x", amount=3)
        own = [structlog.processors.KeyValueRenderer()]
        structlog.wrap_logger(logging.getLogger("shop"), processors=own).warning("its own")
        logging.getLogger("shop").warning("no structlog")

    processors = [structlog.contextvars.merge_contextvars, last]
    with structlog_as(processors=processors, **BY_STDLIB):
        with capture_telemetry() as seen:
            await run(charging(make_worker, seen, body))
        theirs = [line for line in seen.logs if not line["event"].startswith(("task.", "worker."))]
        assert [line["event"] for line in theirs] == [
            "charging x",
            "event='its own'",
            "no structlog",
        ]
        line = seen.log("charging x", task="charge", amount=3)
        assert (line["log_level"], line["logger"]) == ("warning", "shop.till")
    assert len([r for r in caplog.records if r.name == "shop.till"]) == 1, "written as before"


async def test_arguments_that_do_not_fit_harm_nobody(make_worker: MakeWorker) -> None:
    def body() -> None:
        structlog.get_logger("shop").warning("%d of %d", "x")

    json = structlog.processors.JSONRenderer()
    with structlog_as(processors=[json], **BY_STDLIB), capture_telemetry() as seen:
        await run(charging(make_worker, seen, body))
    assert seen.log("%d of %d")["log_level"] == "warning"


async def test_processors_that_are_no_list_are_heard_as_well(make_worker: MakeWorker) -> None:
    processors = (structlog.processors.JSONRenderer(),)
    with structlog_as(processors=processors):
        with capture_telemetry() as seen:
            body = partial(structlog.get_logger("shop").warning, "hm", a=1)
            await run(charging(make_worker, seen, body))
        assert structlog.get_config()["processors"] is processors
    assert seen.log("hm")["a"] == 1


def broken_line() -> None:
    logging.getLogger("shop").error("%s %s", *[1])


async def test_a_message_that_cannot_be_made_harms_nobody(
    make_worker: MakeWorker, seen: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    await run(charging(make_worker, seen, lambda: broken_line))
    seen.log("task.finished")


def test_nothing_is_left_behind() -> None:
    root = logging.getLogger()
    before = list(root.handlers), list(structlog.get_config()["processors"])
    with capture_telemetry():
        assert list(root.handlers) != before[0]
    assert (list(root.handlers), list(structlog.get_config()["processors"])) == before


def span_of_ones_own() -> None:
    with trace.get_tracer("shop").start_as_current_span("pay"):
        pass


async def test_spans_of_ones_own_through_the_helpers_provider(
    make_worker: MakeWorker, seen: Captured
) -> None:
    tracer = seen.tracer_provider.get_tracer("shop")
    await run(charging(make_worker, seen, lambda: tracer.start_span("pay").end()))
    parent = seen.span("pay").parent
    assert parent is not None
    assert parent.span_id == seen.span("process charge").get_span_context().span_id


async def test_spans_of_ones_own_through_the_process_provider(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    for _ in range(2):
        with capture_telemetry() as seen:
            await run(charging(make_worker, seen, span_of_ones_own))
        span_of_ones_own()  # nobody listens any more
        parent = seen.span("pay").parent
        assert parent is not None
        assert parent.span_id == seen.span("process charge").get_span_context().span_id


async def test_the_process_provider_samples_its_own(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
    with capture_telemetry() as seen:
        await run(charging(make_worker, seen, span_of_ones_own))
    assert {span.name for span in seen.spans} == {"send charge", "process charge"}
