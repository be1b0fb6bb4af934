"""Where measurements are kept: numbers in a row, read only when somebody scrapes.

A task costs a few additions to plain numbers and nothing else; what each number means is looked
up at the scrape.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, MutableSequence
from typing import NamedTuple, Protocol

from streaq.telemetry.names import Metric

HEALTH_CELLS = 16
"""Cells at the beginning of every store, kept for ``engine.health``: it needs ``SIZE`` of them."""


class Exemplar(NamedTuple):
    """One traced observation of a bucket."""

    trace_id: str
    value: float
    at_s: float


class Block(NamedTuple):
    """One series as it is now.

    A counter or a gauge has one number; a histogram has one for each bucket (not cumulated; the
    last is the overflow), then the sum. Exemplars are by bucket.
    """

    metric: Metric
    labels: tuple[str, ...]
    values: tuple[float, ...]
    exemplars: dict[int, Exemplar]


def width_of(metric: Metric) -> int:
    """How many numbers a series of this metric needs."""
    return len(metric.buckets) + 2 if metric.buckets else 1


class Store(Protocol):
    """Numbers that hooks add to."""

    cells: MutableSequence[float]

    def allocate(self, metric: Metric, labels: tuple[str, ...]) -> int:
        """Reserve the numbers of one series, all 0; answers the index of the first."""
        ...

    def note(self, metric: Metric, offset: int, bucket: int, trace_id: str, value: float) -> None:
        """Keep ``trace_id`` as the exemplar of a bucket of the histogram at ``offset``."""
        ...

    def blocks(self) -> Iterator[Block]:
        """Every series as it is now. Safe in any thread."""
        ...


class LocalStore:
    """A store of this process alone."""

    def __init__(self) -> None:
        self._list = [0.0] * HEALTH_CELLS
        self.cells: MutableSequence[float] = self._list
        self._places: list[tuple[Metric, tuple[str, ...], int]] = []
        self._exemplars: dict[int, Exemplar] = {}
        self._lock = threading.Lock()

    def allocate(self, metric: Metric, labels: tuple[str, ...]) -> int:
        """Reserve the numbers of one series, all 0; answers the index of the first."""
        with self._lock:
            offset = len(self._list)
            self._list.extend([0.0] * width_of(metric))
            self._places.append((metric, labels, offset))
        return offset

    def note(self, metric: Metric, offset: int, bucket: int, trace_id: str, value: float) -> None:
        """Keep ``trace_id`` as the exemplar of a bucket of the histogram at ``offset``."""
        self._exemplars[offset + bucket] = Exemplar(trace_id, value, time.time())

    def blocks(self) -> Iterator[Block]:
        """Every series as it is now. Safe in any thread."""
        for metric, labels, offset in tuple(self._places):
            width = width_of(metric)
            exemplars = {
                i: exemplar
                for i in range(width - 1)
                if (exemplar := self._exemplars.get(offset + i)) is not None
            }
            yield Block(metric, labels, tuple(self._list[offset : offset + width]), exemplars)
