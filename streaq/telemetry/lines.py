"""A line of streaq's own, and what hands it to the standard library's logger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor

from streaq.telemetry.names_logs import LOGGER
from streaq.telemetry.records import Records

DEBUG, INFO, WARNING, ERROR = (
    logging.DEBUG,
    logging.INFO,
    logging.WARNING,
    logging.ERROR,
)
METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}

_USUAL: tuple[Processor, ...] = (
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
)


class Line(dict[str, Any]):
    """The fields of one line. As text (for a formatter that knows nothing of structlog) it is
    the event followed by ``name=value`` pairs.
    """

    level: int = INFO

    def copy(self) -> dict[str, Any]:
        """The fields, and what the application gives to its own lines of structlog.

        Structlog's ``ProcessorFormatter`` begins with a copy, and takes the line for one that has
        been through the application's processors: who logs by way of the standard library has
        timestamp, level and the like from there. So it goes through them here. Formatters that
        know nothing of structlog see the fields alone.
        """
        fields: EventDict = dict(self)
        logger = logging.getLogger(LOGGER)
        for processor in _before_the_formatter():
            # The line says itself which task it is of; it may be written inside of another.
            if processor is not structlog.contextvars.merge_contextvars:
                with suppress(structlog.DropEvent):  # it is too late for that
                    fields = cast("EventDict", processor(logger, METHODS[self.level], fields))
        return cast("dict[str, Any]", fields)

    def __str__(self) -> str:
        pairs = (f"{name}={value!r}" for name, value in self.items() if name != "event")
        return " ".join((str(self.get("event", "")), *pairs))


def _before_the_formatter() -> Sequence[Processor]:
    """The application's own processors if they end at the formatter, else the usual ones."""
    if structlog.is_configured():
        own = tuple(structlog.get_config()["processors"])
        if own and own[-1] is structlog.stdlib.ProcessorFormatter.wrap_for_formatter:
            return own[:-1]
    return _USUAL


def writer_of(level: int) -> Callable[..., None]:
    """What writes a line to the standard library's logger: ``write(event, **fields)``.

    It makes the record itself. A structlog logger that ends there, or the logger's own methods,
    would look for the caller of each line, which takes longer than all the rest.
    """
    logger = logging.getLogger(LOGGER)
    # Structlog's ``ProcessorFormatter`` knows such records for structlog's own, whose fields it
    # keeps apart; of others it has the text alone.
    records = Records(logger, level, {"_logger": logger, "_name": METHODS[level]})

    def write(event: str, **fields: Any) -> None:
        if logger.isEnabledFor(level):
            line = Line(event=event, **fields)
            line.level = level
            logger.handle(records.make(line))

    return write
