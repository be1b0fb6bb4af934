"""Dashboards and alerts against a real Prometheus that scrapes real workers.

First everything is well, then one fault after the other; every query of every panel has to give
data, and what should be empty when all is well has to be.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
import yaml

from streaq.telemetry import names
from streaq.telemetry.names import METRICS
from tests.stack.conftest import ROOT, dashboards, need
from tests.stack.plant import Plant, eventually, until
from tools.dashboards.ask import ANY, interpolate, panels
from tools.dashboards.pictures import WIDTH, draw_all

pytestmark = pytest.mark.timeout(400)

DASHBOARDS = dashboards()
MISSED = "Missed in the last hour"
EMPTY_WHEN_WELL = {
    "Reclaimed": "no worker was lost, until one is killed",
    "Fenced": "no worker came back too late, until one is paused",
    "Redis errors by operation": "Redis was there, until it is killed",
    MISSED: "a worker was always alive, until all are sent away",
}
"""Panels with nothing (or only zeros) to show when all is well, and the fault that fills them."""


RETURNED = f'{names.TASK_DURATION.name}_count{{{names.STATUS}="returned"}}'
AWAY_S = 12.0
"""At least two firings of the shop's schedule: the last is made up for, the one before missed."""


class Ask(NamedTuple):
    """One query of one panel."""

    dashboard: str
    panel: dict[str, Any]
    target: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.dashboard}: {self.panel['title']} {self.target['refId']}"


ASKS = [
    Ask(name.removesuffix(".json"), panel, target)
    for name, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
    for target in panel["targets"]
]
each_ask = pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.name)


def numbers(series: list[dict[str, Any]]) -> list[float]:
    """Every number in an answer, of an instant or a range; NaN is none."""
    found = [
        float(text)
        for one in series
        for _, text in (one.get("values") or [one["value"]])
    ]  # fmt: skip
    return [number for number in found if number == number]  # noqa: PLR0124 - that is NaN's test


class Shift(NamedTuple):
    """What every query said at the end of one part of the story."""

    plant: Plant
    answers: dict[str, list[float]]


def ask_everything(plant: Plant) -> dict[str, list[float]]:
    window = plant.window()
    return {
        ask.name: numbers(plant.prometheus.target(ask.panel, ask.target, window)) for ask in ASKS
    }


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with Plant(tmp_path_factory.mktemp("plant")) as plant:
        yield plant


@pytest.fixture(scope="module")
def well(plant: Plant) -> Shift:
    """After a while of work without a fault, when there is nothing left to wait for."""
    # Long enough for a rate over the widest window, and for each minute's bar.
    eventually(lambda: plant.window().range_s > 75, 90)
    return Shift(plant, ask_until(plant, {ask.panel["title"] for ask in ASKS} - {*EMPTY_WHEN_WELL}))


@pytest.fixture(scope="module")
def troubled(well: Shift) -> Shift:
    """After one fault of each kind, each given the time to be drawn: a bar is a minute wide."""
    plant = well.plant
    reclaimed, fenced, errors = (
        f"sum({metric.name})"
        for metric in (names.TASKS_RECLAIMED, names.TASKS_FENCED, names.REDIS_ERRORS)
    )
    before = plant.value(reclaimed)
    plant.kill_a_worker("patient", "once")
    until("a killed worker's tasks are reclaimed", lambda: plant.value(reclaimed) > before)
    before = plant.value(fenced)
    plant.pause_a_worker("patient")
    until("the paused worker's settles are fenced", lambda: plant.value(fenced) > before)
    plant.replace_a_worker("patient")
    until("what it runs is handed back", lambda: plant.value(f"sum({RETURNED})") > 0)
    plant.take_redis_away(lambda: plant.value(errors) > 0)
    ask_until(plant, {*EMPTY_WHEN_WELL} - {MISSED})
    gone = time.monotonic()
    plant.send_the_workers_away(lambda: time.monotonic() > gone + AWAY_S)
    return Shift(plant, ask_until(plant, {ask.panel["title"] for ask in ASKS}))


def ask_until(plant: Plant, shown: set[str], within_s: float = 120.0) -> dict[str, list[float]]:
    """Every answer, once the panels of these titles have one (but zeros, of those that may be
    empty). When they are not complete in time, the tests below say which is missing.
    """
    answers: dict[str, list[float]] = {}

    def complete() -> bool:
        answers.update(ask_everything(plant))
        return all(
            any(answers[ask.name]) if ask.panel["title"] in EMPTY_WHEN_WELL else answers[ask.name]
            for ask in ASKS
            if ask.panel["title"] in shown
        )

    eventually(complete, within_s)
    return answers


@each_ask
def test_it_gives_data_when_it_should_and_none_when_it_should_not(ask: Ask, well: Shift) -> None:
    reason = EMPTY_WHEN_WELL.get(ask.panel["title"])
    if reason:
        assert not any(well.answers[ask.name]), reason
    else:
        assert well.answers[ask.name], interpolate(ask.target["expr"], well.plant.window())


@pytest.mark.parametrize(
    "ask", [ask for ask in ASKS if ask.panel["type"] == "stat"], ids=lambda ask: ask.name
)
def test_a_tile_is_one_number(ask: Ask, well: Shift) -> None:
    plant = well.plant
    assert len(plant.prometheus.target(ask.panel, ask.target, plant.window())) == 1


def test_panels_listed_as_empty_exist() -> None:
    assert set(EMPTY_WHEN_WELL) <= {ask.panel["title"] for ask in ASKS}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_scraped(metric: names.Metric, troubled: Shift) -> None:
    at = time.time()
    for series in metric.series:
        found = troubled.plant.prometheus.instant(f"last_over_time({series}[10m])", at)
        assert found, f"{series} was never seen"
        for one in found:
            extra = {"le"} if series.endswith("_bucket") else set()
            own = set(one["metric"]) - {"__name__", "job", "instance"}
            assert own <= {*metric.labels, *extra}


