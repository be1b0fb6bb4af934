"""Rules, alerts, their tests and runbooks: checked by Prometheus' and Alertmanager's tools."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from streaq.telemetry.names import METRICS
from tests.stack.conftest import ROOT, need
from tests.stack.expressions import parse, uses
from tools.dashboards import promql, theme
from tools.dashboards.links import UIDS

RULES = sorted((ROOT / "prometheus" / "rules").glob("*.yml"))
TESTS = sorted((ROOT / "prometheus" / "tests").glob("*.test.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
SERIES = {series: metric for metric in METRICS for series in metric.series}
HEADINGS = ["What it means", "First, in one minute", "Then", "If it was a false alarm"]


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            found += group["rules"]
    return found


ALERTS = [rule for rule in rules() if "alert" in rule]
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def run(program: str, *arguments: object) -> None:
    done = subprocess.run(
        [need(program), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration() -> None:
    run("promtool", "check", "config", ROOT / "prometheus" / "prometheus.yml")


def test_promtool_accepts_the_rules() -> None:
    run("promtool", "check", "rules", "--lint-fatal", *RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_must_and_are_silent_when_they_must(path: Path) -> None:
    run("promtool", "test", "rules", path)


def test_amtool_accepts_the_configuration() -> None:
    run("amtool", "check-config", ROOT / "alertmanager" / "alertmanager.yml")


@pytest.mark.parametrize(
    ("severity", "receiver"), [("page", "pager"), ("ticket", "tickets"), ("", "tickets")]
)
def test_alerts_go_to_whom_they_concern(severity: str, receiver: str) -> None:
    config = ROOT / "alertmanager" / "alertmanager.yml"
    labels = [f"severity={severity}"] if severity else ["alertname=Other"]
    run("amtool", "config", "routes", "test", f"--config.file={config}",
        f"--verify.receivers={receiver}", *labels)  # fmt: skip


def test_inhibitions_name_alerts_that_exist() -> None:
    text = (ROOT / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"Streaq\w+", text))
    assert named
    assert named <= {alert["alert"] for alert in ALERTS}


def test_every_alert_is_shown_to_fire_and_to_be_silent() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for path in TESTS:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in group["alert_rule_test"]:
                (fires if case["exp_alerts"] else silent).add(case["alertname"])
    every = {alert["alert"] for alert in ALERTS}
    assert fires == every
    assert silent == every


def test_rules_name_only_what_streaq_emits_or_another_rule_records() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        for use in uses(parse(rule["expr"])):
            if use.name in recorded or use.name == promql.UP:
                continue
            labels = {*SERIES[use.name].labels} | ({"le"} if "_bucket" in use.name else set())
            assert set(use.labels) <= labels, rule["expr"]


def test_no_rule_is_recorded_for_nobody() -> None:
    used = {use.name for rule in rules() for use in uses(parse(rule["expr"]))}
    assert {rule["record"] for rule in rules() if "record" in rule} <= used


def test_rules_and_dashboards_hold_the_same_objective() -> None:
    recording = next(path for path in RULES if "recording" in path.name).read_text("utf-8")
    assert set(re.findall(r'le="([\d.]+)"', recording)) == {str(theme.WAIT_OBJECTIVE_S)}
    allowed = {match for alert in ALERTS for match in re.findall(r"\* (0\.\d+)", alert["expr"])}
    assert {float(share) for share in allowed} == {round(1 - theme.WAIT_TARGET, 6)}


@each_alert
def test_it_says_what_is_wrong_and_where_to_look(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"page", "ticket"}
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard"}
    assert len(notes["summary"]) < 100
    assert notes["description"].endswith(".")
    uid = re.search(r"/d/([\w-]+)", notes["dashboard"])
    assert uid
    assert uid[1] in UIDS.values()


@each_alert
def test_it_has_a_runbook_for_the_person_woken_up(alert: dict[str, Any]) -> None:
    page = RUNBOOKS / alert["annotations"]["runbook_url"].rsplit("/", 1)[1]
    text = page.read_text(encoding="utf-8")
    assert alert["alert"] in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


def test_each_alert_has_a_runbook_of_its_own_and_each_runbook_an_alert() -> None:
    wanted = [alert["annotations"]["runbook_url"].rsplit("/", 1)[1] for alert in ALERTS]
    assert sorted(wanted) == sorted({page.name for page in RUNBOOKS.glob("*.md")} - {"README.md"})


def test_the_list_of_runbooks_says_what_the_rules_say() -> None:
    text = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\| (Streaq\w+) \| (\w+) \| \[([\w-]+)\]\(\3\.md\) \|$", text, re.MULTILINE
    )
    assert listed == [
        (
            alert["alert"],
            alert["labels"]["severity"],
            alert["annotations"]["runbook_url"][:-3].rsplit("/", 1)[1],
        )
        for alert in ALERTS
    ]
