"""The dashboards are what the generator makes, and keep the rules that Grafana's linter has."""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from promql_parser import BinaryExpr, Call

from streaq.dashboards import export, names, read
from streaq.telemetry.names import BUILD_INFO, METRICS, Metric
from streaq.types import StreaqError
from tests.stack.conftest import ROOT, dashboards
from tests.stack.expressions import Use, parse, uses
from tests.stack.showcase import LATE
from tools.dashboards import promql
from tools.dashboards.__main__ import render
from tools.dashboards.links import UIDS

DASHBOARDS = dashboards()
SERIES: dict[str, Metric] = {series: metric for metric in METRICS for series in metric.series}
COUNTED = {
    series for series, metric in SERIES.items() if metric.type in {"counter", "histogram"}
} | {promql.PROCESS_CPU}
VARIABLES = ["datasource", "job", "instance", "queue", "priority", "task"]
RATE, RANGE = "$__rate_interval", "$__range"


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def every_panel() -> Iterator[Any]:
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            yield pytest.param(panel, id=f"{name}: {panel['title']}")


def every_use(panel: dict[str, Any]) -> Iterator[Use]:
    for target in panel["targets"]:
        yield from uses(parse(target["expr"]))


each_panel = pytest.mark.parametrize("panel", list(every_panel()))
each_dashboard = pytest.mark.parametrize("name", list(DASHBOARDS))


def test_the_committed_files_are_what_the_generator_makes() -> None:
    committed = {
        path.name: path.read_text(encoding="utf-8")
        for path in (ROOT / "streaq" / "dashboards").glob("*.json")
    }
    assert committed == render(), "run `make dashboards` and commit what it writes"


def test_people_find_them_at_the_top_of_the_repository() -> None:
    found = {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "dashboards").glob("*.json")
    }
    assert found == render()


def test_their_pictures_are_shown_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for picture in (*(f"{Path(name).stem}.png" for name in DASHBOARDS), LATE):
        assert (ROOT / "docs" / "images" / picture).read_bytes().startswith(b"\x89PNG")
        assert re.search(rf"!\[[^\]]+\]\(docs/images/{picture}\)", readme), picture


def test_they_come_out_of_the_package_as_they_are(tmp_path: Path) -> None:
    written = export(tmp_path / "made" / "for it")
    assert [path.name for path in written] == names() == sorted(DASHBOARDS)
    assert {path.name: path.read_text(encoding="utf-8") for path in written} == render()


def test_they_ship_in_the_wheel(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("streaq/dashboards/")}
    assert {f"streaq/dashboards/{name}" for name in DASHBOARDS} < shipped


def test_export_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StreaqError, match=r"cannot write dashboards to .*file: "):
        export(tmp_path / "file")
    with pytest.raises(StreaqError, match=r"no dashboard 'x\.json'; there are cron\.json"):
        read("x.json")


def test_every_metric_is_looked_at_by_a_panel_or_an_alert() -> None:
    rules = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "prometheus" / "rules").glob("*.yml")
    )
    seen = {
        use.name
        for dashboard in DASHBOARDS.values()
        for p in panels(dashboard)
        for use in every_use(p)
    }
    unseen = [
        metric.name
        for metric in METRICS
        if not seen & set(metric.series) and not any(series in rules for series in metric.series)
    ]
    assert unseen == []


@each_dashboard
def test_it_is_in_the_classic_model_with_a_stable_uid(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] == 41
    assert dashboard["uid"] in UIDS.values()
    assert dashboard["editable"] is False
    assert dashboard["tags"] == ["streaq"]
    assert "id" not in dashboard


