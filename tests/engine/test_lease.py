"""When the thread that keeps leases tells Redis the traces of attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from streaq.engine.lease import Held, Leases
from streaq.engine.settings import Settings

CLIENT: Any = None


def traceparent(of: str, flags: str = "01") -> str:
    return f"00-{of * 32}-{of * 16}-{flags}"


def lease(of: str) -> Held:
    return (f"task {of}", b"1-0", "default", "1", "", traceparent(of))


class Bench:
    """Leases of attempts that a test says run; what would be renewed is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: list[Held] = []
        self.told: list[set[str]] = []
        self.leases = Leases(
            cast("Any", None), "", cast("Settings", None), "", cast("Any", None),
            held=lambda: self.running, running=lambda: self.running, functions=(),
            crons=(), tell=lambda *_: None,
        )  # fmt: skip
        monkeypatch.setattr(self.leases, "_renew", self._renew)

    def _renew(self, _: Any, only: Sequence[Held]) -> None:
        self.told.append({held[0] for held in only})

    def run(self, *names: str) -> None:
        """These run now, and no others."""
        self.running = [lease(name) for name in names]

    def look(self, *names: str) -> None:
        self.run(*names)
        self.leases._tell_traces(CLIENT)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_what_ends_at_once_is_not_told(bench: Bench) -> None:
    for name in "123456":
        bench.look(name)
    assert bench.told == []


def test_what_runs_still_is_told_once_and_together(bench: Bench) -> None:
    bench.look("1", "2", "3")
    bench.look("1", "2", "4")
    assert bench.told == [{"task 1", "task 2"}]
    bench.look("1", "4")
    assert bench.told[1:] == [{"task 4"}]
    bench.look("1", "4")
    assert len(bench.told) == 2


def test_another_attempt_of_a_task_is_told_as_well(bench: Bench) -> None:
    """One that was handed back has its try refunded: the next one has the same number."""
    bench.look("1")
    bench.look("1")
    again = (*lease("1")[:5], traceparent("2"))
    bench.running = [again]
    bench.leases._tell_traces(CLIENT)
    bench.leases._tell_traces(CLIENT)
    assert bench.told == [{"task 1"}] * 2


def test_it_looks_again_only_while_there_is_something_new(bench: Bench) -> None:
    leases = bench.leases
    leases.traced(traceparent("1"))
    bench.look("1")
    assert leases._begun
    bench.look("1")
    assert not leases._begun


@pytest.mark.parametrize(
    ("flags", "wakes"), [("01", True), ("03", True), ("00", False), ("02", False)]
)
def test_only_sampled_traces_wake_it(bench: Bench, flags: str, *, wakes: bool) -> None:
    bench.leases.traced(traceparent("1", flags))
    assert bench.leases._begun == bench.leases._now.is_set() == wakes
