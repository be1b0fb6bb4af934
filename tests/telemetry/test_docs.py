"""The reference page is what ``names`` says, and its examples use real names."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from streaq.telemetry import names
from tests.telemetry.plant import documented_balance, need
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


def test_the_balance_of_several_queues_on_several_instances(tmp_path: Path) -> None:
    """`orders` of one instance has lost two tasks, `mail` of two none, though it has some left."""
    series: list[dict[str, str]] = []
    for queue, instance, enqueued, finished, depth in (
        ("orders", "a", 100, 98, 0), ("mail", "b", 50, 20, 30), ("mail", "c", 50, 20, 30),
    ):  # fmt: skip
        labels = f'instance="{instance}",queue="{queue}",priority="p"'
        counts = {"enqueued_total": enqueued, "depth": depth, "scheduled": 0, "blocked": 0}
        series += [
            {"series": f"streaq_queue_{name}{{{labels}}}", "values": f"{value}x4"}
            for name, value in {**counts, "running": 0}.items()
        ]
        series += [
            {"series": f'streaq_queue_finished_total{{{labels},status="{status}"}}', "values": many}
            for status, many in (("success", f"{finished}x4"), ("failed", "0x4"))
        ]
    expected = [
        {"labels": f'{{queue="{queue}"}}', "value": lost}
        for queue, lost in (("mail", 0), ("orders", 2))
    ]
    check = {
        "expr": documented_balance(), "eval_time": "30s", "exp_samples": expected,
    }  # fmt: skip
    test = {"interval": "15s", "input_series": series, "promql_expr_test": [check]}
    path = tmp_path / "balance.test.yml"
    path.write_text(json.dumps({"evaluation_interval": "15s", "tests": [test]}), "utf-8")
    done = subprocess.run(
        [need("promtool"), "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
