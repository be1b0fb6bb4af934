"""Writes the reference tables of ``docs/telemetry.md`` from ``streaq.telemetry.names``.

``python -m tools.telemetry_docs`` rewrites what is between the markers; a test says when the page
and the names differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from streaq.telemetry import names
from streaq.telemetry.names import Attribute, LogEvent, Metric, SpanName

PAGE = Path(__file__).parents[1] / "docs" / "telemetry.md"
BEGIN, END = "<!-- begin: written by tools/telemetry_docs.py -->", "<!-- end -->"


def render() -> str:
    """The reference, as Markdown."""
    return "\n".join([*_metrics(), *_spans(), *_logs()]).strip()


def updated(page: str) -> str:
    """The page with its reference as it should be."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{render()}\n\n{END}{tail}"


def _code(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words) or "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _metrics() -> Iterator[str]:
    yield "### Metrics"
    yield ""
    yield "| Name | Type | Labels | Counted by | Meaning |"
    yield "|---|---|---|---|---|"
    for metric in names.METRICS:
        yield _metric(metric)
    yield ""
    yield "| Label | Values |"
    yield "|---|---|"
    yield f"| `kind` | {_code(names.KINDS)} |"
    yield f"| `status` of tasks that finished | {_code(names.OUTCOMES)} |"
    yield f"| `status` of an attempt's duration | {_code(names.ATTEMPT_STATUSES)} |"
    yield f"| `reason` of a retry | {_code(names.RETRY_REASONS)} |"
    yield f"| `reason` of a refusal | {_code(names.REFUSALS)} |"
    yield f"| `task`, `exception` | the name; `{names.OTHER}` beyond the cap |"
    yield ""


def _metric(metric: Metric) -> str:
    counted = "Redis" if metric.scope == "queue" else "process"
    labels = _code(metric.labels)
    return f"| `{metric.name}` | {metric.type} | {labels} | {counted} | {_cell(metric.help)} |"


def _spans() -> Iterator[str]:
    yield "### Spans"
    yield ""
    yield "| Span | Kind | Meaning |"
    yield "|---|---|---|"
    for span in names.SPANS:
        yield f"| `{span.name}` | {span.kind} | {_cell(span.help)} |"
    yield ""
    yield "| Attribute | Type | On | At start | Meaning |"
    yield "|---|---|---|---|---|"
    for attribute in names.ATTRIBUTES:
        yield _attribute(attribute)
    yield ""


def _attribute(attribute: Attribute) -> str:
    def has(span: SpanName) -> bool:
        return attribute.name in span.attributes

    on = tuple(span.name.split()[0] for span in names.SPANS if has(span)) or ("links",)
    start = "yes" if attribute.at_start else "no"
    return (
        f"| `{attribute.name}` | {attribute.type} | {', '.join(on)} | {start} "
        f"| {_cell(attribute.help)} |"
    )


def _logs() -> Iterator[str]:
    yield "### Log events"
    yield ""
    yield "| Event | Level | Meaning | Fields | Only sometimes |"
    yield "|---|---|---|---|---|"
    for event in names.LOG_EVENTS:
        yield _log(event)
    yield ""
    yield "| Field | Meaning |"
    yield "|---|---|"
    for field, meaning in names.FIELDS.items():
        yield f"| `{field}` | {_cell(meaning)} |"


def _log(event: LogEvent) -> str:
    fields, optional = _code(event.fields), _code(event.optional)
    others = (f", or {level} ({reason})" for reason, level in event.other_levels.items())
    level = "".join((event.level, *others))
    return f"| `{event.name}` | {level} | {_cell(event.help)} | {fields} | {optional} |"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")
