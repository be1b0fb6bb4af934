"""The bars of telemetry, and the receiver that counts spans."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks import telemetry
from benchmarks.figures import Book
from benchmarks.otlp_sink import count_spans
from benchmarks.rounds import otlp_sink
from benchmarks.stage import RunError
from benchmarks.telemetry import (
    COST,
    FULL,
    LOGGED,
    MEMORY,
    OFF,
    PEER,
    QUIET,
    WAYS,
    verdicts,
    wait_for_spans,
)


def export_of(count: int) -> bytes:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for number in range(count):
        span = provider.get_tracer(f"tracer {number % 2}").start_span("x" * (number * 50))
        span.set_attribute("number", number)
        span.record_exception(KeyError(number))
        span.end()
    return encode_spans(exporter.get_finished_spans()).SerializeToString()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_spans_are_counted(count: int) -> None:
    assert count_spans(export_of(count)) == count


def test_a_span_that_never_comes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    monkeypatch.setattr("benchmarks.telemetry.SPANS_S", 0.2)
    with otlp_sink(wanted=True) as url:
        request = urllib.request.Request(url, data=export_of(3), method="POST")
        urllib.request.urlopen(request, timeout=5).close()
        with pytest.raises(RunError, match="3 of 4 spans"):
            wait_for_spans(url, 4)
        urllib.request.urlopen(request, timeout=5).close()
        wait_for_spans(url, 3)


def test_silence_is_when_no_span_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    coming = [3, 0, 2, 0, 0, 0, 0]
    asked: list[int] = []

    def new_spans(_: str) -> int:
        asked.append(coming[len(asked)])
        return asked[-1]

    monkeypatch.setattr(telemetry, "new_spans", new_spans)
    monkeypatch.setattr(telemetry, "SILENCE_S", 0.25)
    telemetry.wait_for_silence("")
    assert len(asked) > 3
    monkeypatch.setattr(telemetry, "new_spans", lambda _: 1)
    monkeypatch.setattr(telemetry, "SPANS_S", 0.3)
    with pytest.raises(RunError, match="no end"):
        telemetry.wait_for_silence("")


def book_of(tmp_path: Path, late_mb: float, **rates: float) -> Book:
    book = Book(tmp_path / "results.json")
    for way, rate in rates.items():
        book.fresh(COST, WAYS[way].name).add(20_000, {"rate": rate, "worker_us": 1e6 / rate})
    cell = book.fresh(MEMORY, WAYS[FULL].name)
    cell.add(200_000, {"early_mb": 100.0, "late_mb": late_mb})
    return book


def test_the_bars(tmp_path: Path) -> None:
    good = {OFF: 21_900, QUIET: 20_000, LOGGED: 8_000, FULL: 5_000, PEER: 1_000}
    assert [v.met for v in verdicts(book_of(tmp_path, 109, **good))] == [True] * 4
    bad = {OFF: 22_100, QUIET: 20_000, LOGGED: 7_900, FULL: 4_900, PEER: 1_000}
    assert [v.met for v in verdicts(book_of(tmp_path, 111, **bad))] == [False] * 4
    assert [v.met for v in verdicts(Book(tmp_path / "none.json"))] == [None] * 4
    assert "125 us of CPU a task against 1,000" in verdicts(book_of(tmp_path, 1, **good))[0].figure
