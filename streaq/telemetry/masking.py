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
from typing import Any, cast

MASK = "***"
LEFT_OUT = "(not shown: too much was passed to the task to look for all of it)"
SHORTEST = 4
"""Characters of what is looked for: shorter texts are part of too many words."""
PART = 12
"""Characters of a longer text that give it away: libraries quote long values in part."""
REACH = 500
"""Characters beyond a cut that are looked at too: a value that is cut in two is found by them."""
MAX_DEPTH = 12
MAX_VALUES = 5_000
MAX_CHARACTERS = 200_000
"""Of all that is looked for: a worker must not stand still for the sake of one log line."""

_PLAIN = (bool, type(None))
_MANY = (list, tuple, set, frozenset, deque)


class TooMuchError(Exception):
    """The arguments have more in them than can be looked for."""


def masked(
    text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], limit: int | None = None
) -> str:
    """``text`` with every value of the arguments that is found in it replaced by ``***``.

    Found are texts, numbers, times, ids and the like of four characters and more, at any depth of
    lists, dicts and objects, as ``str`` and ``repr`` and JSON write them; of longer texts parts of
    twelve characters too. What the task made out of its arguments is not found.

    :param limit: characters of ``text`` after which it is cut, which three dots then say. A value
        that goes on beyond is covered as any other.
    """
    end = len(text) if limit is None else limit
    cover = _Cover(text[: end + max(end, REACH)], longest=max(end, REACH))
    try:
        _look_for((args, kwargs), cover)
    except TooMuchError:
        return LEFT_OUT
    return cover.shown(end) + ("..." if len(text) > end else "")


class _Cover:
    """Which characters of a text are not to be seen.

    However often a text repeats itself, each of its characters is covered once: the work is in
    proportion to the text and to what is looked for, never to their product.

    :param longest: characters of a value that are looked for at most. Where only so much of the
        text is shown, its rest hides nothing more.
    """

    def __init__(self, text: str, longest: int) -> None:
        self._text = text
        self._longest = longest
        self._hidden = bytearray(len(text))
        self._looked_for: set[str] = set()
        self._parts: dict[str, list[int]] = {}
        for at in range(len(text) - PART + 1):
            self._parts.setdefault(text[at : at + PART], []).append(at)

    def whole(self, form: str) -> None:
        """Hide a value wherever all of it is."""
        form = form[: self._longest]
        if form in self._looked_for:
            return
        self._looked_for.add(form)
        size, text = len(form), self._text
        at = text.find(form)
        while at >= 0:
            self._hide(at, at + size)
            # Of those that overlap this one, the last: what is between them is hidden by the two.
            over = text.rfind(form, at + 1, at + 2 * size)
            at = over if over >= 0 else text.find(form, at + size)

    def in_part(self, form: str) -> None:
        """Hide what is as long as ``PART`` and longer out of a value."""
        for start in range(len(form) - PART + 1):
            # They are hidden now, for good.
            for at in self._parts.pop(form[start : start + PART], ()):
                self._hide(at, at + PART)

    def _hide(self, start: int, stop: int) -> None:
        self._hidden[start:stop] = b"\1" * (stop - start)

    def shown(self, end: int) -> str:
        """The text up to there, with ``***`` for what is hidden."""
        out: list[str] = []
        at, end = 0, min(end, len(self._text))
        while at < end:
            hides = self._hidden.find(1, at, end)
            stop = hides if hides >= 0 else end
            out.append(self._text[at:stop])
            if hides < 0:
                break
            out.append(MASK)
            after = self._hidden.find(0, hides, end)
            at = after if after >= 0 else end
        return "".join(out)


def _look_for(arguments: object, cover: _Cover) -> None:
    room = MAX_CHARACTERS
    for value in _leaves(arguments):
        is_text = isinstance(value, (str, bytes, bytearray))
        if is_text and len(value) > room:  # before it is written in several ways
            raise TooMuchError
        for form in _forms(value):
            room -= len(form)
            if room < 0:
                raise TooMuchError
            cover.whole(form)
            if is_text:
                cover.in_part(form)


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
