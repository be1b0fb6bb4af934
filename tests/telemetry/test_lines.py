"""Streaq's lines among those of an application that has set up structlog."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.typing import EventDict, Processor

from streaq.telemetry.logs import LogsHook
from streaq.telemetry.names_logs import LOGGER
from tests.telemetry.events import SAMPLED, attempt, ending, enqueue

wrap = structlog.stdlib.ProcessorFormatter.wrap_for_formatter
without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta


def add_severity(_: Any, method: str, fields: EventDict) -> EventDict:
    return {**fields, "severity": method.upper()}


SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    add_severity,
    structlog.processors.TimeStamper(fmt="iso", key="at"),
]


@pytest.fixture(autouse=True)
def _structlog() -> Iterator[None]:
    """Put back as it was."""
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def configure(*processors: Processor) -> None:
    """As structlog's documentation recommends for applications with both kinds of loggers."""
    structlog.configure(
        processors=[*SHARED, *processors, wrap],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What the logger of streaq's lines writes, with the formatter that is set there."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def format_with(renderer: Processor, foreign: list[Processor] | None = None) -> None:
    [handler] = logging.getLogger(LOGGER).handlers
    form = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign, processors=[without_meta, renderer]
    )
    handler.setFormatter(form)


def tell() -> None:
    hook = LogsHook()
    hook.on_finish(ending(attempt(trace=SAMPLED)))
    hook.on_fail(ending(attempt(), "failed", "error", ValueError("boom")))
    hook.on_enqueued(enqueue())


def test_they_have_what_the_applications_own_lines_have(out: io.StringIO) -> None:
    configure()
    format_with(structlog.processors.JSONRenderer(), SHARED)
    tell()
    finished, failed, enqueued = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (finished["event"], finished["task"], finished["try"]) == ("task.finished", "charge", 1)
    assert (finished["level"], finished["severity"]) == ("info", "INFO")
    assert finished["logger"] == LOGGER
    assert finished["at"].endswith("Z")
    assert (failed["level"], failed["message"]) == ("error", "boom")
    assert enqueued["severity"] == "DEBUG"


def test_on_a_console_too(out: io.StringIO) -> None:
    configure()
    format_with(structlog.dev.ConsoleRenderer(colors=False, timestamp_key="at"), SHARED)
    tell()
    line = out.getvalue().splitlines()[0].split()
    assert line[0].endswith("Z")
    assert line[1:5] == ["[info", "]", "task.finished", "[streaq.events]"]
    assert {"task=charge", "task_id=id-1", "outcome=success", f"trace_id={'a' * 32}"} <= {*line}


@pytest.mark.parametrize("configured", [False, True])
def test_without_such_a_chain_they_have_a_time_a_level_and_a_logger(
    configured: bool, out: io.StringIO
) -> None:
    if configured:
        structlog.configure(processors=[structlog.processors.JSONRenderer()])
    format_with(structlog.processors.JSONRenderer())
    tell()
    fields = json.loads(out.getvalue().splitlines()[0])
    assert (fields["level"], fields["logger"]) == ("info", LOGGER)
    assert fields["timestamp"].endswith("Z")
    assert fields["task_id"] == "id-1"


def test_they_are_of_the_task_that_they_tell_of(out: io.StringIO) -> None:
    configure()
    format_with(structlog.processors.JSONRenderer(), SHARED)
    structlog.contextvars.bind_contextvars(task_id="outer", worker_id="w2", trace_id="f" * 32)
    LogsHook().on_enqueued(enqueue())
    fields = json.loads(out.getvalue())
    assert fields["task_id"] == "id-1"
    assert not {"worker_id", "trace_id"} & {*fields}


def test_what_would_drop_a_line_leaves_it(out: io.StringIO) -> None:
    def drop(_: Any, __: str, fields: EventDict) -> EventDict:
        fields["seen"] = True
        raise structlog.DropEvent

    configure(drop)
    format_with(structlog.processors.JSONRenderer(), SHARED)
    LogsHook().on_finish(ending(attempt()))
    assert json.loads(out.getvalue())["event"] == "task.finished"


def test_other_formatters_see_the_fields_as_they_are(out: io.StringIO) -> None:
    configure()
    seen: list[Any] = []

    class Own(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            seen.append(record.msg)
            return super().format(record)

    [handler] = logging.getLogger(LOGGER).handlers
    handler.setFormatter(Own("%(levelname)s %(message)s"))
    LogsHook().on_enqueued(enqueue())
    assert {"at", "level", "severity"} & {*seen[0]} == set()
    assert out.getvalue().startswith("DEBUG task.enqueued task='charge' task_id='id-1'")
