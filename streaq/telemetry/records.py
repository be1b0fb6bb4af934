"""Log records, made from a copy of the first.

The standard library finds out anew for each record which process and thread it is in, and takes
the path of the caller apart, which takes longer than writing the line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import Any


class Records:
    """Makes the records of one logger at one level.

    What the application has set itself, a record factory or a class of loggers that makes its own,
    is asked for each record, and so is the standard library in other threads than the first.

    :param extra: attributes that each record has besides.
    """

    def __init__(self, logger: logging.Logger, level: int, extra: dict[str, Any]) -> None:
        self._logger = logger
        self._level = level
        self._extra = extra
        self._is_own = type(logger).makeRecord is not logging.Logger.makeRecord
        self._first: tuple[threading.Thread, dict[str, Any]] | None = None

    def make(self, message: object) -> logging.LogRecord:
        """One for this message, as of now."""
        if self._is_own or logging.getLogRecordFactory() is not logging.LogRecord:
            return self._ask_logger(message)
        thread, process = threading.current_thread(), os.getpid()
        first = self._first
        if first is None or first[0] is not thread or first[1]["process"] != process:
            record = self._ask_logger(message)
            if first is None or not first[0].is_alive() or first[1]["process"] != process:
                self._first = thread, vars(record).copy()
            return record
        return _copy(first[1], message)

    def _ask_logger(self, message: object) -> logging.LogRecord:
        return self._logger.makeRecord(
            self._logger.name, self._level, __file__, 0, message, (), None, "write", self._extra
        )


def _copy(first: dict[str, Any], message: object) -> logging.LogRecord:
    record = logging.LogRecord.__new__(logging.LogRecord)
    inside = record.__dict__
    inside.update(first)
    now = time.time()
    inside["msg"] = message
    inside["created"] = now
    inside["msecs"] = float(int(now % 1 * 1000))
    inside["relativeCreated"] = first["relativeCreated"] + (now - first["created"]) * 1000
    if "taskName" in first:
        inside["taskName"] = _task_name()
    return record


def _task_name() -> str | None:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop, or Trio's
        return None
    return None if task is None else task.get_name()
