"""Log lines: which event, which level, which fields, and nothing secret."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from streaq.hooks import Cron, Fence, Hook, LoopBlocked, Reclaim, RedisLink, WorkerEvent
from streaq.telemetry import names
from streaq.telemetry.lines import Line
from streaq.telemetry.logs import LogRules, LogsHook, traceback_of
from streaq.types import StreaqError, StreaqRetry
from tests.telemetry.events import SAMPLED, attempt, ending, enqueue, raised
from tools import telemetry_docs

EVENTS = {event.name: event for event in names.LOG_EVENTS}
SECRETS = ("arg-secret", "kwarg-secret", "result-secret", "local-secret")


class Bench:
    """A hook that logs into a list."""

    def __init__(self, **rules: Any) -> None:
        self.capture = LogCapture()
        logger = structlog.wrap_logger(None, processors=[self.capture]).bind()
        self.hook = LogsHook(LogRules(**rules), logger)

    def line(self) -> dict[str, Any]:
        """The only line, checked against ``names``."""
        [entry] = self.capture.entries
        fields = dict(entry)
        event = EVENTS[fields["event"]]
        seen = set(fields) - {"event", "log_level"}
        assert set(event.fields) <= seen
        assert seen <= {*event.fields, *event.optional}
        return fields


@pytest.fixture
def bench() -> Bench:
    return Bench()


def started(bench: Bench, **changes: Any) -> dict[str, Any]:
    bench.hook.started(attempt(**changes))
    return bench.line()


def test_enqueued(bench: Bench) -> None:
    e = enqueue(kind="delayed", delay_ms=50, after=("x", "y"), headers={"traceparent": SAMPLED})
    bench.hook.on_enqueued(e)
    assert bench.line() == {
        "event": "task.enqueued",
        "log_level": "debug",
        "task": "charge",
        "task_id": "id-1",
        "queue": "shop",
        "priority": "normal",
        "kind": "delayed",
        "delay_ms": 50,
        "after": 2,
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
    }


def test_a_firing_is_enqueued_by_nobody(bench: Bench) -> None:
    event = Cron("shop", "tidy", "id-1", 0, 2_000, 0, 0.0, "normal")
    bench.hook.on_cron(event)
    assert bench.capture.entries == []
    bench.hook.on_cron(event._replace(fired_ms=1_000))
    assert (bench.line()["event"], bench.line()["kind"]) == ("task.enqueued", "cron")


def test_started(bench: Bench) -> None:
    assert started(bench, trace=SAMPLED) == {
        "event": "task.started",
        "log_level": "info",
        "task": "charge",
        "task_id": "id-1",
        "queue": "shop",
        "priority": "normal",
        "try": 1,
        "worker_id": "w1",
        "kind": "immediate",
        "max_tries": 3,
        "wait_ms": 250,
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
    }


def test_without_a_trace_there_are_no_ids(bench: Bench) -> None:
    assert not {"trace_id", "span_id"} & set(started(bench))


def test_finished_is_the_canonical_line(bench: Bench) -> None:
    bench.hook.on_finish(ending(attempt(), duration_s=0.0304))
    line = bench.line()
    assert line["log_level"] == "info"
    assert (line["outcome"], line["reason"]) == ("success", "ok")
    assert (line["wait_ms"], line["duration_ms"]) == (250, 30.4)


def test_retried_says_when_and_why(bench: Bench) -> None:
    e = ending(attempt(), "retried", "asked", StreaqRetry("later"), retry_due_ms=1_004_280)
    bench.hook.on_retry(e)
    line = bench.line()
    assert (line["event"], line["log_level"]) == ("task.retried", "warning")
    assert (line["retry_in_ms"], line["error"], line["message"]) == (4000, "StreaqRetry", "later")


def test_handed_back_is_told_as_a_retry(bench: Bench) -> None:
    bench.hook.on_return(ending(attempt(), "returned", "shutdown"))
    line = bench.line()
    assert (line["event"], line["outcome"], line["retry_in_ms"]) == ("task.retried", "returned", 0)


def test_failed_has_class_message_and_places(bench: Bench) -> None:
    bench.hook.on_fail(ending(attempt(), "failed", "error", raised(ValueError("boom"))))
    line = bench.line()
    assert (line["event"], line["log_level"]) == ("task.failed", "error")
    assert (line["error"], line["message"]) == ("ValueError", "boom")
    assert [place.rpartition(" in ")[2] for place in line["traceback"]] == ["raised", "_raise"]
    assert all("events.py:" in place for place in line["traceback"])


def test_aborted(bench: Bench) -> None:
    bench.hook.on_abort(ending(attempt(started_ms=0), "aborted", "user"))
    line = bench.line()
    assert (line["event"], line["log_level"], line["wait_ms"]) == ("task.aborted", "warning", 0)


@pytest.mark.parametrize("reason", names.REFUSALS)
def test_refused(bench: Bench, reason: str) -> None:
    bench.hook.on_refuse(ending(attempt(started_ms=0), "refused", reason, ValueError("no")))
    line = bench.line()
    assert (line["event"], line["reason"]) == ("task.refused", reason)
    event = EVENTS["task.refused"]
    assert line["log_level"] == ("warning" if reason == "expired" else "error")
    assert line["log_level"] == event.other_levels.get(reason, event.level)


def test_the_docs_say_each_level() -> None:
    assert "| `task.refused` | error, or warning (expired) |" in telemetry_docs.render()


def test_reclaimed_and_fenced() -> None:
    bench = Bench()
    bench.hook.on_reclaim(Reclaim(attempt(), "w0"))
    assert (bench.line()["event"], bench.line()["lost_worker"]) == ("task.reclaimed", "w0")
    bench = Bench()
    bench.hook.on_fenced(Fence(ending(attempt())))
    assert bench.line()["event"] == "task.fenced"


def test_worker_events() -> None:
    event = WorkerEvent("shop", "w1", 8, ("high", "low"), ("charge",), "", "asyncio")
    bench = Bench()
    bench.hook.on_worker_start(event)
    assert bench.line()["priorities"] == ["high", "low"]
    bench = Bench()
    bench.hook.on_worker_stop(event._replace(reason="SIGTERM"))
    assert (bench.line()["event"], bench.line()["reason"]) == ("worker.stopped", "SIGTERM")


def test_redis_and_loop() -> None:
    bench = Bench()
    bench.hook.on_redis_lost(RedisLink("shop", "w1", "refused", 0.0))
    assert (bench.line()["event"], bench.line()["log_level"]) == ("redis.lost", "warning")
    bench = Bench()
    bench.hook.on_redis_restored(RedisLink("shop", "w1", "", 1.5))
    assert bench.line()["outage_ms"] == 1500
    bench = Bench()
    bench.hook.on_loop_blocked(LoopBlocked("shop", "w1", 15.2, "a.py:3 in f", ("charge",)))
    line = bench.line()
    assert (line["blocked_ms"], line["where"], line["tasks"]) == (15200, "a.py:3 in f", ["charge"])


def everything(hook: LogsHook) -> None:
    """Every event about a task."""
    a = attempt(args=("arg-secret",), kwargs={"k": "kwarg-secret"}, silent=False)
    error = raised(ValueError("boom"))
    hook.on_enqueued(enqueue())
    hook.started(a)
    hook.on_finish(ending(a, result="result-secret"))
    hook.on_retry(ending(a, "retried", "asked", error))
    hook.on_return(ending(a, "returned", "shutdown"))
    hook.on_fail(ending(a, "failed", "error", error))
    hook.on_abort(ending(a, "aborted", "user", error))
    hook.on_refuse(ending(a, "refused", "expired", error))
    hook.on_reclaim(Reclaim(a, "w0"))
    hook.on_fenced(Fence(ending(a, result="result-secret")))


def test_nothing_that_was_passed_or_returned_is_logged(bench: Bench) -> None:
    everything(bench.hook)
    assert len(bench.capture.entries) == 10
    text = json.dumps(bench.capture.entries)
    assert not [secret for secret in SECRETS if secret in text]


def test_arguments_and_results_when_asked_for() -> None:
    bench = Bench(arguments=True, results=True, limit=12)
    everything(bench.hook)
    lines = {entry["event"]: entry for entry in bench.capture.entries}
    assert lines["task.started"]["args"] == "('arg-secret... (15 characters)"
    assert lines["task.started"]["kwargs"] == "{'k': 'kwarg... (21 characters)"
    assert lines["task.finished"]["result"].startswith("'result-secr")
    assert "local-secret" not in json.dumps(bench.capture.entries)


def test_messages_can_be_left_out() -> None:
    bench = Bench(messages=False)
    bench.hook.on_fail(ending(attempt(), "failed", "error", ValueError("card 4111")))
    assert "message" not in bench.line()
    assert bench.line()["error"] == "ValueError"


def test_long_messages_are_cut(bench: Bench) -> None:
    bench.hook.on_fail(ending(attempt(), "failed", "error", ValueError("x" * 9000)))
    assert bench.line()["message"] == "x" * 500 + "..."


@pytest.mark.parametrize("size", [480, 1_500, 9_000])
def test_a_message_that_quotes_a_long_argument_still_says_something(
    bench: Bench, size: int
) -> None:
    text = "".join(f"{i:04}" for i in range(size // 4))
    error = ValueError(f"bad value: {text}")
    bench.hook.on_fail(ending(attempt(args=(text,)), "failed", "error", error))
    assert bench.line()["message"].removesuffix("...") == "bad value: ***"


def test_causes_are_named() -> None:
    cause = raised(KeyError("inner"))
    error = ValueError("outer")
    error.__cause__ = cause
    places = list(traceback_of(raised(error)))
    assert places.index("caused by KeyError") == 2
    assert len(places) == 5


def in_a_group(*errors: Exception) -> ExceptionGroup[Exception]:
    group = ExceptionGroup("unhandled errors in a TaskGroup", list(errors))
    return raised(group)  # type: ignore[return-value]


def test_a_group_says_what_it_is_of(bench: Bench) -> None:
    error = in_a_group(raised(ConnectionError("payments: 503, not 4711")))
    bench.hook.on_fail(ending(attempt(args=(4711,)), "failed", "error", error))
    line = bench.line()
    assert line["error"] == "ExceptionGroup"
    assert line["message"] == (
        "unhandled errors in a TaskGroup (1 sub-exception) "
        "[ConnectionError: payments: 503, not ***]"
    )
    places = line["traceback"]
    assert places[2] == "in the group: ConnectionError"
    assert [place.rpartition(" in ")[2] for place in places[3:]] == ["raised", "_raise"]


def test_of_many_in_a_group_the_first_are_told(bench: Bench) -> None:
    many = [raised(ValueError(str(n))) for n in range(400)]
    bench.hook.on_fail(ending(attempt(), "failed", "error", in_a_group(in_a_group(*many))))
    line = bench.line()
    assert line["message"].endswith("[ValueError: 0; ValueError: 1; ValueError: 2; ...]")
    assert line["traceback"].count("in the group: ValueError") == 3


def test_causes_inside_of_a_group_are_named_once() -> None:
    inner = raised(ValueError("inner"))
    group = in_a_group(inner)
    cause = raised(KeyError("why"))
    cause.__context__ = group
    inner.__cause__ = cause
    said = [place for place in traceback_of(group) if ".py:" not in place]
    assert said == ["in the group: ValueError", "caused by KeyError"]


def test_a_serializers_error_is_told_by_class_in_a_group_too(bench: Bench) -> None:
    quoting = StreaqError("Can't serialise a result: TypeError: result-secret")
    quoting.brief = "Can't serialise a result: TypeError"
    bench.hook.on_fail(ending(attempt(), "failed", "error", in_a_group(quoting)))
    assert "[StreaqError: Can't serialise a result: TypeError]" in bench.line()["message"]


def test_the_default_logger_ends_in_the_standard_library(caplog: pytest.LogCaptureFixture) -> None:
    hook = LogsHook()
    with caplog.at_level(logging.WARNING, "streaq.events"):
        hook.on_finish(ending(attempt()))
        hook.on_fail(ending(attempt(), "failed", "error", ValueError("boom")))
    [record] = caplog.records
    assert (record.name, record.levelname) == ("streaq.events", "ERROR")
    assert record.getMessage().startswith("task.failed task='charge' task_id='id-1'")
    assert isinstance(record.msg, Line)
    assert record.msg["message"] == "boom"


def test_the_users_structlog_configuration_is_left_alone() -> None:
    before = structlog.get_config()
    LogsHook()
    assert structlog.get_config() == before
    assert not structlog.is_configured()


def test_what_is_filtered_costs_a_question(caplog: pytest.LogCaptureFixture) -> None:
    hook = LogsHook()
    with caplog.at_level(logging.ERROR, "streaq.events"):
        hook._write = {}  # nothing may be written
        a = attempt()
        hook.on_enqueued(enqueue())
        hook.started(a)
        hook.on_finish(ending(a))
        hook.on_retry(ending(a, "retried"))


def test_every_event_has_a_writer() -> None:
    source = set(EVENTS)
    hook = Bench().hook
    assert isinstance(hook, Hook)
    text = (__import__("inspect")).getsource(type(hook))
    assert source == {name for name in source if f'"{name}"' in text}
