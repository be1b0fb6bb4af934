"""A line is the same with and without orjson."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from streaq import TaskStatus
from streaq.telemetry.json_lines import encode_slowly, make_encoder
from streaq.telemetry.logs import Line


@dataclass
class Order:
    number: int


FIELDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "plain": {"event": "task.finished", "try": 1, "duration_ms": 0.125, "ok": True, "error": None},
    "text": {"message": 'é "quoted"\n\t\x00 \u2028 𝄞'},
    "nested": {"places": ["a:1", "b:2"], "extra": {"a": (1, 2)}},
    "subclasses": {"status": TaskStatus.DONE, "line": Line(event="x")},
    "objects": {"order": Order(1), "at": datetime(2026, 1, 1, tzinfo=UTC), "type": int, "set": {1}},
    "huge": {"number": 2**80, "list": [2**80]},
    "odd keys": {"counts": {1: 2, "a": 3}},
    "half a character": {"message": "\ud800"},
}


@pytest.fixture(params=["orjson", "json"])
def encode(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], str]:
    if request.param == "json":
        monkeypatch.setitem(sys.modules, "orjson", None)
        assert make_encoder() is encode_slowly
    return make_encoder()


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_a_line_is_the_same(
    encode: Callable[[dict[str, Any]], str], fields: dict[str, Any]
) -> None:
    line = encode(fields)
    assert "\n" not in line
    assert json.loads(line) == json.loads(encode_slowly(fields))


def test_orjson_is_used_where_it_is_installed() -> None:
    pytest.importorskip("orjson")
    assert make_encoder() is not encode_slowly
