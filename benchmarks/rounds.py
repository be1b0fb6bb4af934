"""Runs the workloads in rounds: in each, every entrant runs once, ours first, so that noise hurts
all alike.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.bars import plain
from benchmarks.entrants import Entrant
from benchmarks.figures import Book, Cell
from benchmarks.measures import Setup
from benchmarks.stage import RunError, Stage, without_folders
from benchmarks.venvs import HERE
from benchmarks.workloads import Workload


@dataclass
class Plan:
    """How long and how often: `seconds` is for one drain, `budget_s` ends the session."""

    runs: int = 5
    seconds: float = 4
    budget_s: float = 0
    n: int | None = None
    setup: Setup = field(default_factory=lambda: Setup(n=0))
    started: float = field(default_factory=time.monotonic)

    def out_of_time(self) -> bool:
        return bool(self.budget_s) and time.monotonic() - self.started > self.budget_s


class Session:
    """One sitting: measures cells into a book, round after round, until done or out of time."""

    def __init__(self, book: Book, plan: Plan, entrants: Sequence[Entrant]) -> None:
        self.book = book
        self.plan = plan
        self.entrants = list(entrants)
        self.cells: dict[tuple[str, str], Cell] = {}
        self.missing: dict[str, dict[str, str]] = {}
        # What was measured before is the best guess of how much fits into the planned seconds.
        self.rates = {e.name: book.median("drain", e.name, "rate") or e.rate for e in entrants}

    def learn(self) -> None:
        """Ask every adapter which features its queue lacks and which versions are installed.

        An entrant that cannot even be asked is left out, and the session says so.
        """
        asked, self.entrants = self.entrants, list[Entrant]()
        for entrant in asked:
            try:
                with Stage(entrant) as stage:
                    told = stage.client("about")
            except RunError as error:
                say(f"left out: {entrant.name}: {error}")
                continue
            self.entrants.append(entrant)
            self.missing[entrant.name] = told["missing"]
            self.book.about.setdefault("setup", {})[entrant.name] = {
                "label": entrant.label,
                "how": told["doc"],
                "versions": told["versions"],
            }

    def run(self, workloads: Sequence[Workload]) -> None:
        with otlp_sink(wanted=any(entrant.traced for entrant in self.entrants)) as url:
            setup = replace(self.plan.setup, otlp_url=url)
            for number in range(self.plan.runs):
                for workload in workloads:
                    if workload.once and number:
                        continue
                    self._round(workload, number, setup)

    def _round(self, workload: Workload, number: int, setup: Setup) -> None:
        for entrant in self.entrants:
            if not entrant.plays(workload.name):
                continue
            if self.plan.out_of_time():
                return
            self._one(workload, entrant, number, setup)
            self.book.save()

    def _one(self, workload: Workload, entrant: Entrant, number: int, setup: Setup) -> None:
        key = workload.name, entrant.name
        cell = self.cells.get(key)
        lacking = [
            self.missing[entrant.name][f] for f in workload.needs if f in self.missing[entrant.name]
        ]
        if cell is None:
            cell = self.cells[key] = self.book.fresh(*key)
        elif cell.is_lost():
            return
        if lacking:
            cell.note = f"n/a ({lacking[0]})"
            return
        n = self._size(workload, entrant, cell)
        began = time.monotonic()
        try:
            metrics = workload.measure(entrant, replace(setup, n=n))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cells go on
            why = str(error) if isinstance(error, RunError) else without_folders(repr(error))[:200]
            cell.fail(why)
            say(f"{workload.name:11} {entrant.name:15} {why}")
            return
        took_s = time.monotonic() - began
        cell.add(n, {**metrics, "took_s": took_s})
        cell.cap = metrics.cap
        value = metrics[workload.main]
        shown = plain(value)
        took = f"n={n:,} run {number + 1} ({took_s:.1f} s)"
        say(f"{workload.name:11} {entrant.name:15} {shown:>10} {workload.unit:8} {took}")

    def _size(self, workload: Workload, entrant: Entrant, cell: Cell) -> int:
        """Tasks for this run: fixed, or so many that it takes the planned seconds."""
        if self.plan.n is not None:
            return self.plan.n if workload.fixed is None else min(self.plan.n, workload.fixed)
        if workload.fixed is not None:
            return workload.fixed
        rate = cell.median("rate") or cell.median("rate_empty")
        if rate is None:
            base = self.book.median("drain", entrant.name, "rate") or self.rates[entrant.name]
            rate = min(base * workload.factor, workload.ceiling)
        return int(max(workload.least, min(workload.most, rate * self.plan.seconds / workload.per)))


@contextlib.contextmanager
def otlp_sink(*, wanted: bool) -> Generator[str]:
    """A local OTLP/HTTP receiver for the variant that exports traces; empty when nobody does."""
    if not wanted:
        yield ""
        return
    command = [sys.executable, str(HERE / "otlp_sink.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
