"""The public API as type checkers see it.

The files in tests/typing are never run. Each line that ends in ``# error`` is one that a user must
be warned of; every other line must pass, in the strict mode of both checkers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

FILES = Path(__file__).parent / "typing"
NAMES = sorted(path.name for path in FILES.glob("*.py"))

Said: TypeAlias = dict[str, dict[int, str]]
"""What a checker said: file -> line -> its first error there."""

# A checker reads the whole package and what it imports, on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)


def run(*command: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=FILES,
        # basedpyright asks the first python of PATH where packages are.
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ran.returncode in (0, 1), ran.stderr or ran.stdout  # 1: it found errors
    return ran.stdout


def basedpyright() -> Said:
    report: dict[str, Any] = json.loads(run("basedpyright", "--outputjson", "-p", str(FILES)))
    assert report["summary"]["filesAnalyzed"] == len(NAMES)
    said: Said = defaultdict(dict)
    for found in report["generalDiagnostics"]:
        assert found["severity"] == "error", found
        line = int(found["range"]["start"]["line"]) + 1
        said[Path(found["file"]).name].setdefault(line, found["message"])
    return said


def mypy() -> Said:
    # Silent: errors in other files, the package's own among them, are not looked at here.
    options = ("--strict", "--follow-imports=silent", "--no-error-summary", "--no-pretty")
    cache = str(FILES.parents[1] / ".mypy_cache")
    said: Said = defaultdict(dict)
    for found in run("mypy", *options, "--cache-dir", cache, *NAMES).splitlines():
        parts = re.fullmatch(r"(\w+\.py):(\d+): (error|note): (.*)", found)
        assert parts is not None, found
        if parts[3] == "error":
            said[parts[1]].setdefault(int(parts[2]), parts[4])
    return said


@pytest.fixture(scope="module", params=[basedpyright, mypy], ids=lambda checker: checker.__name__)
def said(request: pytest.FixtureRequest) -> Said:
    checker: Callable[[], Said] = request.param
    pytest.importorskip(checker.__name__, reason="the checkers come with the lint group")
    return checker()


def marked(name: str) -> set[int]:
    lines = (FILES / name).read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# error")}


@pytest.mark.parametrize("name", NAMES)
def test_right_lines_pass(name: str, said: Said) -> None:
    wrong = {line: text for line, text in said[name].items() if line not in marked(name)}
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_wrong_lines_fail(name: str, said: Said) -> None:
    assert marked(name)
    passed = sorted(marked(name) - said[name].keys())
    assert not passed, f"{name}: no error in lines {passed}"


def test_no_public_name_has_an_unknown_type() -> None:
    pytest.importorskip("basedpyright", reason="the checkers come with the lint group")
    found = run("basedpyright", "--outputjson", "--verifytypes", "streaq", "--ignoreexternal")
    report: dict[str, Any] = json.loads(found)["typeCompleteness"]
    counts: dict[str, int] = report["exportedSymbolCounts"]
    unknown = [s["name"] for s in report["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    assert counts["withKnownType"] > 500  # it did find the package
    assert counts["withUnknownType"] == 0, unknown
