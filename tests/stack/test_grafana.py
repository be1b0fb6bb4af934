"""What Grafana itself says: its units, its types, and how it reads provisioning files."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.stack.conftest import ROOT, dashboards, need
from tools.dashboards import web_tools

PROVISIONING = ROOT / "grafana" / "provisioning"
TSC = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--target", "es2022"]
KNOWN_IN_A_SOURCE = {
    "access", "editable", "isDefault", "jsonData", "name", "type", "uid", "url",
}  # fmt: skip
KNOWN_IN_JSON_DATA = {
    "prometheus": {"httpMethod", "timeInterval", "exemplarTraceIdDestinations"},
    "tempo": {"nodeGraph", "tracesToLogsV2", "tracesToMetrics"},
    "loki": {"derivedFields"},
}
KNOWN_IN_A_PROVIDER = {
    "name", "orgId", "folder", "folderUid", "type", "disableDeletion", "updateIntervalSeconds",
    "allowUiUpdates", "options",
}  # fmt: skip


@pytest.fixture(scope="session")
def web() -> None:
    """Grafana's packages from npm, in a folder that is never committed."""
    need("node")
    need("npm")
    web_tools.workshop()


def units(dashboard: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            found.add(panel["fieldConfig"]["defaults"]["unit"])
            for override in panel["fieldConfig"]["overrides"]:
                found |= {p["value"] for p in override["properties"] if p["id"] == "unit"}
    return found


@pytest.mark.timeout(500)
def test_every_unit_is_one_that_grafana_formats(web: None) -> None:
    known = set(json.loads(web_tools.run(["node", "units.cjs"])))
    assert {"s", "percentunit"} <= known
    used = set[str]().union(*(units(dashboard) for dashboard in dashboards().values()))
    assert used <= known


@pytest.mark.timeout(500)
def test_the_json_has_the_types_that_grafana_publishes(web: None) -> None:
    typed(dashboards())


@pytest.mark.timeout(500)
def test_the_type_check_finds_what_is_wrong(web: None) -> None:
    """One planted mistake of each kind: a wrong value, an unknown option, one that is missing."""
    for plant in (_wrong_value, _unknown_option, _missing_option):
        copy = dashboards()
        plant(copy["queue-latency.json"])
        with pytest.raises(RuntimeError, match="error TS"):
            typed(copy)


def typed(found: dict[str, dict[str, Any]]) -> None:
    lines = ["import type { AnyDashboard } from './types';"]
    for index, dashboard in enumerate(found.values()):
        lines.append(f"export const d{index}: AnyDashboard = {json.dumps(dashboard)};")
    check = web_tools.WORKSHOP / "check.ts"
    check.write_text("\n".join(lines), encoding="utf-8")
    web_tools.run([web_tools.tool("tsc"), *TSC, "--moduleResolution", "bundler", check.name])


def _first(dashboard: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


def _wrong_value(dashboard: dict[str, Any]) -> None:
    _first(dashboard, "stat")["options"]["graphMode"] = "areas"


def _unknown_option(dashboard: dict[str, Any]) -> None:
    _first(dashboard, "timeseries")["options"]["legends"] = {}


def _missing_option(dashboard: dict[str, Any]) -> None:
    del _first(dashboard, "table")["options"]["showHeader"]


def sources() -> dict[str, dict[str, Any]]:
    text = (PROVISIONING / "datasources" / "streaq.yml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert document["apiVersion"] == 1
    return {source["uid"]: source for source in document["datasources"]}


def test_data_sources_have_only_documented_fields() -> None:
    for source in sources().values():
        assert set(source) <= KNOWN_IN_A_SOURCE
        assert set(source["jsonData"]) <= KNOWN_IN_JSON_DATA[source["type"]]
        assert source["access"] == "proxy"


def test_metrics_traces_and_logs_lead_to_one_another() -> None:
    found = sources()
    (exemplar,) = found["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplar["name"], exemplar["datasourceUid"]) == ("trace_id", "tempo")
    logs = found["tempo"]["jsonData"]["tracesToLogsV2"]
    assert logs["datasourceUid"] == "loki"
    assert "$${__trace.traceId}" in logs["query"], "one $ would be an environment variable"
    assert found["tempo"]["jsonData"]["tracesToMetrics"]["datasourceUid"] == "prometheus"
    (derived,) = found["loki"]["jsonData"]["derivedFields"]
    assert (derived["matcherRegex"], derived["datasourceUid"]) == ("trace_id", "tempo")
    assert [uid for uid, source in found.items() if source.get("isDefault")] == ["prometheus"]


def test_no_single_dollar_is_taken_for_an_environment_variable() -> None:
    for path in PROVISIONING.rglob("*.yml"):
        assert "$" not in path.read_text(encoding="utf-8").replace("$$", ""), path.name


def test_the_dashboards_are_provisioned_from_where_compose_mounts_them() -> None:
    text = (PROVISIONING / "dashboards" / "streaq.yml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert document["apiVersion"] == 1
    (provider,) = document["providers"]
    assert set(provider) <= KNOWN_IN_A_PROVIDER
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    mounts = dict(mount.split(":")[:2] for mount in compose["services"]["grafana"]["volumes"])
    assert mounts["./streaq/dashboards"] == provider["options"]["path"]


def test_the_collector_uses_what_it_defines_and_defines_what_it_uses() -> None:
    collector = yaml.safe_load((ROOT / "grafana" / "collector.yml").read_text(encoding="utf-8"))
    service = collector["service"]
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in service["pipelines"].values() for name in pipeline[kind]}
        assert used == set(collector[kind])
    assert set(service["extensions"]) == set(collector["extensions"])
