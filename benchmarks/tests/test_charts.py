"""What the plots are given: nothing for what was not measured, and everybody who was."""

from __future__ import annotations

from benchmarks import charts
from benchmarks.charts import CHARTS, captions, spec
from benchmarks.figures import Book
from benchmarks.profile import OTHER, ROOMS, Budget
from benchmarks.tests.test_harness import book_of
from benchmarks.venvs import HERE
from benchmarks.workloads import BY_NAME


def test_every_panel_shows_a_metric_that_is_measured() -> None:
    known = {(w.name, row.metric) for w in BY_NAME.values() for row in (*w.rows, *w.costs)}
    shown = {(panel.workload, panel.metric) for chart in CHARTS for panel in chart.panels}
    assert shown <= known


def test_an_empty_book_draws_nothing() -> None:
    assert spec(Book()) == {"charts": [], "budget": []}
    assert captions(Book()) == []


def test_a_panel_has_the_median_the_range_and_the_mark() -> None:
    book = book_of(latency__ours={"start_p50": [3.0, 1.0, 2.0], "start_p99": [9.0]})
    (chart,) = spec(book)["charts"]
    (panel,) = chart["panels"]
    assert panel["bars"] == [
        {"label": "ours", "kind": "ours", "value": 2.0, "low": 1.0, "high": 3.0, "mark": 9.0}
    ]


def test_what_was_cut_short_is_marked() -> None:
    book = book_of(backlog__rq={"rate_full": [300.0], "rate_empty": [310.0]})
    cell = book.get("backlog", "rq")
    assert cell is not None
    cell.cap = "only 10 wait"
    (chart,) = spec(book)["charts"]
    assert chart["panels"][0]["bars"][0]["label"] == "rq (SimpleWorker) †"


def test_colours_tell_us_from_the_peers() -> None:
    kinds = {name: charts.kind(name) for name in ("ours", "ours-trio", "streaq", "saq", "floor")}
    assert kinds == {
        "ours": "ours",
        "ours-trio": "variant",
        "streaq": "streaq",
        "saq": "peer",
        "floor": "floor",
    }


def test_every_room_of_the_budget_has_a_colour() -> None:
    rooms = {name.partition(" (")[0] for name in (*(name for name, _ in ROOMS), OTHER)}
    named = (HERE / "plots.py").read_text()
    assert [room for room in rooms if f'"{room}": "#' not in named] == []


def test_the_parts_of_a_budget_add_up_to_worker_and_redis() -> None:
    kept = vars(Budget("ours", 1e4, 100, 60, {"engine: x": 40.0, "client (y)": 20.0}, 30, 12))
    assert charts.parts(kept) == [
        ("engine: x", 40.0),
        ("client", 20.0),
        ("Redis: scripts", 12),
        ("Redis: everything else", 18),
    ]
