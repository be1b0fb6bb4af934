"""The user's own log lines carry the task's ids, whatever they log with."""

from __future__ import annotations

import io
import json
import logging
from contextvars import copy_context
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple
from uuid import UUID

import anyio
import pytest
import structlog
from structlog.testing import LogCapture

from streaq.hooks import Dispatcher
from streaq.telemetry import logging_setup, names
from streaq.telemetry.context import ContextHook, TaskContextFilter, bind_trace, current_fields
from streaq.telemetry.logging_setup import JsonFormatter, configure_logging
from streaq.telemetry.logs import LogRules, LogsHook
from streaq.telemetry.names_logs import LOGGER
from streaq.telemetry.scope import ScopeHook
from streaq.types import StreaqError
from tests.telemetry.events import SAMPLED, attempt, ending, enqueue, lane_of, raised

BOUND = {
    "task": "charge",
    "task_id": "id-1",
    "queue": "shop",
    "priority": "normal",
    "try": 1,
    "worker_id": "w1",
    "trace_id": "a" * 32,
    "span_id": "b" * 16,
}

pytestmark = pytest.mark.usefixtures("root_logger")


def inside(body: object, trace: str = SAMPLED) -> None:
    """Run as an attempt is: in a context of its own, with its fields bound."""

    hook = ContextHook()
    a = attempt()
    lane = copy_context()
    lane.run(hook.on_lane, lane_of(a))

    def run() -> None:
        hook.on_enter(a)
        if trace:
            bind_trace(trace)
        body()  # type: ignore[operator]

    lane.copy().run(run)


def test_the_fields_are_those_that_are_promised() -> None:
    seen: list[dict[str, object]] = []
    inside(lambda: seen.append(current_fields()))
    assert seen == [BOUND]
    assert tuple(BOUND) == names.CONTEXT_FIELDS
    assert current_fields() == {}


def test_without_a_trace_there_are_no_ids() -> None:
    seen: list[dict[str, object]] = []
    inside(lambda: seen.append(current_fields()), trace="")
    assert set(BOUND) - set(seen[0]) == {"trace_id", "span_id"}


def test_the_users_structlog_carries_them() -> None:
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[structlog.contextvars.merge_contextvars, capture])
    inside(lambda: log.info("charging", amount=3))
    assert capture.entries == [{**BOUND, "event": "charging", "amount": 3, "log_level": "info"}]


def test_an_unconfigured_structlog_carries_them(capsys: pytest.CaptureFixture[str]) -> None:
    inside(lambda: structlog.get_logger().info("charging"))
    out = capsys.readouterr().out
    assert "id-1" in out
    assert "a" * 32 in out


def test_the_standard_library_carries_them_through_the_filter() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(TaskContextFilter())
    handler.setFormatter(logging.Formatter("[%(task_id)s %(try)s %(trace_id)s] %(message)s"))
    logger = logging.getLogger("test_context.mine")
    logger.addHandler(handler)
    inside(lambda: logger.warning("charging"))
    logger.warning("outside")
    assert stream.getvalue() == f"[id-1 1 {'a' * 32}] charging\n[  ] outside\n"


def test_streaqs_own_lines_are_of_the_task_that_they_tell_of() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(TaskContextFilter())
    form = "%(message).13s %(task)s %(task_id)s %(try)s %(worker_id)s %(trace_id).4s"
    handler.setFormatter(logging.Formatter(form))
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    hook = LogsHook()
    try:
        hook.on_retry(ending(attempt(try_number=2, trace=SAMPLED), "retried"))
        logger.setLevel(logging.DEBUG)
        inside(lambda: hook.on_enqueued(enqueue("receipt", task_id="id-2")))
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
    retried, enqueued = stream.getvalue().splitlines()
    assert retried == "task.retried  charge id-1 2 w1 aaaa"
    # The task that enqueues it has a try, a worker and a trace; it has none yet.
    assert enqueued.rstrip() == "task.enqueued receipt id-2"


def test_the_scope_says_that_the_task_started() -> None:
    capture = LogCapture()
    hook = LogsHook(LogRules(), structlog.wrap_logger(None, processors=[capture]).bind())
    dispatcher = Dispatcher([ScopeHook(None, hook)])
    with dispatcher.around(dispatcher.around_attempt, attempt()):
        pass
    assert [entry["event"] for entry in capture.entries] == ["task.started"]


