"""The record of what was measured: samples, their medians and spread, and the JSON file that keeps
them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.venvs import HERE

RESULTS = HERE / "results.json"
NUMBERS = re.compile(r"\[[\d\s.,e+-]+\]")  # a list of samples is easier to read in one line


@dataclass
class Cell:
    """All samples of one entrant in one workload. `note` says why there are none, `cap` why they
    are of less than the row names.
    """

    workload: str
    entrant: str
    n: int = 0
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    note: str = ""
    at: str = ""
    failed: int = 0
    cap: str = ""

    def is_lost(self) -> bool:
        """Whether there is no use in trying again: no such feature, or it failed twice."""
        return not self.samples and (self.note.startswith("n/a") or self.failed > 1)

    def add(self, n: int, metrics: dict[str, float]) -> None:
        self.n = n
        self.note = ""
        self.at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        for name, value in metrics.items():
            self.samples.setdefault(name, []).append(value)

    def fail(self, why: str) -> None:
        """Count a run that gave nothing; remember why, unless an earlier one gave a figure."""
        self.failed += 1
        self.at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        if not self.samples:
            self.note = why

    def median(self, metric: str) -> float | None:
        values = self.samples.get(metric)
        return statistics.median(values) if values else None

    def spread(self, metric: str) -> tuple[float, float] | None:
        values = self.samples.get(metric)
        return (min(values), max(values)) if values else None

    def to_json(self) -> dict[str, Any]:
        figures = {
            name: {
                "median": _round(statistics.median(values)),
                "low": _round(min(values)),
                "high": _round(max(values)),
                "samples": [_round(value) for value in values],
            }
            for name, values in self.samples.items()
        }
        return {
            "workload": self.workload,
            "entrant": self.entrant,
            "n": self.n,
            "at": self.at,
            "note": self.note,
            "failed": self.failed,
            "cap": self.cap,
            "figures": figures,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cell:
        samples = {name: list(figure["samples"]) for name, figure in data["figures"].items()}
        known = {k: data[k] for k in ("workload", "entrant", "n", "note", "at", "failed")}
        return cls(samples=samples, cap=data.get("cap", ""), **known)


class Book:
    """Every cell measured so far, by workload and entrant, with what they were measured on."""

    def __init__(self, path: Path = RESULTS) -> None:
        self.path = path
        self.cells: dict[tuple[str, str], Cell] = {}
        self.about: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}

    @classmethod
    def load(cls, path: Path = RESULTS) -> Book:
        """The book as the last run left it; an empty one if there is none."""
        book = cls(path)
        if path.exists():
            data = json.loads(path.read_text())
            book.about = data.get("about", {})
            book.extra = data.get("extra", {})
            for row in data.get("cells", []):
                cell = Cell.from_json(row)
                book.cells[cell.workload, cell.entrant] = cell
        return book

    def fresh(self, workload: str, entrant: str) -> Cell:
        """A new cell that replaces what an earlier session measured."""
        cell = self.cells[workload, entrant] = Cell(workload, entrant)
        return cell

    def get(self, workload: str, entrant: str) -> Cell | None:
        return self.cells.get((workload, entrant))

    def median(self, workload: str, entrant: str, metric: str) -> float | None:
        cell = self.get(workload, entrant)
        return cell.median(metric) if cell else None

    def save(self) -> None:
        """Write through a temporary file, so that an interrupted run never leaves half of one."""
        data = {
            "about": self.about,
            "extra": self.extra,
            "cells": [cell.to_json() for _, cell in sorted(self.cells.items())],
        }
        draft = self.path.with_suffix(".tmp")
        text = NUMBERS.sub(lambda found: " ".join(found[0].split()), json.dumps(data, indent=1))
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text + "\n")
        draft.replace(self.path)


def machine(server: str) -> dict[str, str]:
    """What it was measured on, without names or paths."""
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "server": server,
    }


def _cpu_model() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _lines(path: Path) -> Iterable[str]:
    return path.read_text().splitlines() if path.exists() else ()


def _round(value: float) -> float:
    return float(f"{value:.5g}")
