"""docs/state-machine.md says what the scripts do: the same transitions, no more and no fewer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import streaq
from streaq.broker import keys

LUA = Path(streaq.__file__).parent / "broker" / "lua"
PAGE = (Path(__file__).parents[1] / "docs" / "state-machine.md").read_text("utf-8")
STATES = re.compile(r"any state|new|queued|running|scheduled|blocked|done|repeating|gone")
ROW = re.compile(r"\| ([a-z ]+) → ([a-z]+) \| `(\w+\.lua)` \| (.+?) \| (.+?) \|")
ARROW = re.compile(r"^ +(\S+) --> ([^\s:]+)", re.MULTILINE)

Transition = tuple[str, str, str]


def comments() -> Iterator[Transition]:
    """From, to and file of every comment of the form ``-- a, b or c -> d or e: why``."""
    for path in LUA.glob("*.lua"):
        for line in path.read_text("utf-8").splitlines():
            if not line.startswith("-- ") or " -> " not in line:
                continue
            before, _, after = line.removeprefix("-- ").partition(" -> ")
            sources = STATES.findall(before)
            targets = STATES.findall(re.split(r"[:.(;]| when ", after)[0])
            assert sources, line
            assert targets, line
            yield from ((a, b, path.name) for a in sources for b in targets)


def rows() -> Iterator[Transition]:
    yield from ((a, b, name) for a, b, name, _, _ in ROW.findall(PAGE))


def test_every_transition_of_a_script_has_its_row() -> None:
    assert set(comments()) - set(rows()) == set()


def test_every_row_is_a_transition_of_a_script() -> None:
    assert set(rows()) - set(comments()) == set()


def test_the_diagrams_show_the_table() -> None:
    drawn = {(a, b) for a, b in ARROW.findall(PAGE) if b != "[*]"}
    told = {(a.replace("new", "[*]"), b) for a, b, _ in rows() if a != "any state"}
    assert drawn == told


def test_every_script_is_mentioned() -> None:
    for path in LUA.glob("*.lua"):
        assert f"`{path.name}`" in PAGE or path.name == "_base.lua", path.name
    for name in re.findall(r"`(\w+\.lua)`", PAGE):
        assert (LUA / name).is_file(), name


def test_scripts_without_a_transition_are_named_as_such() -> None:
    paragraph = PAGE.partition("These scripts make no transition:")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+\.lua)`", paragraph))
    making = {name for _, _, name in rows()}
    assert named == {path.name for path in LUA.glob("*.lua")} - making - {"_base.lua"}


def test_the_keys_of_the_table_are_keys() -> None:
    known = set(re.findall(r"^\| ``([a-z]+:?)", keys.__doc__ or "", re.MULTILINE))
    for *_, touched in ROW.findall(PAGE):
        assert set(re.findall(r"`([a-z]+:?)`", touched)) <= known
