"""What a span says of how it ended: the outcome, and the error with its text.

The text of an exception may hold anything: half a character, as the name of a file that is not
UTF-8 has, or a megabyte. No exporter can send the one, and no collector takes much of the other
(four megabytes of a whole batch over gRPC), so that one such span would take all that wait with it
along. So text is made encodable, and cut, where it enters a span; that costs nothing where nothing
fails.
"""

from __future__ import annotations

import traceback

from opentelemetry.trace import Span, Status, StatusCode

from streaq.hooks import Ending
from streaq.telemetry import names_spans as n
from streaq.telemetry.light_span import LightSpan, Values
from streaq.wire import encodable, text_of

DESCRIPTION, MESSAGE, STACKTRACE = 500, 16_000, 16_000
"""Characters of the status' description, and of the exception's message and traceback."""


def shortened(text: str) -> str:
    """A traceback of at most ``STACKTRACE`` characters and a line that says what was left out: its
    two ends, since the first says where it began, and the last what it came to.
    """
    left_out = len(text) - STACKTRACE
    if left_out <= 0:
        return text
    half = STACKTRACE // 2
    return f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"


def close_span(span: Span, e: Ending) -> None:
    """Outcome, error and status. Only the end of a task in failure is an error."""
    if not span.is_recording():
        return
    ended: Values = {n.TASK_OUTCOME: e.status, n.TASK_REASON: e.reason}
    if isinstance(span, LightSpan):
        span.note(ended)
    else:
        span.set_attributes(ended)
    if e.status == "failed":
        fail(span, type(e.error).__name__ if e.error is not None else e.reason, e.error)
    elif e.status == "refused":
        fail(span, e.reason, e.error)
    elif e.status != "success" and e.error is not None:
        if e.status == "aborted":
            span.set_attribute(n.ERROR_TYPE, type(e.error).__name__)
        _record(span, e.error)


def fail(span: Span, kind: str, error: BaseException | None) -> None:
    """Make it an error of this ``kind``, with the exception if there is one."""
    span.set_attribute(n.ERROR_TYPE, kind)
    said = encodable(text_of(error))[:DESCRIPTION] if error is not None else kind
    span.set_status(Status(StatusCode.ERROR, said))
    if error is not None:
        _record(span, error)


def _record(span: Span, error: BaseException) -> None:
    # As ``Span.record_exception`` has it, which takes the text as it is, however long, and lets out
    # what a user's ``__str__`` raises.
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("", "builtins"):
        name = f"{kind.__module__}.{name}"
    said = {
        "exception.type": encodable(name),
        "exception.message": encodable(text_of(error))[:MESSAGE],
        "exception.stacktrace": shortened(encodable(_stacktrace(error))),
        "exception.escaped": "False",
    }
    span.add_event("exception", said)


def _stacktrace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as e:  # noqa: BLE001 - it asks loaders of modules, and users' exceptions
        return f"(it cannot be written: {type(e).__name__})"
