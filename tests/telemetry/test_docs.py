"""The reference page is what ``names`` says, and its examples use real names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streaq.telemetry import names
from tools import telemetry_docs

DOCS = Path(__file__).parents[2] / "docs"
SERIES = {series for metric in names.METRICS for series in metric.series}
BASES = {metric.name for metric in names.METRICS}


def test_the_reference_is_up_to_date() -> None:
    page = telemetry_docs.PAGE.read_text(encoding="utf-8")
    assert page == telemetry_docs.updated(page), "run python -m tools.telemetry_docs"


@pytest.mark.parametrize("page", ["telemetry.md", "cardinality.md"])
def test_every_metric_that_is_named_exists(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\bstreaq_(?:task|tasks|queue|cron|redis|worker|schedule)_\w+", text))
    assert named
    assert named <= SERIES | BASES


def test_every_log_event_that_is_named_exists() -> None:
    text = (DOCS / "telemetry.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:task|worker|redis|loop)\.[a-z]+)`", text))
    assert named == {event.name for event in names.LOG_EVENTS}


def test_every_attribute_that_is_named_exists() -> None:
    text = (DOCS / "telemetry.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:streaq\.task|messaging|server|error)\.[a-z_.]+[a-z]", text))
    assert named == {a.name for a in names.ATTRIBUTES} - {"streaq.link"}


def test_the_counts_on_the_page_about_cardinality() -> None:
    text = (DOCS / "cardinality.md").read_text(encoding="utf-8")
    per_histogram = len(names.TASK_BUCKETS) + 3
    assert f"3 times {per_histogram}" in text
    per_priority = [
        metric
        for metric in names.METRICS
        if metric.scope == "queue" and metric.labels[:2] == names.PER_PRIORITY
    ]
    series = sum(len(names.OUTCOMES) if "status" in m.labels else 1 for m in per_priority)
    assert f"queue and priority there are {series} series" in text
    operation = len(names.REDIS_BUCKETS) + 3 + 1
    assert f"per Redis operation {operation}" in text
