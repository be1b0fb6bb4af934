"""A worker module on the test's own queue, and the command line to try on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.cli.support import HERE, Here


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """The file that tasks write a line to."""
    path = tmp_path / "notes"
    path.touch()
    return path


@pytest.fixture
def environment(
    redis_url: str, queue: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What ``shop.py`` reads; set in this process too."""
    values = {"TEST_URL": redis_url, "TEST_QUEUE": queue, "TEST_NOTES": str(notes)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def shop(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``shop.py``, imported afresh: its worker is on the test's queue."""
    monkeypatch.chdir(HERE)
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop("shop", None)
    import shop  # pyright: ignore[reportMissingImports]  # ty: found by the path above

    # The command line imports it for itself: one worker object can't be on two event loops.
    del sys.modules["shop"]
    shop.worker.telemetry = False
    shop.worker.handle_signals = False
    yield shop
    sys.modules.pop("shop", None)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """The command line, in this process; structlog is put back as it was."""
    yield Here(monkeypatch, capsys)
    structlog.reset_defaults()
