"""One task costs no more than it did: what the machine's mood plays no part in, counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import guard


@pytest.fixture(scope="module")
def today() -> dict[str, Any]:
    return guard.measure()


@pytest.fixture
def kept(
    today: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], None]:
    """Pretend that a task cost `share` of what it costs today when the figures were kept."""

    def pretend(share: float) -> None:
        figures = {name: value * share for name, value in today.items() if name != "python"}
        python = {
            version: {name: value * share for name, value in counted.items()}
            for version, counted in today["python"].items()
        }
        path = tmp_path / "guard.json"
        path.write_text(json.dumps({**figures, "python": python}))
        monkeypatch.setattr(guard, "FIGURES", path)

    monkeypatch.setattr(guard, "measure", lambda: today)
    return pretend


@pytest.mark.timeout(120)  # the first to ask measures, instruction by instruction
def test_a_task_costs_no_more_than_the_repository_says(
    today: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "measure", lambda: today)
    assert guard.check() == []


def test_everything_the_guard_is_for_is_counted(today: dict[str, Any]) -> None:
    (counted,) = today["python"].values()
    figures = {**{name: value for name, value in today.items() if name != "python"}, **counted}
    assert set(figures) == {"redis_commands", "script_calls", "redis_bytes", "calls", "opcodes"}
    assert min(figures.values()) > 0


def test_a_task_that_grew_by_over_15_per_cent_is_told_figure_by_figure(
    kept: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    kept(1 / 1.17)
    grown = guard.check()
    assert {line.partition(":")[0].partition(" on ")[0] for line in grown} == {
        "redis_commands",
        "script_calls",
        "redis_bytes",
        "calls",
        "opcodes",
    }
    assert all("+17%" in line for line in grown)
    assert guard.main([]) == 1
    assert capsys.readouterr().err.count("grew too much: ") == 5


def test_a_task_that_grew_by_less_is_let_be(kept: Callable[[float], None]) -> None:
    kept(1 / 1.13)
    assert guard.check() == []
    assert guard.main([]) == 0
