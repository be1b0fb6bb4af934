"""What was passed to a task is covered wherever the message of an error quotes it."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest

from streaq.telemetry import masking
from streaq.telemetry.masking import LEFT_OUT, MAX_CHARACTERS, MAX_VALUES, masked

SECRET = "S3CR3T-4711"
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
SPOKEN = 'it\'s\n"so"'


class Plain:
    def __init__(self, card: object) -> None:
        self.card = card


@dataclass(slots=True)
class Slotted:
    card: object
    cards: list[object] = field(default_factory=list)


class Grumpy:
    """Raises whatever it is asked."""

    def __init__(self) -> None:
        self.card = SECRET

    def __repr__(self) -> str:
        raise ZeroDivisionError

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]


class Shade(Enum):
    DARK = SECRET


class Dressed:
    def __repr__(self) -> str:
        return "<order of Ann>"


@pytest.mark.parametrize(
    "passed",
    [SECRET, SECRET.encode(), bytearray(SECRET, "ascii"), [SECRET], (1, (SECRET,)),
     {SECRET: 1}, {1: {"a": SECRET}}, {SECRET}, frozenset([SECRET]), deque([SECRET]),
     Plain(SECRET), Plain([Plain(SECRET)]), Slotted(SECRET), Slotted(1, [SECRET]),
     Grumpy(), Shade.DARK, [Grumpy(), SECRET]],
    ids=lambda passed: type(passed).__name__,
)  # fmt: skip
def test_found_wherever_it_is(passed: Any) -> None:
    assert masked(f"no {SECRET!r}!", (passed,), {}) == "no '***'!"
    assert masked(f"no {SECRET}", (), {"given": passed}) == "no ***"


@pytest.mark.parametrize(
    ("value", "written"),
    [(4711, "4711"), (47.11, "47.11"), (Decimal("47.110"), "47.110"),
     (Decimal("47.110"), "Decimal('47.110')"), (UUID(int=4711), str(UUID(int=4711))),
     (UUID(int=4711), UUID(int=4711).hex), (NEW_YEAR, "2026-01-01 00:00:00+00:00"),
     (NEW_YEAR, "2026-01-01T00:00:00+00:00"), (NEW_YEAR.date(), "2026-01-01"),
     (ip_address("10.1.2.3"), "10.1.2.3"), (PurePosixPath("/home/ann"), "/home/ann"),
     (SPOKEN, repr(SPOKEN)[1:-1]), ("Zo\xe9 1", json.dumps("Zo\xe9 1")[1:-1]),
     (b"\xffkey", repr(b"\xffkey")[2:-1]),
     (Dressed(), "<order of Ann>")],
    ids=str,
)  # fmt: skip
def test_found_however_it_is_written(value: object, written: str) -> None:
    assert masked(f"bad value: {written}!", (value,), {}) == "bad value: ***!"


def test_long_values_are_found_in_part() -> None:
    token = "".join(chr(97 + i * 7 % 26) for i in range(300))
    quoted = f"bad: '{token[:20]}...{token[-15:]}' and {token[40:51]}"
    assert masked(quoted, (token,), {}) == f"bad: '***...***' and {token[40:51]}"


def test_what_overlaps_is_covered_once() -> None:
    assert masked("abcdefgh, abcd", ("abcdef", "cdefgh", "abcd"), {}) == "***, ***"


@pytest.mark.parametrize("passed", [True, None, "abc", 471, "", [], {}])
def test_what_says_nothing_stays(passed: object) -> None:
    text = "True None abc 471"
    assert masked(text, (passed,), {}) == text


def test_what_refers_to_itself_has_an_end() -> None:
    ring: list[object] = [SECRET]
    ring.append(ring)
    one = Plain(ring)
    ring.append(one)
    assert masked(SECRET, (one, ring), {}) == "***"


@pytest.mark.parametrize(
    "passed",
    [list(range(MAX_VALUES + 1)), "x" * (MAX_CHARACTERS + 1)],
    ids=["values", "characters"],
)
def test_of_too_much_nothing_is_shown(passed: object) -> None:
    assert masked(f"no {SECRET}", (passed, SECRET), {}) == LEFT_OUT


def test_what_is_too_deep_is_too_much() -> None:
    deep: object = SECRET
    for _ in range(masking.MAX_DEPTH):
        deep = [deep]
    assert masked(SECRET, (deep,), {}) == LEFT_OUT


@pytest.mark.parametrize(
    "passed",
    ["0" * 199_000, b"\0" * 40_000, "ab" * 90_000, ["00000000"] * 4_999, [4711] * 4_999,
     ["0" * n for n in range(4, 500)]],
    ids=["text", "bytes", "period", "equal texts", "equal numbers", "one in the other"],
)  # fmt: skip
def test_what_repeats_costs_no_more_than_what_does_not(passed: Any) -> None:
    text = f"bad value: {passed[0] if isinstance(passed, list) else passed!r}"[:1_000]
    began = time.process_time()
    said = masked(f"{text} {SECRET} {text}", (passed, SECRET), {})
    # It was minutes when each place of each part was looked at.
    assert time.process_time() - began < 2
    assert SECRET not in said


def test_what_repeats_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        masked("bad value: " + "0" * 900, ("0" * 2_000,), {})
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # it was 200
    finally:
        tracemalloc.stop()


def test_what_repeats_is_covered_whole() -> None:
    assert masked("no " + "0" * 900 + "!", ("0" * 2_000,), {}) == "no ***!"
    assert masked("xabababy, aba, abab", ("abab",), {}) == "x***y, aba, ***"
    assert masked("0000 00000 000", (["0000"] * 9,), {}) == "*** *** 000"


def test_a_cut_is_made_in_the_text_as_it_was() -> None:
    token = "".join(chr(97 + i * 7 % 26) for i in range(9_000))
    text = f"bad value: {token} is no number"
    assert masked(text, (token,), {}, limit=500) == "bad value: ***..."
    assert masked(f"{'x' * 495} {token}", (token,), {}, limit=500) == f"{'x' * 495} ***..."
    assert masked(f"{'x' * 500}{token}", (token,), {}, limit=500) == f"{'x' * 500}..."
    assert masked("abcd efgh", ("efgh",), {}, limit=9) == "abcd ***"
    assert masked("abcd efgh", ("efgh",), {}, limit=8) == "abcd ***..."


@pytest.mark.parametrize("limit", [50, 500])
@pytest.mark.parametrize("size", [20, 600, 3_000])
def test_what_is_cut_in_two_shows_no_part_of_a_secret(limit: int, size: int) -> None:
    class Loud:
        def __repr__(self) -> str:
            return "<" + "".join(f"{i:04x}" for i in range(size // 4)) + ">"

    for before in range(limit - 5, limit + 1):
        said = masked("." * before + repr(Loud()) + " no", (Loud(),), {}, limit=limit)
        assert said == "." * before + ("***" if before < limit else "") + "..."