# ------------------------------------------------------------------ configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def write_lines(stream: io.StringIO, log_format: object) -> None:
    configure_logging(log_format, "info", stream)  # type: ignore[arg-type]
    hook = LogsHook()

    def body() -> None:
        hook.started(attempt(trace=SAMPLED))
        logging.getLogger("mine").info("charging %s", "order", extra={"amount": 3})
        logging.getLogger("mine").debug("not this")
        try:
            raise raised(ValueError("boom"))
        except ValueError:
            logging.getLogger("mine").exception("oh no")

    inside(body)


def test_json_is_one_object_a_line() -> None:
    stream = io.StringIO()
    write_lines(stream, "json")
    started, mine, failed = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (started["event"], started["level"]) == ("task.started", "info")
    assert started["logger"] == "streaq.events"
    assert started["timestamp"].endswith("Z")
    assert {name: mine[name] for name in BOUND} == BOUND
    assert (mine["event"], mine["amount"], mine["logger"]) == ("charging order", 3, "mine")
    assert failed["exception"].endswith("ValueError: boom")


@pytest.mark.parametrize("message", [{"msg": "x"}, {"event": "fake", "task_id": "fake"}, {}])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_dict_of_the_users_is_a_message(log_format: str, message: dict[str, str]) -> None:
    stream = io.StringIO()
    configure_logging(log_format, "info", stream)  # type: ignore[arg-type]
    inside(lambda: logging.getLogger("mine").info(message))
    [line] = stream.getvalue().splitlines()
    assert str(message) in (json.loads(line)["event"] if log_format == "json" else line)
    assert "id-1" in line
    assert "a" * 32 in line


RESERVED = {"event": "E", "level": "L", "logger": "G", "timestamp": "T"}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_extra_fields_hide_nothing(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging(log_format, "info", stream)  # type: ignore[arg-type]
    logging.getLogger("mine").info("charging", extra={**RESERVED, "amount": 3})
    [line] = stream.getvalue().splitlines()
    if log_format == "console":
        assert "charging" in line
        assert "extra_event=E" in line
        return
    fields = json.loads(line)
    assert (fields["event"], fields["level"], fields["logger"]) == ("charging", "info", "mine")
    assert {name: fields[f"extra_{name}"] for name in RESERVED} == RESERVED
    assert fields["amount"] == 3


def test_structlog_by_way_of_the_standard_library_keeps_its_fields() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    processors = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]
    log = structlog.wrap_logger(
        logging.getLogger("mine"), processors, wrapper_class=structlog.stdlib.BoundLogger
    )
    inside(lambda: log.info("charging", amount=3))
    line = json.loads(stream.getvalue())
    assert {name: line[name] for name in BOUND} == BOUND
    assert (line["event"], line["amount"], line["level"]) == ("charging", 3, "info")
    assert not [name for name in line if name.startswith("extra_")]


def test_a_span_without_ids_binds_none() -> None:
    seen: list[dict[str, object]] = []

    def body() -> None:
        bind_trace("")
        seen.append(current_fields())

    inside(body, trace="")
    assert set(BOUND) - set(seen[0]) == {"trace_id", "span_id"}


def test_outside_a_task_the_filter_adds_nothing_to_json() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    logging.getLogger().handlers[0].addFilter(TaskContextFilter())
    logging.getLogger("mine").info("charging")
    assert set(json.loads(stream.getvalue())) == {"timestamp", "level", "logger", "event"}


