"""What the span of an ended attempt says of its error: text that every encoder takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from streaq.hooks import Status
from streaq.telemetry.otlp_fast import encode
from streaq.telemetry.span_endings import shortened
from tests.telemetry.events import attempt, ending, enqueue, raised
from tests.telemetry.test_tracing import Bench

HALF = "r\udce9sum.pdf"
"""As ``os.listdir`` has a file's name that is not UTF-8."""
WHOLE = "r\\udce9sum.pdf"


class HalfError(Exception):
    """Its own name has half a character too."""


HalfError.__qualname__ = "Half\udce9Error"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def can_be_sent(spans: Sequence[ReadableSpan], caplog: pytest.LogCaptureFixture) -> None:
    """Both exporters take all of it, and the SDK leaves no attribute out with an error."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert encode_spans(spans).SerializeToString()
        assert encode(spans)
    assert caplog.messages == []


@pytest.mark.parametrize("status", ["failed", "retried", "aborted", "refused"])
def test_an_error_with_half_a_character_can_be_sent(
    bench: Bench, caplog: pytest.LogCaptureFixture, status: Status
) -> None:
    error = raised(HalfError(HALF))
    if status == "refused":
        bench.hook.on_refuse(ending(attempt(started_ms=0), status, "undecodable", error))
    else:
        bench.run(attempt(), status=status, reason="error", error=error)
    span = bench.only()
    can_be_sent([span], caplog)
    [event] = span.events
    said: Any = event.attributes
    assert said["exception.message"] == WHOLE
    assert said["exception.type"].endswith("Half\\udce9Error")
    assert WHOLE in said["exception.stacktrace"]
    if span.status.status_code is StatusCode.ERROR:
        assert span.status.description == WHOLE


def test_a_task_name_with_half_a_character_can_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(create_spans=True)
    odd = "a\udcff"
    bench.publish(enqueue(odd, task_id=odd, priority=odd))
    bench.publish(enqueue(odd), enqueue(odd))
    bench.run(attempt(odd, priority=odd, worker_id=odd))
    names = {span.name for span in bench.spans}
    assert names == {"send a\\udcff", "create a\\udcff", "process a\\udcff"}
    can_be_sent(bench.spans, caplog)


def test_an_enqueue_that_fails_for_half_a_character_can_be_sent(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def publish() -> None:
        dispatcher = bench.dispatcher
        with dispatcher.around(dispatcher.around_publish, bench.call(enqueue("a\udcff"))):
            "a\udcff".encode()

    with pytest.raises(UnicodeEncodeError):
        publish()
    can_be_sent([bench.only()], caplog)


def test_what_can_be_encoded_is_left_as_it_is(bench: Bench) -> None:
    bench.run(attempt("größe 𝄞"), status="failed", reason="error", error=raised(ValueError("é\n€")))
    span = bench.only()
    assert span.name == "process größe 𝄞"
    assert span.status.description == "é\n€"
    [event] = span.events
    said: Any = event.attributes
    assert said["exception.message"] == "é\n€"
    assert said["exception.type"] == "ValueError"
    assert said["exception.escaped"] == "False"
    assert said["exception.stacktrace"].startswith("Traceback (most recent call last):")
    assert said["exception.stacktrace"].endswith("ValueError: é\n€\n")


def test_long_texts_are_cut(bench: Bench) -> None:
    size = 1_500_000
    bench.run(
        attempt(), status="failed", reason="error", error=raised(ValueError("a" * size + "z"))
    )
    span = bench.only()
    assert span.status.description == "a" * 500
    [event] = span.events
    said: Any = event.attributes
    assert said["exception.message"] == "a" * 16_000
    stack = said["exception.stacktrace"]
    assert len(stack) < 16_100
    assert stack.startswith("Traceback (most recent call last):")
    assert "in _raise" in stack, "the lines of the code"
    assert "characters left out" in stack
    assert stack.endswith("az\n"), "and its end, where the last exception of a chain is"
    assert len(encode([span])) < 40_000


def test_half_characters_make_no_text_longer_than_that(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    error = raised(ValueError("\udce9" * 100_000))
    bench.run(attempt(), status="failed", reason="error", error=error)
    span = bench.only()
    can_be_sent([span], caplog)
    assert len(span.status.description or "") == 500
    [event] = span.events
    said: Any = event.attributes
    assert len(said["exception.message"]) == 16_000
    assert len(said["exception.stacktrace"]) < 16_100


def test_what_is_as_long_as_may_be_is_whole(bench: Bench) -> None:
    bench.run(attempt(), status="failed", reason="error", error=ValueError("é" * 16_000))
    [event] = bench.only().events
    said: Any = event.attributes
    assert said["exception.message"] == "é" * 16_000
    frames = "".join(f"line {i}\n" for i in range(1_600))
    assert shortened(frames[:16_000]) == frames[:16_000]
    assert shortened("x" * 16_010 + "y") == (
        "x" * 8_000 + "\n... 11 characters left out ...\n" + "x" * 7_999 + "y"
    )
