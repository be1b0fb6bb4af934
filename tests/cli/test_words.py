"""How moments, durations and counts are said."""

from __future__ import annotations

import sys
from datetime import datetime

import pytest

from streaq.cli.words import complain, moment, plural, relative, streaq_error
from streaq.types import StreaqError
from streaq.utils import say_ms

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (0, "0 ms"),
        (0.5, "0.5 ms"),
        (9, "9 ms"),
        (12.4, "12 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (1250, "1.25 s"),
        (59_990, "59.99 s"),
        (60_000, "1 min"),
        (250_000, "4 min 10 s"),
        (HOUR_MS, "1 h"),
        (HOUR_MS * 2 + 300_000, "2 h 5 min"),
        (HOUR_MS * 25, "1 d 1 h"),
        (HOUR_MS * 24 * 400, "400 d"),
    ],
)
def test_durations(ms: float, said: str) -> None:
    assert say_ms(ms) == said


def test_a_near_moment_has_no_date() -> None:
    now = round(datetime(2026, 3, 1, 12).astimezone().timestamp() * 1000)
    assert moment(now + 1000, now) == "12:00:01"
    assert moment(now - 20 * HOUR_MS, now) == "2026-02-28 16:00:00"


def test_moments_as_seen_from_now() -> None:
    assert relative(1_500, 1_000) == "in 500 ms"
    assert relative(1_000, 3_000) == "2 s ago"


def test_plurals() -> None:
    assert plural(1, "worker") == "1 worker"
    assert plural(1200, "task") == "1,200 tasks"


def test_a_complaint_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("no\n  good")
    assert capsys.readouterr().err == "error: no good\n"


def test_a_complaint_is_red_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    complain("no good")
    assert capsys.readouterr().err == "\033[1;31merror:\033[0m no good\n"


def test_the_error_inside_of_groups_is_found() -> None:
    error = StreaqError("x")
    assert streaq_error(error) is error
    assert streaq_error(ExceptionGroup("g", [ExceptionGroup("h", [error])])) is error
    assert streaq_error(ExceptionGroup("g", [error, ValueError()])) is None
    assert streaq_error(ValueError()) is None


def test_complaints_do_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain("no \x1b[2J\nway")
    assert capsys.readouterr().err == "error: no \\x1b[2J way\n"