def test_no_two_dashboards_share_a_uid_a_title_or_a_panel_id() -> None:
    assert len({d["uid"] for d in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert len({d["title"] for d in DASHBOARDS.values()}) == len(DASHBOARDS)
    ids = [panel["id"] for d in DASHBOARDS.values() for panel in d["panels"]]
    assert len(set(ids)) == len(ids)


@each_dashboard
def test_it_has_the_variables(name: str) -> None:
    found = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}
    assert [variable for variable in found if not found[variable]["hide"]] == VARIABLES
    assert found["datasource"]["type"] == "datasource"
    assert found["datasource"]["query"] == "prometheus"
    for variable in VARIABLES[1:]:
        model = found[variable]
        assert model["type"] == "query"
        assert model["label"] == variable.capitalize()
        assert model["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert model["multi"]
        assert model["includeAll"]
        assert model["allValue"] == (".+" if variable in {"job", "instance"} else ".*")
        assert model["refresh"] == 2, "new values appear when the time range changes"
        wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", model["query"]["query"])
        assert wanted
        assert wanted[2] == variable
        for use in uses(parse(wanted[1])):
            for series in use.name.split("|"):
                assert {variable, "job", "instance"} & {*SERIES[series].labels, "job", "instance"}


@each_dashboard
def test_no_two_panels_have_the_same_title(name: str) -> None:
    titles = [panel["title"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(titles)) == len(titles)


@each_dashboard
def test_panels_fill_the_grid_without_overlap_or_holes(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        box = panel["gridPos"]
        cells = set(
            itertools.product(
                range(box["x"], box["x"] + box["w"]), range(box["y"], box["y"] + box["h"])
            )
        )
        assert box["x"] + box["w"] <= 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
    rows = max(y for _, y in taken) + 1
    assert len(taken) == 24 * rows, "there is a hole in the grid"


def test_the_front_page_shows_at_most_eight_panels_before_the_fold() -> None:
    front = DASHBOARDS["queue-latency.json"]["panels"]
    fold = next(panel for panel in front if panel["type"] == "row")["gridPos"]["y"]
    above = [panel for panel in front if panel["gridPos"]["y"] < fold]
    assert len(above) <= 8
    assert fold * 38 < 600, "in pixels: it has to fit a laptop under Grafana's own bars"


@each_dashboard
def test_it_leads_to_the_others_and_to_the_traces(name: str) -> None:
    links = DASHBOARDS[name]["links"]
    assert [link["type"] for link in links] == ["dashboards", "link"]
    assert links[0]["includeVars"]
    assert links[0]["keepTime"]
    assert links[1]["url"].startswith("/explore?")
    assert "${traces}" in links[1]["url"]


def test_links_inside_panels_name_dashboards_that_exist() -> None:
    targets = set(re.findall(r"/d/([\w-]+)", str(DASHBOARDS)))
    assert targets
    assert targets <= set(UIDS.values())


@each_panel
def test_it_says_what_it_shows_and_what_to_do(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["title"][0].isupper()
    assert len(panel["description"]) > 60, "say what to do when it looks wrong"
    assert panel["description"].rstrip().endswith(".")


@each_panel
def test_it_asks_the_chosen_data_source(panel: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == chosen
    assert panel["targets"]
    assert [target["datasource"] for target in panel["targets"]] == [chosen] * len(panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_panel
def test_it_has_a_unit(panel: dict[str, Any]) -> None:
    config = panel["fieldConfig"]
    assert config["defaults"]["unit"]
    if panel["type"] == "table":
        units = [
            override["matcher"]["options"]
            for override in config["overrides"]
            if any(p["id"] == "unit" for p in override["properties"])
        ]
        renamed = panel["transformations"][1]["options"]["renameByName"]
        columns = [title for field, title in renamed.items() if field.startswith("Value")]
        assert units == columns
        assert len(columns) == len(panel["targets"])


@pytest.mark.parametrize("panel", [one for one in every_panel() if one.values[0]["type"] == "stat"])
def test_a_tile_shows_what_is_and_not_what_was(panel: dict[str, Any]) -> None:
    """With the last number there was, it would stay green when everything has stopped."""
    assert panel["options"]["reduceOptions"]["calcs"] == ["last"]
    (target,) = panel["targets"]
    assert target["expr"].endswith(" or vector(NaN)")
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    assert mapping["options"]["match"] == "null+nan"
    assert mapping["options"]["result"]["text"] == panel["fieldConfig"]["defaults"]["noValue"]


@each_panel
def test_its_queries_name_only_what_streaq_emits(panel: dict[str, Any]) -> None:
    for use in every_use(panel):
        if use.name in promql.OTHERS:
            continue
        metric = SERIES[use.name]
        allowed = {*metric.labels, "job", "instance"} | ({"le"} if "bucket" in use.name else set())
        assert set(use.labels) <= allowed, use.selector.prettify()


@each_panel
def test_its_selectors_follow_the_variables(panel: dict[str, Any]) -> None:
    for use in every_use(panel):
        assert use.labels["job"] == "$job"
        assert use.labels["instance"] == "$instance"
        if use.name in promql.OTHERS and not _is_birth_condition(use):
            assert BUILD_INFO.name in str(panel["targets"]), "only streaq's own targets"
        metric = SERIES.get(use.name)
        if metric and "queue" in metric.labels:
            assert use.labels["queue"] == "$queue"


@each_panel
def test_rates_follow_the_zoom(panel: dict[str, Any]) -> None:
    for use in every_use(panel):
        if {"rate", "avg_over_time"} & set(use.functions):
            assert use.window == RATE
        if {"increase", "min_over_time", "last_over_time"} & set(use.functions):
            assert use.window in {RATE, RANGE, "300s", "3600s"}
        assert not {"irate", "delta", "idelta"} & set(use.functions)


@each_panel
def test_counters_stand_inside_a_rate(panel: dict[str, Any]) -> None:
    for use in every_use(panel):
        if use.name in COUNTED and not {"rate", "increase"} & set(use.functions):
            assert _is_birth(use) or _is_zero(use) or _is_gain(use), use.selector.prettify()


@each_panel
def test_histograms_show_exemplars(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        buckets = any(use.name.endswith("_bucket") for use in uses(parse(target["expr"])))
        drawn = panel["type"] in ("heatmap", "timeseries") and "le=" not in target["expr"]
        if buckets and drawn:
            assert target["exemplar"] is True


@each_panel
def test_what_redis_knows_is_never_counted_twice(panel: dict[str, Any]) -> None:
    """Every process serves the same value: the first thing around it joins them."""
    for use in every_use(panel):
        metric = SERIES.get(use.name)
        if metric is None or metric.scope == "process":
            continue
        around = [a for a in reversed(use.around) if hasattr(a, "modifier") and hasattr(a, "expr")]
        assert str(around[0].op) in {"max", "min"}, use.selector.prettify()
        assert set(around[0].modifier.labels) == set(metric.labels)


def _is_birth(use: Use) -> bool:
    """``x unless x offset window``: how promql.events sees the first event of all."""
    near = use.around[-1]
    return isinstance(near, BinaryExpr) and str(near.op) == "unless"


def _is_birth_condition(use: Use) -> bool:
    return use.name == promql.UP and use.selector.offset is not None


def _is_zero(use: Use) -> bool:
    near = use.around[-1]
    return isinstance(near, BinaryExpr) and str(near.op) == "*" and near.lhs.prettify() == "0"


def _is_gain(use: Use) -> bool:
    """``max(x) - min(min_over_time(x))``: how promql.gained compares what Redis counted."""
    near = next((a for a in use.around if isinstance(a, Call)), None)
    return SERIES[use.name].scope == "queue" and near is not None and near.func.name == "clamp_min"