class Shade(Enum):
    DARK = "dark"


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    "value",
    ["text", "é\n\x1b", "", 1, 2**70, -1.5, True, None, [1, "a"], {"a": {"b": 1}}, {1: "a"},
     (1, 2), Point(1, 2), {1}, UUID(int=5), Shade.DARK, datetime(2026, 1, 1, tzinfo=UTC), b"bytes",
     object, "\ud800"],
    ids=repr,
)  # fmt: skip
def test_json_is_the_same_with_and_without_orjson(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> str:
        stream = io.StringIO()
        configure_logging("json", "info", stream)
        logging.getLogger("mine").info("charging", extra={"value": value})
        _, _, rest = stream.getvalue().partition('"level"')
        return rest

    with_orjson = write()
    monkeypatch.setattr(logging_setup, "orjson", None)
    assert '"value":' in with_orjson
    assert write() == with_orjson


class Mute:
    def __repr__(self) -> str:
        raise ZeroDivisionError


ROUND: list[object] = ["a"]
ROUND.append(ROUND)


@pytest.mark.parametrize("has_orjson", [True, False])
@pytest.mark.parametrize(
    ("value", "written"),
    [({(1, 2): 3}, "{(1, 2): 3}"), (ROUND, "['a', [...]]"), (Mute(), "(Mute: it has no text)"),
     ([Mute()], ["(Mute: it has no text)"]), ({Mute(): ROUND}, "(dict: it has no text)"),
     ({"a": {(1,): ROUND}}, "{'a': {(1,): ['a', [...]]}}")],
    ids=["key", "round", "mute", "in a list", "in a dict", "deep"],
)  # fmt: skip
def test_no_value_costs_a_json_line(
    value: object, written: object, has_orjson: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_orjson:
        monkeypatch.setattr(logging_setup, "orjson", None)
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    logging.getLogger("mine").info("charging", extra={"value": value, "when": 2**70, "a": (1,)})
    line = json.loads(stream.getvalue())
    assert (line["event"], line["value"]) == ("charging", written)
    assert (line["when"], line["a"]) == (2**70, [1])


def test_a_json_line_has_the_stack_that_was_asked_for() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    logging.getLogger("mine").info("here", stack_info=True)
    structlog.get_logger("mine").info("here", stack_info=True)
    for line in map(json.loads, stream.getvalue().splitlines()):
        assert line["stack"].startswith("Stack (most recent call last):")
        assert "test_context.py" in line["stack"]
        assert "stack_info" not in line


@pytest.mark.parametrize("is_bound", [True, False])
def test_structlogs_exceptions_are_told_once(is_bound: bool) -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    options: dict[str, object] = {"wrapper_class": structlog.stdlib.BoundLogger} if is_bound else {}
    log = structlog.wrap_logger(
        logging.getLogger("mine"),
        [structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        **options,  # type: ignore[arg-type]
    )
    try:
        raise raised(ValueError("boom"))
    except ValueError:
        log.exception("oh no")
    line = json.loads(stream.getvalue())
    assert line["exception"].startswith("Traceback (most recent call last):")
    assert line["exception"].endswith("ValueError: boom")
    assert "exc_info" not in line


CONTROLS = "\x1b[2J \x1b]0;title\x07 \x9b31m \x7f \r"


def test_no_exception_steers_a_terminal() -> None:
    stream = io.StringIO()
    configure_logging("console", "info", stream)
    forged = ValueError(f"oops\n2026-01-01 00:00:00 [info     ] task.finished {CONTROLS}")
    LogsHook().on_fail(ending(attempt(), "failed", "error", forged))
    assert len(stream.getvalue().splitlines()) == 1
    for log in (logging.getLogger("mine"), structlog.get_logger("mine")):
        try:
            raise raised(ValueError(CONTROLS))
        except ValueError:
            log.exception("oh no")
    said = stream.getvalue()
    assert not [c for c in said if c != "\n" and not c.isprintable()]
    assert said.count("\\x1b[2J") == 3


def test_console_has_colours_on_a_terminal_only() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    write_lines(terminal, "console")
    write_lines(pipe, "console")
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in pipe.getvalue()
    for text in (terminal.getvalue(), pipe.getvalue()):
        assert "task.started" in text
        assert "charging order" in text


def test_auto_is_console_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    configure_logging("auto", "info", terminal)
    assert not isinstance(logging.getLogger().handlers[0].formatter, JsonFormatter)
    logging.getLogger().handlers.clear()
    configure_logging("auto", "info", pipe)
    assert isinstance(logging.getLogger().handlers[0].formatter, JsonFormatter)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_values_of_variables_in_tracebacks(log_format: str) -> None:
    stream = Terminal()
    write_lines(stream, log_format)
    assert "boom" in stream.getvalue()
    assert "local-secret" not in stream.getvalue()


def test_auto_leaves_the_applications_own_logging_alone(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    own = logging.StreamHandler(stream)
    own.setFormatter(logging.Formatter("%(task_id)s: %(message)s"))
    root_logger.handlers[:] = [own]
    configure_logging("auto")
    assert root_logger.handlers == [own]
    inside(lambda: logging.getLogger("mine").error("charging"))
    assert stream.getvalue() == "id-1: charging\n"


def quote(secret: str) -> None:
    """What a task does that logs its error itself."""
    log = structlog.get_logger("shop")
    log.debug("not this")
    log.info("charging %s", "order", level="L", amount=3)
    try:
        raise raised(ValueError("boom"))
    except ValueError:
        log.exception("oh no %d", len(secret))


def test_structlogs_lines_are_as_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    inside(lambda: quote("local-" + "secret"))
    assert capsys.readouterr() == ("", "")
    charging, failed = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {name: charging[name] for name in BOUND} == BOUND
    assert (charging["event"], charging["level"]) == ("charging order", "info")
    assert (charging["logger"], charging["extra_level"], charging["amount"]) == (__name__, "L", 3)
    assert (failed["event"], failed["level"]) == ("oh no 12", "error")
    assert failed["exception"].endswith("ValueError: boom")
    assert "exc_info" not in failed
    assert "local-secret" not in stream.getvalue()


def test_a_logger_that_was_bound_before_goes_along(capsys: pytest.CaptureFixture[str]) -> None:
    bound = structlog.get_logger().bind(service="shop")
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    configure_logging("auto")
    bound.info("charging")
    bound.debug("not asked for")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["service"]) == ("charging", "shop")
    assert capsys.readouterr() == ("", "")


def test_a_line_that_is_awaited_is_the_callers_too() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)

    async def charge() -> None:
        await structlog.get_logger().ainfo("charging")

    anyio.run(charge)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["logger"]) == ("charging", __name__)


def test_the_application_may_still_configure_structlog(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    structlog.configure_once(processors=[structlog.processors.JSONRenderer()])
    structlog.get_logger().info("charging", amount=3)
    assert json.loads(capsys.readouterr().out) == {"event": "charging", "amount": 3}
    assert stream.getvalue() == ""


def test_structlogs_lines_on_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    configure_logging("console", "info", stream)
    inside(lambda: quote("local-" + "secret"))
    assert capsys.readouterr() == ("", "")
    assert "charging order" in stream.getvalue()
    assert "id-1" in stream.getvalue()
    assert stream.getvalue().endswith("ValueError: boom\n")
    assert "local-secret" not in stream.getvalue()


def test_where_logging_is_left_alone_structlog_prints_no_values(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    root_logger.handlers[:] = [logging.NullHandler()]
    before = structlog.get_logger().bind(order=4)
    configure_logging("auto")
    inside(lambda: quote("local-" + "secret"))
    try:
        raise raised(ValueError("bound before"))
    except ValueError:
        before.exception("oh no")
    out = capsys.readouterr().out
    assert "ValueError: boom" in out
    assert "ValueError: bound before" in out
    assert "local-secret" not in out
    assert not structlog.is_configured()


def test_a_structlog_that_is_configured_is_left_alone() -> None:
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    before = structlog.get_config()
    for log_format in ("json", "auto"):
        configure_logging(log_format, stream=io.StringIO())  # type: ignore[arg-type]
        assert structlog.get_config() == before


def test_an_applications_own_class_of_loggers_is_kept() -> None:
    before = logging.getLoggerClass()
    configure_logging("json", stream=io.StringIO())
    assert logging.getLoggerClass() is before


def test_the_level_is_kept(root_logger: logging.Logger) -> None:
    configure_logging("json", "error", io.StringIO())
    assert root_logger.level == logging.ERROR


@pytest.mark.parametrize(("arguments", "word"), [(("xml",), "xml"), (("json", "loud"), "loud")])
def test_what_cannot_be_is_said(arguments: tuple[str, ...], word: str) -> None:
    with pytest.raises(StreaqError, match=word):
        configure_logging(*arguments)  # type: ignore[arg-type]
