"""Row by row: who is ahead, what a row that we lose says, and that no reason goes stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import standings, tables
from benchmarks.standings import NO_REASON, REASONS, load_reasons, unexplained
from benchmarks.tests.test_harness import book_of
from benchmarks.workloads import WORKLOADS


def reasons_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "reasons.toml"
    path.write_text(text)
    return path


def test_more_is_better_for_a_rate_and_less_for_a_latency() -> None:
    book = book_of(
        drain__ours={"rate": [20.0], "commands": [9.0]},
        drain__saq={"rate": [10.0], "commands": [6.0]},
        latency__ours={"start_p50": [1.0]},
        latency__huey={"start_p50": [4.0]},
        latency__arq={"start_p50": [9.0]},
    )
    found = {(s.workload.name, s.row.metric): (s.ahead, s.times) for s in standings.standings(book)}
    assert found == {
        ("drain", "rate"): (True, 2.0),
        ("drain", "commands"): (False, pytest.approx(2 / 3)),
        ("latency", "start_p50"): (True, 4.0),
    }


def test_a_tie_is_not_ahead() -> None:
    book = book_of(spin__ours={"rate": [870.0]}, spin__saq={"rate": [870.0]})
    assert [s.ahead for s in standings.standings(book)] == [False]


def test_variants_of_peers_count_as_peers() -> None:
    book = book_of(
        **{
            "spin__ours": {"rate": [870.0]},
            "spin__celery": {"rate": [700.0]},
            "spin__celery-prefork": {"rate": [900.0]},
        }
    )
    (only,) = standings.standings(book)
    assert (only.peer, only.ahead) == ("celery (prefork 2)", False)


def test_the_floor_and_our_variants_are_nobody_s_peers() -> None:
    book = book_of(
        **{
            "drain__ours": {"rate": [20.0]},
            "drain__floor": {"rate": [30.0]},
            "drain__ours-trio": {"rate": [40.0]},
        }
    )
    (only,) = standings.standings(book)
    assert only.verdict({}) == "no peer has it"


def test_a_row_that_we_lose_says_why_and_one_that_we_win_does_not() -> None:
    reasons = {("drain", "rate"): "it cheats", ("drain", "commands"): "it promises less"}
    book = book_of(
        drain__ours={"rate": [20.0], "commands": [9.0], "rss_mb": [60.0]},
        drain__saq={"rate": [10.0], "commands": [6.0], "rss_mb": [30.0]},
    )
    text = tables.summary(book, reasons)
    assert "| **behind**: it promises less |" in text
    assert "it cheats" not in text
    assert f"| **behind**: {NO_REASON} |" in text


def test_what_wants_a_reason_is_listed_by_its_key() -> None:
    book = book_of(
        drain__ours={"rate": [10.0], "commands": [9.0]},
        drain__streaq={"rate": [9.0], "commands": [6.0]},
    )
    lines = unexplained(book, {("bars", "drain against the fastest peer"): "the cores are few"})
    assert [line.partition(":")[0] for line in lines] == [
        "[drain] commands",
        '[bars] "drain against streaq 7.2.0"',
    ]


def test_the_kept_reasons_belong_to_rows() -> None:
    assert all(reason for reason in load_reasons(REASONS).values())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[drain]\nratte = "x"', r"no row \[drain\] ratte"),
        ('[bars]\n"faster than light" = "x"', r"no row \[bars\] faster than light"),
        ('[drain]\nrate = " "', r"the reason for \[drain\] rate is empty"),
    ],
)
def test_a_reason_for_nothing_is_an_error(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_reasons(reasons_file(tmp_path, text))


def test_a_reason_is_found_by_workload_and_metric(tmp_path: Path) -> None:
    path = reasons_file(tmp_path, '[latency]\nstart_p50 = """it blocks\nin place"""\n')
    assert load_reasons(path) == {("latency", "start_p50"): "it blocks in place"}


def test_every_figure_of_the_issue_has_a_row() -> None:
    rows = {(w.name, row.metric) for w in WORKLOADS for row in (*w.rows, *w.costs)}
    assert rows >= {
        *(
            (name, "rate")
            for name in ("drain", "drain2", "echo1k", "echo100k", "nap", "nap2", "spin")
        ),
        *((name, "rate") for name in ("lanes", "chain", "batch", "concurrent")),
        *(("latency", f"{what}_{p}") for what in ("start", "result") for p in ("p50", "p99")),
        ("nap", "fraction"),
        ("lateness", "p50"),
        ("lateness", "p99"),
        ("backlog", "rate_full"),
        ("backlog", "ratio"),
        ("backlog", "bytes_per_task"),
        ("abort", "p50"),
        ("waiters", "seconds"),
        ("drain", "commands"),
        ("drain", "bytes"),
        ("drain", "rss_mb"),
    }
