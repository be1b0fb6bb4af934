"""Hides what was passed to a task where the message of an exception quotes it.

``KeyError``, ``int()`` and most validators quote what they were given, so the messages of a task's
errors carry its arguments into the log. Here they are looked for, and covered. This happens when
an attempt fails, never when it succeeds.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeAlias, cast

MASK = "***"
LEFT_OUT = "(not shown: too much was passed to the task to look for all of it)"
SHORTEST = 4
"""Characters of what is looked for: shorter texts are part of too many words."""
PART = 12
"""Characters of a longer text that give it away: libraries quote long values in part."""
MAX_DEPTH = 12
MAX_VALUES = 5_000
MAX_CHARACTERS = 200_000
"""Of all that is looked for: a worker must not stand still for the sake of one log line."""

Span: TypeAlias = tuple[int, int]
_PLAIN = (bool, type(None))
_MANY = (list, tuple, set, frozenset, deque)


class TooMuchError(Exception):
    """The arguments have more in them than can be looked for."""


def masked(text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """``text`` with every value of the arguments that is found in it replaced by ``***``.

    Found are texts, numbers, times, ids and the like of four characters and more, at any depth of
    lists, dicts and objects, as ``str`` and ``repr`` and JSON write them; of longer texts parts of
    twelve characters too. What the task made out of its arguments is not found.
    """
    try:
        spans = sorted(_found(text, (args, kwargs)))
    except TooMuchError:
        return LEFT_OUT
    out: list[str] = []
    end = 0
    for start, stop in spans:
        if start > end or not out:
            out += (text[end:start], MASK)
        end = max(end, stop)
    return "".join((*out, text[end:]))


def _found(text: str, arguments: object) -> Iterator[Span]:
    windows: dict[str, list[int]] = {}
    for at in range(len(text) - PART + 1):
        windows.setdefault(text[at : at + PART], []).append(at)
    room = MAX_CHARACTERS
    for value in _leaves(arguments):
        for form in _forms(value):
            room -= len(form)
            if room < 0:
                raise TooMuchError
            yield from _whole(text, form)
            if isinstance(value, (str, bytes, bytearray)):
                yield from _in_part(windows, form)


def _whole(text: str, form: str) -> Iterator[Span]:
    at = text.find(form)
    while at >= 0:
        yield at, at + len(form)
        at = text.find(form, at + 1)


def _in_part(windows: dict[str, list[int]], form: str) -> Iterator[Span]:
    for start in range(len(form) - PART + 1):
        for at in windows.get(form[start : start + PART], ()):
            yield at, at + PART


def _leaves(value: object) -> Iterator[object]:
    """Whatever has no parts, and objects besides their parts."""
    seen: set[int] = set()
    level: list[object] = [value]
    count = 0
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            count += 1
            if count > MAX_VALUES:
                raise TooMuchError
            if isinstance(item, _PLAIN) or id(item) in seen:
                continue
            is_many, parts = isinstance(item, (dict, *_MANY)), _parts(item)
            if not is_many:
                yield item
            if parts:
                seen.add(id(item))
                below.extend(parts)
        if not below:
            return
        level = below
    raise TooMuchError


def _parts(value: object) -> list[object]:
    if isinstance(value, (str, bytes, bytearray, int, float, type)):
        return []
    try:
        if isinstance(value, dict):
            items = cast("dict[object, object]", value).items()
            return [part for pair in items for part in pair]
        if isinstance(value, _MANY):
            return list(cast("Iterable[object]", value))
        if isinstance(value, Enum):
            return [cast("object", value.value)]
        return [*getattr(value, "__dict__", {}).values(), *_slots(value)]
    except Exception:  # noqa: BLE001 - a user's class may raise what it likes
        return []


def _slots(value: object) -> list[object]:
    names = (
        name
        for cls in type(value).__mro__
        for name in _as_names(getattr(cls, "__slots__", ()))
        if not name.startswith("__")
    )
    return [found for name in names if (found := getattr(value, name, None)) is not None]


def _as_names(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _forms(value: object) -> set[str]:
    """How a value may be written in a message."""
    found: set[str] = set()
    for write in _writers(value):
        try:
            found.add(write(value))
        except Exception:  # noqa: BLE001, S112 - a user's class may raise what it likes
            continue
    return {form for form in found if len(form) >= SHORTEST}


def _writers(value: object) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (str, _inside_repr, _inside_json)
    if isinstance(value, bytes | bytearray):
        return (_decoded, _inside_bytes)
    if isinstance(value, int | float):
        return (str, repr)
    return (str, repr, _iso, _hex)


def _inside_repr(value: str) -> str:
    return repr(value)[1:-1]


def _inside_json(value: str) -> str:
    return json.dumps(value)[1:-1]


def _decoded(value: bytes) -> str:
    return bytes(value).decode()


def _inside_bytes(value: bytes) -> str:
    return repr(bytes(value))[2:-1]


def _iso(value: Any) -> str:
    return str(value.isoformat())


def _hex(value: Any) -> str:
    return value.hex if isinstance(value.hex, str) else ""
