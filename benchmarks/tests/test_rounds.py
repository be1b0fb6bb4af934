"""A session: what it keeps when a run fails, when time is up, and when only one row is repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from benchmarks import measures
from benchmarks.entrants import BY_NAME, Entrant
from benchmarks.figures import Book
from benchmarks.measures import Metrics, Setup, within
from benchmarks.rounds import Plan, Session
from benchmarks.stage import RunError, without_folders
from benchmarks.workloads import Workload

OURS, SAQ = BY_NAME["ours"], BY_NAME["saq"]

Measure = Callable[[Entrant, Setup], Metrics]


def row(name: str, measure: Measure, *, once: bool = False, needs: Sequence[str] = ()) -> Workload:
    return Workload(name, name, "rate", "tasks/s", measure, once=once, needs=tuple(needs))


def session(book: Book, plan: Plan | None = None, *entrants: Entrant) -> Session:
    who = list(entrants or (OURS, SAQ))
    made = Session(book, plan or Plan(runs=1), who)
    made.missing = {entrant.name: {} for entrant in who}
    return made


def always(rate: float) -> Measure:
    return lambda _entrant, _setup: Metrics(rate=rate)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "results.json")


def test_an_error_of_any_kind_costs_its_own_run_only(book: Book) -> None:
    def fails_for_us(entrant: Entrant, setup: Setup) -> Metrics:
        if entrant is OURS:
            raise ConnectionResetError("gone")
        return Metrics(rate=7)

    session(book, Plan(runs=2)).run([row("drain", fails_for_us), row("spin", always(9))])
    again = Book.load(book.path)
    failed = again.get("drain", "ours")
    assert failed is not None
    assert (failed.note, failed.failed) == ("ConnectionResetError('gone')", 2)
    assert again.median("drain", "saq", "rate") == 7
    assert again.median("spin", "ours", "rate") == 9


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("No such file: '/home/me/.venvs/docket/lib/METADATA'", "No such file: 'METADATA'"),
        (
            "cannot connect to redis://127.0.0.1:6379/0",
            "cannot connect to redis://127.0.0.1:6379/0",
        ),
        ("3/4 of http://host/a/b", "3/4 of http://host/a/b"),
    ],
)
def test_what_is_kept_names_no_folder(text: str, kept: str) -> None:
    assert without_folders(text) == kept


def test_what_was_measured_is_on_disk_before_the_next_run(book: Book) -> None:
    seen: list[float | None] = []

    def look(entrant: Entrant, setup: Setup) -> Metrics:
        seen.append(Book.load(book.path).median("drain", "ours", "rate"))
        return Metrics(rate=5)

    session(book).run([row("drain", look)])
    assert seen == [None, 5]


def test_repeating_one_row_leaves_the_others(book: Book) -> None:
    session(book).run([row("drain", always(1)), row("spin", always(2))])
    later = Book.load(book.path)
    session(later).run([row("spin", always(3))])
    again = Book.load(book.path)
    assert again.median("drain", "saq", "rate") == 1
    assert again.median("spin", "saq", "rate") == 3


def test_time_that_is_up_leaves_what_was_measured_before(book: Book) -> None:
    session(book).run([row("drain", always(1))])
    plan = Plan(runs=1, budget_s=1)
    plan.started -= 2
    session(book, plan).run([row("drain", always(2))])
    assert book.median("drain", "ours", "rate") == 1


def test_long_rows_run_in_the_first_round_only(book: Book) -> None:
    ran: list[str] = []

    def note(entrant: Entrant, setup: Setup) -> Metrics:
        ran.append(entrant.name)
        return Metrics(rate=1)

    session(book, Plan(runs=3), OURS).run([row("waiters", note, once=True), row("spin", note)])
    assert len(ran) == 1 + 3


def test_what_a_queue_lacks_is_not_run(book: Book) -> None:
    made = session(book)
    made.missing["saq"] = {"lanes": "no priorities"}
    made.run([row("lanes", always(1), needs=["lanes"])])
    lacking = book.get("lanes", "saq")
    assert lacking is not None
    assert lacking.note == "n/a (no priorities)"
    assert book.median("lanes", "ours", "rate") == 1


def test_a_drain_is_sized_by_what_the_entrant_showed_before(book: Book) -> None:
    sizes: list[int] = []

    def size(entrant: Entrant, setup: Setup) -> Metrics:
        sizes.append(setup.n)
        return Metrics(rate=2_000)

    session(book, Plan(runs=2, seconds=3), SAQ).run([row("drain", size)])
    assert sizes == [int(SAQ.rate * 3), 6_000]


def test_a_cap_is_kept_with_the_figure(book: Book) -> None:
    def capped(entrant: Entrant, setup: Setup) -> Metrics:
        metrics = Metrics(rate=1)
        metrics.cap = "only 10 wait"
        return metrics

    session(book).run([row("backlog", capped)])
    kept = Book.load(book.path).get("backlog", "ours")
    assert kept is not None
    assert kept.cap == "only 10 wait"


def test_a_backlog_is_cut_to_what_can_be_enqueued_in_time() -> None:
    asked = Setup(n=1, queued=1_000_000, scheduled=100_000, patience_s=30)
    assert within(asked, 40_000) == (asked, "")
    given, cap = within(asked, 1_100_000 / 300)
    assert (given.queued, given.scheduled) == (100_000, 10_000)
    assert cap == (
        "only 100,000 wait and 10,000 are scheduled: to enqueue them all takes 5.0 min at its rate"
    )


def test_waiters_beyond_the_file_limit_are_a_cap_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def start_workers(self) -> None: ...

        def client(self, *_: object, timeout: float) -> None:
            raise RunError("waiters failed: OSError: [Errno 24] Too many open files: 'METADATA'")

    monkeypatch.setattr(measures, "Stage", Full)
    with pytest.raises(RunError, match=r"cannot: 10,000 waiters take more connections than the \d"):
        measures.waiters(SAQ, Setup(n=10_000))
