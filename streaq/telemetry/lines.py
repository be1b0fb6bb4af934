"""A line of streaq's own, and what hands it to the standard library's logger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from streaq.telemetry.names_logs import LOGGER
from streaq.telemetry.records import Records

DEBUG, INFO, WARNING, ERROR = (
    logging.DEBUG,
    logging.INFO,
    logging.WARNING,
    logging.ERROR,
)
METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}


class Line(dict[str, Any]):
    """The fields of one line. As text (for a formatter that knows nothing of structlog) it is
    the event followed by ``name=value`` pairs.
    """

    def __str__(self) -> str:
        pairs = (f"{name}={value!r}" for name, value in self.items() if name != "event")
        return " ".join((str(self.get("event", "")), *pairs))


def writer_of(level: int) -> Callable[..., None]:
    """What writes a line to the standard library's logger: ``write(event, **fields)``.

    It makes the record itself. A structlog logger that ends there, or the logger's own methods,
    would look for the caller of each line, which takes longer than all the rest.
    """
    logger = logging.getLogger(LOGGER)
    # structlog's ``ProcessorFormatter`` knows such records for structlog's own.
    records = Records(logger, level, {"_logger": logger, "_name": METHODS[level]})

    def write(event: str, **fields: Any) -> None:
        if logger.isEnabledFor(level):
            logger.handle(records.make(Line(event=event, **fields)))

    return write
