"""What the end-to-end tests of telemetry share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from streaq import Worker
from streaq.telemetry import Telemetry
from streaq.telemetry.testing import Captured, capture_telemetry
from tests.support import MakeWorker


@pytest.fixture
def root_logger() -> logging.Logger:
    """The root logger, without handlers for as long as the test runs."""
    root = logging.getLogger()
    root.handlers[:] = []
    return root


class Stage:
    """Workers whose telemetry is captured: each of ``seen`` is one process' worth."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self._make_worker = make_worker
        self._captured: list[Captured] = []
        self._stack = ExitStack()

    def worker(self, settings: Telemetry | None = None, **options: Any) -> Worker[Any]:
        """A worker that tells into ``seen``."""
        return self._make_worker(telemetry=self.capture(settings).telemetry, **options)

    def capture(self, settings: Telemetry | None = None) -> Captured:
        """One more place to tell things to."""
        self._captured.append(self._stack.enter_context(capture_telemetry(settings)))
        return self._captured[-1]

    @property
    def seen(self) -> Captured:
        """What the first worker told."""
        return self._captured[0]

    def captured(self, number: int) -> Captured:
        """What another worker told, in the order in which they were made."""
        return self._captured[number]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def stage(make_worker: MakeWorker) -> Iterator[Stage]:
    made = Stage(make_worker)
    yield made
    made.close()
