"""How log lines look when ``streaq run`` sets them up: colours on a terminal, JSON elsewhere.

Both the events of streaq and whatever the application logs through the standard library come out
in the same shape, with the ids of the running task on every line.
"""

from __future__ import annotations

import inspect
import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from types import FrameType
from typing import Any, Literal, TextIO, TypeAlias, cast, get_args
from uuid import UUID

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from streaq.telemetry.context import TaskContextFilter, current_fields
from streaq.telemetry.lines import Line
from streaq.telemetry.names_logs import CONTEXT_FIELDS
from streaq.types import StreaqError
from streaq.wire import visible

try:
    import orjson
except ImportError:  # it is of the extra "fast"
    orjson = None

LogFormat: TypeAlias = Literal["auto", "console", "json"]
_AS_REPR = (
    0 if orjson is None else orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
)
LEVELS = ("debug", "info", "warning", "error", "critical")
_LEVELS = {name: logging.getLevelNamesMapping()[name.upper()] for name in LEVELS}


def configure_logging(
    log_format: LogFormat = "auto", level: str | None = None, stream: TextIO | None = None
) -> None:
    """Set up the standard library's root logger for streaq's events and the application's own.

    With ``"auto"``, an application that has set up logging itself is left alone, but that its
    handlers get the ids of the running task (see ``TaskContextFilter``).

    Structlog's lines come out in the same shape where the application has not configured it: they
    go on to the standard library. Where that is left alone, structlog prints as before, but no
    values of variables with its tracebacks.

    :param log_format: ``"console"`` for people, ``"json"`` for machines; ``"auto"`` is console on
        a terminal and JSON elsewhere.
    :param level: the least that is written: debug, info, warning, error or critical. When not
        given it is info, or as the application has it where that is left alone.
    :param stream: where to; standard error by default.
    :raises StreaqError: an unknown format or level.

    Example::

        configure_logging("json", level="warning")
        worker.run_sync()
    """
    if log_format not in get_args(LogFormat):
        raise StreaqError(f"Log format {log_format!r}: it is auto, console or json.")
    if level is not None and level not in LEVELS:
        raise StreaqError(f"Log level {level!r}: it is one of {', '.join(LEVELS)}.")
    root = logging.getLogger()
    structlogs = _own_structlog()
    if log_format == "auto" and root.handlers:
        for handler in root.handlers:
            handler.addFilter(TaskContextFilter())
        if level is not None:
            _set_level(level)
        if structlogs:
            _print_no_values(structlogs)
        return
    out = stream or cast("TextIO", sys.stderr)
    handler = logging.StreamHandler(out)
    console = log_format == "console" or (log_format == "auto" and out.isatty())
    handler.setFormatter(_console(colors=out.isatty()) if console else JsonFormatter())
    root.handlers[:] = [handler]
    root.setLevel("INFO")
    if level is not None:
        _set_level(level)
    if structlogs:
        structlogs[:] = [_to_standard_library]


def _own_structlog() -> list[Processor] | None:
    """The processors of structlog's while the application has not configured it. They are changed
    in place: loggers that were bound already keep this list, and structlog counts as not
    configured, so that the application may still do it.
    """
    processors: Any = structlog.get_config()["processors"]
    if structlog.is_configured() or not isinstance(processors, list):
        return None
    return cast("list[Processor]", processors)


def _print_no_values(processors: list[Processor]) -> None:
    """Structlog's own tracebacks show the variables of each frame, and with them what was passed to
    a task.
    """
    if processors[-1] is not _to_standard_library:
        processors[-1] = structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
            exception_formatter=structlog.dev.plain_traceback,
        )


def _to_standard_library(_: Any, method: str, fields: EventDict) -> EventDict:
    """Hand a line on, as the last and only processor."""
    logger = logging.getLogger(_module_of_caller())
    level = logging.ERROR if method == "exception" else _LEVELS.get(method, logging.INFO)
    if logger.isEnabledFor(level):
        said: Any = fields
        for step in _ON_THE_WAY:
            said = step(logger, method, said)
        # As ``wrap_for_formatter`` marks it.
        marks = {"_logger": logger, "_name": method}
        record = logger.makeRecord(logger.name, level, "", 0, said, (), None, method, marks)
        logger.handle(record)
    raise structlog.DropEvent


def _module_of_caller() -> str:
    """Whose line it is: structlog's default loggers do not know their names."""
    # Of ``ainfo`` and the like, which run in another thread.
    caller: Any = getattr(structlog.contextvars, "_ASYNC_CALLING_STACK", None)
    frame: FrameType | None = (caller and caller.get(None)) or inspect.currentframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module != __name__ and module.partition(".")[0] != "structlog":
            return module
        frame = frame.f_back
    return "structlog"


