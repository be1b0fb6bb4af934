"""The arithmetic of the harness: what it says of samples must be true of them."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import bars, guard, profile, report
from benchmarks.entrants import ENTRANTS, ENVIRONMENTS, OURS, UPSTREAM, chosen
from benchmarks.figures import Book, Cell
from benchmarks.measures import percentile
from benchmarks.venvs import HERE
from benchmarks.workloads import WORKLOADS


def book_of(**samples: dict[str, list[float]]) -> Book:
    """A book whose keys read workload__entrant."""
    book = Book()
    for key, metrics in samples.items():
        workload, entrant = key.split("__")
        cell = book.fresh(workload.replace("_", "-"), entrant)
        cell.samples = metrics
    return book


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([3.0], 0.99) == 3


def test_every_entrant_has_an_environment_and_a_script() -> None:
    for entrant in ENTRANTS:
        assert entrant.environment in ENVIRONMENTS
        assert (HERE / entrant.script).exists()


def test_variants_name_workloads_that_exist() -> None:
    known = {workload.name for workload in WORKLOADS}
    for entrant in ENTRANTS:
        assert entrant.only is None or entrant.only <= known


def test_only_takes_in_variants_and_always_ours() -> None:
    assert {e.name for e in chosen(["celery"])} >= {OURS, "celery", "celery-prefork"}
    assert chosen(["celery"])[0].name == OURS
    assert len(chosen([])) == len(ENTRANTS)
    with pytest.raises(ValueError, match="unknown peer cellery"):
        chosen(["cellery"])


def test_a_cell_survives_the_file() -> None:
    cell = Cell("drain", "saq")
    cell.add(400, {"rate": 1234.5678})
    cell.fail("stalled")
    again = Cell.from_json(cell.to_json())
    assert again.samples == {"rate": [1234.6]}
    assert (again.n, again.failed, again.note) == (400, 1, "")


def test_a_cell_is_lost_only_without_a_figure() -> None:
    cell = Cell("drain", "saq")
    cell.fail("died")
    assert not cell.is_lost()
    cell.fail("died again")
    assert cell.is_lost()
    cell.add(1, {"rate": 1})
    assert not cell.is_lost()


def test_a_ratio_is_taken_round_by_round() -> None:
    book = book_of(
        bar_drain__ours={"rate": [1200, 2600, 1400]},
        bar_drain__streaq={"rate": [100, 200, 100]},
    )
    verdict = bars.BARS[0].judge(book)
    assert verdict.met is True
    assert verdict.figure.startswith("13 x")
    assert verdict.spread == "12 to 14"


@pytest.mark.parametrize(("start", "met"), [([1.0, 1.2], True), ([2.4, 2.6], False)])
def test_the_latency_bar_asks_for_less_than_half(start: list[float], *, met: bool) -> None:
    book = book_of(
        bar_latency__ours={"start_p50": start}, bar_latency__streaq={"start_p50": [2.6, 2.6]}
    )
    bar = next(bar for bar in bars.BARS if bar.metric == "start_p50")
    assert bar.judge(book).met is met


def test_a_bar_without_figures_is_neither_passed_nor_missed() -> None:
    assert {verdict.met for verdict in bars.verdicts(Book())} == {None}
    assert {verdict.met for verdict in bars.targets(Book())} == {None}


def test_targets_compare_with_the_fastest_peer() -> None:
    book = book_of(
        drain__ours={"rate": [30_000]},
        drain__streaq={"rate": [1_000]},
        drain__saq={"rate": [4_000]},
        drain__floor={"rate": [60_000]},
    )
    by_title = {verdict.title: verdict for verdict in bars.targets(book)}
    assert by_title["drain against streaq 7.2.0"].met is True
    assert by_title["drain against the fastest peer"].met is False
    assert by_title["bare loop / ours"].met is False


def test_bar_sizes_are_those_that_the_bars_name() -> None:
    sizes = {workload.name: workload.fixed for workload in bars.bar_workloads()}
    assert sizes["bar-drain"] == sizes["bar-batch"] == 20_000
    assert {bar.workload for bar in bars.BARS} <= set(sizes)


def test_the_report_keeps_what_stands_around_its_markers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("report")
    readme = folder / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "draw", lambda _book, _folder: None)
    book = book_of(drain__ours={"rate": [30_000, 32_000]})
    book.path = folder / "results.json"
    book.cells["drain", UPSTREAM] = Cell("drain", UPSTREAM, note="n/a (asleep)")
    report.write(book)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "31,000 <sub>30,000–32,000</sub> | n/a |" in text
    assert "no-op drain, 1 worker, streaq 7.2.0: n/a (asleep)" in text


def test_the_guard_names_what_grew_and_lets_the_rest_be() -> None:
    kept = {"redis_bytes": 100.0, "python": {"3.11": {"calls": 50.0}}}
    now = {"redis_bytes": 114.0, "python": {"3.11": {"calls": 60.0}, "3.99": {"calls": 1e9}}}
    assert guard.compare(now, kept) == ["calls on 3.11: 60 a task, +20% against 50"]


@pytest.mark.parametrize(
    ("stack", "room"),
    [
        (
            ["x/redis/asyncio/client.py:execute_command", "x/streaq/broker/exchange.py:call"],
            "client",
        ),
        (["x/lib/contextlib.py:__exit__", "x/streaq/engine/pump.py:run"], "engine"),
        (["x/streaq/wire.py:dumps", "x/streaq/engine/attempt.py:settle"], "serialising"),
        (["x/adapters/_common.py:tick", "x/streaq/engine/attempt.py:invoke"], "user call"),
        (["x/lib/abc.py:f"], profile.OTHER),
    ],
)
def test_the_innermost_known_frame_names_the_room(stack: list[str], room: str) -> None:
    assert profile.room_of(stack).startswith(room)


def test_a_budget_survives_the_file() -> None:
    budget = profile.Budget("ours", 1000, 1000, 500, {"client (redis-py, hiredis)": 3})
    again = profile.Budget(**dataclasses.asdict(budget))
    assert "1000.0" in profile.table([again])
