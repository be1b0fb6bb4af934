"""A record made from the first says what the standard library's own would."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from streaq.telemetry.records import Records

OF_ITS_OWN = {"created", "msecs", "relativeCreated"}


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("streaq.events")


@pytest.fixture
def records(logger: logging.Logger) -> Records:
    made = Records(logger, logging.INFO, {"_name": "info"})
    made.make("the first")
    return made


def usual(logger: logging.Logger, message: object) -> logging.LogRecord:
    from streaq.telemetry import records

    return logger.makeRecord(
        logger.name,
        logging.INFO,
        records.__file__,
        0,
        message,
        (),
        None,
        "write",
        {"_name": "info"},
    )


def test_it_is_the_same(logger: logging.Logger, records: Records) -> None:
    before, made, after = usual(logger, "m"), records.make("m"), usual(logger, "m")
    assert type(made) is logging.LogRecord
    for name, value in vars(after).items():
        if name in OF_ITS_OWN - {"msecs"}:
            assert vars(before)[name] <= vars(made)[name] <= value
        elif name != "msecs":
            assert vars(made)[name] == value
    assert made.msecs == int((made.created - int(made.created)) * 1000)
    assert made.getMessage() == "m"


def test_each_is_its_own(records: Records) -> None:
    one, other = records.make("one"), records.make("other")
    one.extra_field = 1
    assert (one.msg, other.msg, hasattr(other, "extra_field")) == ("one", "other", False)


def test_another_thread_is_named(records: Records) -> None:
    found: list[logging.LogRecord] = []
    thread = threading.Thread(target=lambda: found.append(records.make("m")), name="watchdog")
    thread.start()
    thread.join()
    assert found[0].threadName == "watchdog"
    assert records.make("m").threadName == threading.current_thread().name


def test_a_thread_that_has_ended_is_followed_by_another(logger: logging.Logger) -> None:
    made = Records(logger, logging.INFO, {})
    first = threading.Thread(target=made.make, args=("m",))
    first.start()
    first.join()
    assert made.make("m").thread == threading.get_ident()
    assert made._first is not None
    assert made._first[0] is threading.current_thread()


def test_a_fork_is_another_process(records: Records) -> None:
    pid = os.fork()
    if pid == 0:
        right = all(records.make("m").process == os.getpid() for _ in range(2))
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_task_is_named_where_python_does(logger: logging.Logger, records: Records) -> None:
    async def main() -> tuple[Any, Any]:
        theirs, ours = usual(logger, "m"), records.make("m")
        return vars(theirs).get("taskName"), vars(ours).get("taskName")

    theirs, ours = asyncio.run(main())
    assert ours == theirs


def test_loggers_of_the_applications_own_are_asked_each_time() -> None:
    class Counting(logging.Logger):
        count = 0

        def makeRecord(self, *args: Any, **options: Any) -> logging.LogRecord:  # noqa: N802
            record = super().makeRecord(*args, **options)
            record.number = self.count
            self.count += 1
            return record

    records = Records(Counting("mine"), logging.INFO, {})
    assert [vars(records.make("m"))["number"] for _ in range(3)] == [0, 1, 2]


@pytest.fixture
def factory() -> Iterator[type[logging.LogRecord]]:
    class Own(logging.LogRecord):
        pass

    usual = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Own)
    yield Own
    logging.setLogRecordFactory(usual)


def test_an_applications_factory_is_used(
    records: Records, factory: type[logging.LogRecord]
) -> None:
    assert type(records.make("m")) is factory
