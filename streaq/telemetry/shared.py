"""A store in memory that a parent and one child share, with no name on any disk.

What a child counted outlives it, whatever killed it, and the parent can read while the child's
event loop stands still. Layout: two counts (bytes of directory, cells in use), the directory (a
JSON line per series), the cells; behind the numbers of a histogram follow its exemplars.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, MutableSequence
from functools import cache
from itertools import zip_longest

from streaq.telemetry import names
from streaq.telemetry.cells import (
    HEALTH_CELLS,
    Block,
    Exemplar,
    width_of,
)
from streaq.telemetry.names import Metric

METRIC_BY_NAME = {metric.name: metric for metric in names.METRICS}
CELL_BYTES = 8
DIRECTORY_BYTES = 4 << 20
TOTAL_BYTES = 64 << 20
"""Address space of one store; memory is taken only as cells come into use."""

STORE_VARIABLE = "STREAQ_TELEMETRY_STORE"
"""Environment variable by which a parent tells its child, and nobody below it, where to count:
``<file descriptor>:<process id of the parent>``."""

logger = logging.getLogger("streaq")

_LINE = 3
"""Elements of a directory line: name, labels, first cell. A later version may write more."""
_COUNTS_BYTES = 16
_EXEMPLAR = struct.Struct("=16sdd")
_EXEMPLAR_CELLS = _EXEMPLAR.size // CELL_BYTES
_WASTE = HEALTH_CELLS
_WASTE_CELLS = 256


class SharedStore:
    """One writer, and readers that may outlive it.

    The parent makes the store with ``create()``, hands ``fd`` down to a child (``pass_fds`` of
    ``subprocess``), which opens it with ``SharedStore(fd)``.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, TOTAL_BYTES)
        self._all = memoryview(self._map)
        # Two numbers that are each written at once: another process reads them meanwhile.
        self._counts = self._all[:_COUNTS_BYTES].cast("Q")
        self._view: memoryview[float] = self._all[DIRECTORY_BYTES:].cast("d")
        self.cells: MutableSequence[float] = self._view  # pyright: ignore[reportAttributeAccessIssue]
        self._lock = threading.Lock()
        self._places: list[tuple[Metric, tuple[str, ...], int]] = []
        self._read = _COUNTS_BYTES
        self._full = False
        if not self._counts[0]:
            self._counts[1] = _WASTE + _WASTE_CELLS
            self._counts[0] = _COUNTS_BYTES

    @classmethod
    def create(cls) -> SharedStore:
        """Reserve the memory; it is gone when the last process that has it open is."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("streaq-telemetry")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, TOTAL_BYTES)
        return cls(fd)

    def close(self) -> None:
        """Hand the store down to nobody any more. The memory goes when the object does, so that
        whoever reads it just now can finish.
        """
        os.close(self.fd)

    def allocate(self, metric: Metric, labels: tuple[str, ...]) -> int:
        """Reserve the numbers of one series, all 0; answers the index of the first.

        When the store is full, what is counted is lost, with one warning: a task must not fail
        for it.
        """
        with self._lock:
            written, used = self._counts
            line = json.dumps([metric.name, labels, used]).encode() + b"\n"
            end = used + _cells_of(metric)
            if written + len(line) > DIRECTORY_BYTES or end > len(self._view):
                self._warn()
                return _WASTE
            self._all[written : written + len(line)] = line
            self._counts[1] = end
            self._counts[0] = written + len(line)
        return used

    def note(self, metric: Metric, offset: int, bucket: int, trace_id: str, value: float) -> None:
        """Keep ``trace_id`` as the exemplar of a bucket of the histogram at ``offset``."""
        cell = offset + width_of(metric) + bucket * _EXEMPLAR_CELLS
        at = DIRECTORY_BYTES + cell * CELL_BYTES
        _EXEMPLAR.pack_into(self._all, at, bytes.fromhex(trace_id), value, time.time())

    def blocks(self) -> Iterator[Block]:
        """Every series as it is now, also when the writer is another process, or dead."""
        for metric, labels, offset in self._directory():
            width = width_of(metric)
            values = tuple(self._view[offset : offset + width])
            yield Block(metric, labels, values, self._exemplars(offset + width, width - 1))

    def _directory(self) -> list[tuple[Metric, tuple[str, ...], int]]:
        with self._lock:
            written, used = self._counts
            lines = bytes(self._all[self._read : written]).splitlines(keepends=True)
            known = [json.loads(line)[:_LINE] for line in lines]
            following = [first for _, _, first in known[1:]]
            for line, (name, labels, first), then in zip_longest(lines, known, following):
                metric = METRIC_BY_NAME.get(name)
                cells = (used if then is None else then) - first
                if then is None and metric and cells > _cells_of(metric):
                    break  # its successor is being written, and tells more next time
                self._read += len(line)
                if metric and (len(metric.labels), _cells_of(metric)) == (len(labels), cells):
                    self._places.append((metric, tuple(labels), first))
                else:
                    _tell_of_stranger(name)
            return list(self._places)

    def _exemplars(self, cell: int, buckets: int) -> dict[int, Exemplar]:
        found: dict[int, Exemplar] = {}
        for bucket in range(buckets):
            at = DIRECTORY_BYTES + (cell + bucket * _EXEMPLAR_CELLS) * CELL_BYTES
            trace_id, value, at_s = _EXEMPLAR.unpack_from(self._all, at)
            if at_s and (trace_id, value, at_s) == _EXEMPLAR.unpack_from(self._all, at):
                found[bucket] = Exemplar(trace_id.hex(), value, at_s)
        return found

    def _warn(self) -> None:
        if not self._full:
            self._full = True
            warnings.warn(
                "streaq has no room for more metric series; lower Telemetry(max_task_names=...)",
                RuntimeWarning,
                stacklevel=4,
            )


def _cells_of(metric: Metric) -> int:
    numbers = width_of(metric)
    return numbers + (numbers - 1) * _EXEMPLAR_CELLS


@cache
def _tell_of_stranger(name: str) -> None:
    """A child that began after an upgrade may count what its parent has no name for: the rest of
    what it counts is shown all the same.
    """
    logger.warning("a worker process counts %s otherwise than this one: restart both", name)


@cache
def inherited_store() -> SharedStore | None:
    """The store that the parent made for this process, if it did."""
    fd, _, parent = os.environ.get(STORE_VARIABLE, "").partition(":")
    if not fd or parent != str(os.getppid()):
        return None
    return SharedStore(int(fd))
