"""Real tasks quote their arguments in every kind of error; no line of any format has them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from streaq import StreaqCancelled, StreaqRetry, Worker
from streaq.telemetry import Telemetry, configure_logging
from tests.support import MakeWorker, running, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("root_logger")]

SECRET = "S3CR3T-4711"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Order:
    card: str


class Unprintable:
    def __init__(self, card: str) -> None:
        self.card = card

    def __repr__(self) -> str:
        raise ZeroDivisionError(self.card)


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError(self.args[0])


class Unsendable:
    """A result, or an error's, that quotes itself."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError(f"cannot pickle {SECRET}")


class Unreadable:
    def __reduce__(self) -> Any:
        return _unreadable, (SECRET,)


def _unreadable(card: str) -> None:
    raise ValueError(f"cannot load {card}")


def fail(how: str, card: str) -> Any:
    """Quote a card, one way or another."""
    match how:
        case "key":
            return {}[card]
        case "int":
            return int(card)
        case "chain":
            try:
                return int(card)
            except ValueError as e:
                raise KeyError(card) from e
        case "result":
            return Unsendable()
        case _:
            raise RAISED[how](card)


RAISED: dict[str, Callable[[str], BaseException]] = {
    "retry": lambda card: StreaqRetry(f"again {card}", delay=0),
    "aborts": StreaqCancelled,
    "group": lambda card: ExceptionGroup(f"for {card}", [ValueError(card), KeyError(card)]),
    "exits": SystemExit,
    "mute": Mute,
    "other": lambda card: ValueError(f"it is {card!r} of {len(card)}"),
}
WAYS = ("key", "int", "chain", "result", *RAISED)


class Bench:
    """A worker with tasks that quote, and what it logs."""

    def __init__(self, make_worker: MakeWorker, log_format: Any, **settings: Any) -> None:
        self.out = io.StringIO()
        configure_logging(log_format, "debug", self.out)
        self.worker: Worker[Any] = make_worker(telemetry=Telemetry(traces=False, **settings))
        for name in ("quotes", "quotes_order", "quotes_later"):
            self.worker.task(name=name, max_tries=2)(globals()[f"_{name}"])

    async def run(self) -> None:
        """Have every task run; what they log is in ``out`` then."""
        call = self.worker.enqueue_unsafe
        async with self.worker, running(self.worker):
            tasks = [await call("quotes", how, SECRET) for how in WAYS]
            tasks += [await call("quotes", how=how, card=SECRET) for how in WAYS]
            tasks.append(
                await call("quotes_order", {"order": [Order(SECRET), Unprintable(SECRET)]})
            )
            tasks.append(await call("quotes", "key", SECRET, SECRET, more=SECRET))
            tasks.append(await call("quotes", Unreadable()))
            tasks.append(await call("quotes_later", SECRET))
            tasks.append(await call("nobody", SECRET))
            ids = {task.id for task in tasks}
            for task in tasks:
                assert not (await task.result(10)).success
            await until(lambda: all(self.out.getvalue().count(i) > 1 for i in ids))


async def _quotes(how: str, card: str) -> Any:
    return fail(how, card)


def _quotes_order(order: dict[str, list[Any]]) -> None:
    """A function that is no coroutine, with its secret deep inside."""
    raise LookupError(order["order"][0])


async def _quotes_later(card: str) -> None:
    """Fails to enqueue, with the serializer's own words."""
    await Worker("redis://127.0.0.1:1").codec.dump_call("x", (Unsendable(),), {"card": card})


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_nothing_that_was_passed_is_in_a_line(
    make_worker: MakeWorker, log_format: str
) -> None:
    bench = Bench(make_worker, log_format)
    await bench.run()
    assert [line for line in bench.out.getvalue().splitlines() if SECRET in line] == []
    for told in ("task.failed", "task.retried", "task.aborted", "task.refused", "***"):
        assert told in bench.out.getvalue()


async def test_messages_still_say_what_happened(make_worker: MakeWorker) -> None:
    bench = Bench(make_worker, "json")
    await bench.run()
    lines = [json.loads(line) for line in bench.out.getvalue().splitlines()]
    group = "for *** (2 sub-exceptions) [ValueError: ***; KeyError: '***']"
    said = {(line["event"], line.get("error"), line.get("message")) for line in lines}
    assert said >= {
        ("task.failed", "KeyError", "'***'"),
        ("task.failed", "ValueError", "invalid literal for int() with base 10: '***'"),
        ("task.failed", "ValueError", "it is '***' of 11"),
        ("task.failed", "LookupError", "***"),
        ("task.failed", "ExceptionGroup", group),
        ("task.failed", "SystemExit", "***"),
        ("task.failed", "Mute", "(it has no text: its __str__ raised)"),
        ("task.failed", "StreaqError", "Can't serialise a result: PicklingError"),
        ("task.failed", "StreaqError", "Can't serialise the arguments of task x: PicklingError"),
        ("task.retried", "StreaqRetry", "again ***"),
        ("task.refused", "StreaqError", "Can't read the arguments of task quotes: ValueError"),
    }


async def test_the_stored_result_has_the_whole_message(make_worker: MakeWorker) -> None:
    bench = Bench(make_worker, "json")
    async with bench.worker, running(bench.worker):
        for arguments in (("key", SECRET), ("result", SECRET), (Unreadable(),)):
            result = await (await bench.worker.enqueue_unsafe("quotes", *arguments)).result(10)
            assert SECRET in str(result.exception)


async def test_who_asks_for_arguments_gets_them(make_worker: MakeWorker) -> None:
    bench = Bench(make_worker, "json", log_args=True, log_results=True)
    await bench.run()
    lines = [json.loads(line) for line in bench.out.getvalue().splitlines()]
    messages = {line.get("message") for line in lines}
    assert messages >= {
        f"'{SECRET}'",
        f"Can't serialise a result: PicklingError: cannot pickle {SECRET}",
    }


async def test_who_asks_for_arguments_gets_no_results(make_worker: MakeWorker) -> None:
    bench = Bench(make_worker, "json", log_args=True)
    async with bench.worker, running(bench.worker):
        await (await bench.worker.enqueue_unsafe("quotes", "result", "card")).result(10)
        await until(lambda: "task.failed" in bench.out.getvalue())
    assert SECRET not in bench.out.getvalue()