def _fields_apart(_: Any, __: str, fields: EventDict) -> EventDict:
    said = fields.pop("event", "")
    return {"event": said, **_kept_apart(cast("dict[str, Any]", fields))}


_ON_THE_WAY: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    _fields_apart,
    structlog.processors.StackInfoRenderer(),
    structlog.dev.set_exc_info,
    # Here, while the exception is the current one: a handler may be in another thread.
    structlog.processors.format_exc_info,
)


def _set_level(level: str) -> None:
    """Instead of whatever the application has set, for streaq alone too."""
    logging.getLogger().setLevel(level.upper())
    own = logging.getLogger("streaq")
    if own.level != logging.NOTSET:
        own.setLevel(level.upper())


def _console(*, colors: bool) -> logging.Formatter:
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
    ]
    foreign: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_extra,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign,
        processors=[
            _streaqs_own,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *shared,
            _visible_exception,
            # The default formatter would print the values of local variables.
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_visible_traceback),
        ],
    )


def _add_extra(_: Any, __: str, fields: EventDict) -> EventDict:
    fields.update(_kept_apart(extra_of(fields["_record"])))
    return fields


def _streaqs_own(_: Any, __: str, fields: EventDict) -> EventDict:
    line = fields["_record"].msg
    if not isinstance(line, Line):
        return fields
    shown: EventDict = {"_record": fields["_record"], "_from_structlog": True}
    for name, value in line.items():
        said = " > ".join(value) if name == "traceback" else value
        shown[name] = visible(" ".join(said.split())) if isinstance(said, str) else said
    return shown


def _visible_exception(_: Any, __: str, fields: EventDict) -> EventDict:
    """Where the chain before has made a text of it."""
    said = fields.get("exception")
    if isinstance(said, str):
        fields["exception"] = visible(said)
    return fields


def _visible_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(visible(text.getvalue()))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``timestamp`` (ISO 8601, UTC), ``level``, ``logger``, ``event``,
    then the fields. An exception is told without the values of variables.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        head: dict[str, Any] = {
            "timestamp": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.msg, Line):
            head.update(record.msg)
        else:
            head["event"] = ""  # in its place
            head.update(current_fields())
            head.update(_kept_apart(extra_of(record)))
            head.update(_words(record))
        if record.exc_info:
            head["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            head["stack"] = self.formatStack(record.stack_info)
        return _encode(head)


def _otherwise(value: object) -> Any:
    """What a library has no form for; so that both write the same, what one of them has."""
    if isinstance(value, tuple):
        return list(cast("tuple[Any, ...]", value))
    if isinstance(value, UUID):
        return str(value)
    return value.value if isinstance(value, Enum) else _repr(value)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a user's class may raise what it likes
        return f"({type(value).__name__}: it has no text)"


_encode_slowly = json.JSONEncoder(
    default=_otherwise, ensure_ascii=False, separators=(",", ":")
).encode


def _encode(fields: dict[str, Any]) -> str:
    """In one line and without blanks, whichever library does it; NaN is null with orjson."""
    if orjson is not None:
        try:
            return orjson.dumps(fields, _otherwise, _AS_REPR).decode()
        except TypeError:  # a number of more than 64 bits, a name that is no text
            pass
    try:
        return _encode_slowly(fields)
    except Exception:  # noqa: BLE001 - what goes round, a key that is a tuple, a class that raises
        return _encode_slowly({name: _encodable(fields[name]) for name in fields})


def _encodable(value: object) -> object:
    try:
        _encode_slowly(value)
    except Exception:  # noqa: BLE001 - as above
        return _repr(value)
    return value


def _words(record: logging.LogRecord) -> dict[str, Any]:
    """What an application's line says. One of structlog's has it in a dict, beside its fields;
    any other dict is a message like any other.
    """
    if isinstance(record.msg, dict) and hasattr(record, "_logger"):
        # One of a chain that leaves exceptions to the formatter has them only as a flag.
        own = dict(cast("dict[str, Any]", record.msg))
        return cast("dict[str, Any]", structlog.processors.format_exc_info(None, "", own))
    return {"event": record.getMessage()}


_OURS = frozenset({"timestamp", "level", "logger", "event"})


def _kept_apart(fields: dict[str, Any]) -> dict[str, Any]:
    """With other names for those that would hide what every line says."""
    return {f"extra_{name}" if name in _OURS else name: fields[name] for name in fields}


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the application added to a record with ``extra=``."""
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD
        and not name.startswith("_")
        # TaskContextFilter writes empty ones outside of tasks.
        and not (name in CONTEXT_FIELDS and value == "")
    }


def _iso(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    """The part of a time that many lines have in common."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
