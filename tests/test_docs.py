"""The documentation is true: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from streaq import Worker
from streaq.testing import sandbox
from tests.commandline import problem_with
from tests.docpages import PAGES, ROOT, Block, Page, commands, name_of, read
from tests.support import running

PYTHON_PAGES = [path for path in PAGES if read(path).of("python")]
SHELL_PAGES = [path for path in PAGES if list(commands(read(path)))]
PRELUDE = """
import anyio, pytest
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo
from streaq import *
"""
URL = "redis://localhost:6379"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def here(redis_url: str, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that name no server and no queue get the test's."""
    defaults = list(Worker.__init__.__defaults__ or ())
    names = list(inspect.signature(Worker.__init__).parameters)[1:]
    defaults[names.index("redis_url")] = redis_url
    defaults[names.index("queue_name")] = queue
    monkeypatch.setattr(Worker.__init__, "__defaults__", tuple(defaults))
    monkeypatch.setenv("REDIS_URL", redis_url)


# --------------------------------------------------------------------------------- Python


@pytest.mark.anyio
@pytest.mark.parametrize("path", PYTHON_PAGES, ids=name_of)
@pytest.mark.usefixtures("here")
@pytest.mark.leaves("")  # what is scheduled on a page stays scheduled
async def test_the_python_of_a_page_runs(
    path: Path, redis_url: str, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = read(path)
    for name, text in page.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(PRELUDE, namespace)
    namespace["worker"] = Worker()
    try:
        for block in page.of("python"):
            if "import pytest" in block.code:
                await anyio.to_thread.run_sync(_run_as_tests, page, block, tmp_path)
            else:
                stand_ins = {URL: redis_url, 'queue_name="orders"': f'queue_name="{queue}"'}
                await _run(page, block, namespace, stand_ins)
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in (*(Path(file).stem for file in page.files), "orders"):
                del sys.modules[name]


async def _run(
    page: Page, block: Block, namespace: dict[str, Any], stand_ins: dict[str, str]
) -> None:
    """Run one block, beside a running worker or in a sandbox if it awaits anything."""
    code = "\n" * (block.line - 1) + block.code
    known = set(namespace)
    await _execute(block.setup, f"setup of {name_of(page.path)}", namespace)
    for shown, real in stand_ins.items():
        code = code.replace(shown, real)
    source = compile(code, str(page.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with _surroundings(
        page, block, namespace, awaits=bool(source.co_flags & inspect.CO_COROUTINE)
    ):
        await _evaluate(source, namespace)
        for name in [name for name in namespace if name.startswith("test_") and name not in known]:
            await namespace[name]()


async def _execute(code: str, where: str, namespace: dict[str, Any]) -> None:
    await _evaluate(compile(code, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), namespace)


async def _evaluate(code: types.CodeType, namespace: dict[str, Any]) -> None:
    made = types.FunctionType(code, namespace)()
    if inspect.iscoroutine(made):
        await made


@asynccontextmanager
async def _surroundings(
    page: Page, block: Block, namespace: dict[str, Any], *, awaits: bool
) -> AsyncIterator[None]:
    worker = namespace["worker"]
    if not awaits or "sandbox(" in block.code:
        yield
    elif page.mode == "sandbox":
        async with sandbox(worker):
            yield
    else:
        worker.telemetry = worker.handle_signals = False
        async with worker, running(worker):
            yield


def _run_as_tests(page: Page, block: Block, folder: Path) -> None:
    """A block that is a test file: run it as readers would."""
    file = folder / f"test_line_{block.line}.py"
    file.write_text(block.code, encoding="utf-8")
    conftest = "import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            str(file),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, f"{name_of(page.path)}:{block.line}\n{ran.stdout}{ran.stderr}"


def test_what_the_readme_shows_of_the_examples_is_in_them() -> None:
    orders = (ROOT / "examples" / "orders.py").read_text(encoding="utf-8")
    shown = [block.code for block in read(ROOT / "README.md").of("python")]
    shared = [code for code in shown if "@worker.task" in code]
    assert len(shared) >= 3
    for code in shared:
        for part in re.split(r"\n\n\n?", code.strip()):
            assert part in orders, part


# ------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("path", SHELL_PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(path: Path) -> None:
    for line, command in commands(read(path)):
        for part in re.split(r"\s*(?:&&|\|\||;|\|)\s*", command):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            problem = _problem_with(words)
            assert problem is None, f"{name_of(path)}:{line}: {command}: {problem}"


@pytest.mark.parametrize("command", ["streaq nope", "streaq run", "streaq run a:b --nope",
                                     "streaq task shw", "make nope", "nope"])  # fmt: skip
def test_the_check_of_commands_finds_what_is_wrong(command: str) -> None:
    assert _problem_with(shlex.split(command))


def _problem_with(words: list[str]) -> str | None:
    tool, *args = words or [""]
    if tool == "streaq":
        return problem_with(args)
    if tool == "make":
        return _problem_with_make(args)
    if tool in ("pip", "uv"):
        return _problem_with_extras(args)
    if tool in ("python", "python3"):
        return _problem_with_python(args)
    return None if tool in OTHERS else f"{tool!r} is not a tool that this test knows"


OTHERS = {"git", "cd", "curl", "docker", "uvicorn", "kubectl", "redis-cli", "promtool", "amtool"}


def _problem_with_make(args: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    unknown = [arg for arg in args if "=" not in arg and arg not in targets]
    return f"there is no target {unknown[0]!r}" if unknown else None


def _problem_with_extras(args: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    for arg in args:
        wanted = re.search(r"\[(.+)\]", arg)
        if wanted and (unknown := set(wanted[1].split(",")) - extras):
            return f"there is no extra {unknown.pop()!r}"
    return None


def _problem_with_python(args: list[str]) -> str | None:
    if args[:1] == ["-m"]:
        module = args[1].replace(".", "/")
        there = [(ROOT / module).is_dir(), (ROOT / f"{module}.py").is_file()]
        return None if any(there) or args[1] in ("venv", "pip") else f"no module {args[1]}"
    folders = (ROOT, ROOT / "examples")
    return None if any((f / args[0]).is_file() for f in folders) else f"there is no {args[0]}"


# ---------------------------------------------------------------------------------- links


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not link.startswith(("http://", "https://", "mailto:")) and not _leads(path, link)
    ]
    assert not broken


def _leads(page: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in _anchors(target)


def _anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