OUTCOMES = {
    names.TASKS_ENQUEUED.name: (names.KIND, names.KINDS),
    names.TASKS_FINISHED.name: (names.STATUS, names.OUTCOMES),
    f"{names.TASK_DURATION.name}_count": (names.STATUS, names.ATTEMPT_STATUSES),
    names.TASKS_RETRIED.name: (names.REASON, names.RETRY_REASONS),
    names.TASKS_REFUSED.name: (names.REASON, names.REFUSALS),
}


@pytest.mark.parametrize("series", list(OUTCOMES))
def test_the_workload_comes_to_every_outcome(series: str, troubled: Shift) -> None:
    label, values = OUTCOMES[series]
    query = f"count by ({label}) (last_over_time({series}[10m]) > 0)"
    found = troubled.plant.prometheus.instant(query, time.time())
    assert {one["metric"][label] for one in found} == set(values)


@pytest.mark.parametrize("name", list(DASHBOARDS))
def test_the_variables_have_values_to_choose_from(name: str, well: Shift) -> None:
    now = time.time()
    chosen = {"datasource": "prometheus"}
    for variable in DASHBOARDS[name]["templating"]["list"]:
        if variable["type"] != "query":
            continue
        series = variable["query"]["query"].removeprefix("label_values(").rsplit(",", 1)[0]
        expression = interpolate(series, well.plant.window(), variables=chosen)
        found = well.plant.prometheus.instant(f"count by ({variable['name']}) ({expression})", now)
        values = {one["metric"].get(variable["name"], "") for one in found} - {""}
        assert values, variable["name"]
        chosen[variable["name"]] = ANY


@pytest.mark.parametrize(
    "metric",
    # A task that becomes due has no span yet, and a call to Redis is made for many.
    [names.TASK_QUEUE_WAIT, names.TASK_DURATION, names.TASK_END_TO_END],
    ids=lambda metric: metric.name,
)
def test_histograms_carry_exemplars_that_name_a_trace(metric: names.Metric, well: Shift) -> None:
    found = well.plant.prometheus.exemplars(f"{metric.name}_bucket", well.plant.window())
    traces = {e["labels"].get("trace_id") for one in found for e in one["exemplars"]}
    assert traces
    assert all(trace and len(trace) == 32 for trace in traces)


@each_ask
def test_a_fault_shows_where_it_should(ask: Ask, troubled: Shift) -> None:
    if ask.panel["title"] in EMPTY_WHEN_WELL:
        assert any(troubled.answers[ask.name])
    else:
        assert troubled.answers[ask.name]


def test_the_query_that_scales_on_kubernetes_gives_one_number(troubled: Shift) -> None:
    text = (ROOT / "examples" / "kubernetes" / "scaling.yaml").read_text(encoding="utf-8")
    (trigger,) = yaml.safe_load(text)["spec"]["triggers"]
    query = trigger["metadata"]["query"].replace('queue="orders"', 'queue="shop"')
    (found,) = troubled.plant.prometheus.over(query, troubled.plant.window())
    assert max(numbers([found])) > 0, "the queue was late while all workers were away"


def test_every_rule_is_evaluated_without_an_error(troubled: Shift) -> None:
    groups = troubled.plant.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 20
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.parametrize("alert", ["StreaqReclaims", "StreaqFencedSettles", "StreaqCronMissed"])
def test_alerts_reach_alertmanager_as_people_will_see_them(alert: str, troubled: Shift) -> None:
    def arrived() -> list[dict[str, Any]]:
        with urlopen(f"{troubled.plant.alertmanager_url}/api/v2/alerts", timeout=5) as answer:
            return [one for one in json.load(answer) if one["labels"]["alertname"] == alert]

    until(f"{alert} arrives", arrived, 60)
    (found, *_) = arrived()
    assert found["labels"]["queue"] == "shop"
    assert found["labels"]["severity"] == "ticket"
    assert not {"grafana", "runbooks"} & set(found["labels"]), "dropped before they leave"
    assert found["annotations"]["runbook_url"].startswith("docs/runbooks/")
    assert "shop" in found["annotations"]["dashboard"]
    assert "{{" not in str(found["annotations"])


def test_the_workers_came_through_it(troubled: Shift) -> None:
    """The plant recovers by itself: workers alive, tasks starting, nothing stuck."""
    plant = troubled.plant
    until("both workers are alive", lambda: plant.value(f"max({names.QUEUE_WORKERS.name})") >= 2)
    until("tasks are started again",
          lambda: plant.value(f"sum(rate({names.TASKS_STARTED.name}[30s]))") > 1)  # fmt: skip


def test_logs_are_one_json_object_a_line(troubled: Shift) -> None:
    log: Path = troubled.plant.workers[0].log
    # The last line may still be on its way.
    lines = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    assert len(lines) > 100
    assert all("event" in json.loads(line) for line in lines)


def test_every_dashboard_can_be_drawn(troubled: Shift, tmp_path: Path) -> None:
    """By Grafana's own components, in a browser, from what this Prometheus has seen."""
    for program in ("node", "npm", "chromium"):
        need(program)
    pictures = draw_all(troubled.plant.prometheus, troubled.plant.window(), tmp_path)
    assert len(pictures) == len(DASHBOARDS)
    for picture in pictures:
        header = picture.read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:24])
        assert header.startswith(b"\x89PNG")
        assert (width, height > 1000) == (WIDTH, True)
        assert picture.stat().st_size > 50_000, "a blank page is smaller"
