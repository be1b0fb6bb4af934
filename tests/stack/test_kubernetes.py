"""The Kubernetes examples: valid against published schemas, and consistent with one another."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from streaq.telemetry.names import QUEUE_OLDEST_DUE
from tests.commandline import problem_with
from tests.stack.conftest import ROOT
from tests.stack.expressions import parse, uses
from tests.stack.test_grafana import TSC, web
from tools.dashboards import web_tools

EXAMPLES = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
CUSTOM = {"ScaledObject", "ServiceMonitor"}
TYPES = {
    "ScaledObject": ("@kubernetes-models/keda/keda.sh/v1alpha1", "IScaledObject"),
    "ServiceMonitor": (
        "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
        "IServiceMonitor",
    ),
}

__all__ = ["web"]


def documents() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in EXAMPLES:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            found[f"{document['kind']}/{document['metadata']['name']}"] = document
    return found


ALL = documents()
WORKER = ALL["Deployment/streaq-worker"]["spec"]["template"]
(CONTAINER,) = WORKER["spec"]["containers"]


def test_built_in_kinds_fit_the_schemas_of_kubernetes() -> None:
    checked = [d for d in ALL.values() if d["kind"] not in CUSTOM]
    assert len(checked) == 3
    for document in checked:
        kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.timeout(500)
def test_custom_kinds_fit_the_schemas_of_their_operators(web: None) -> None:
    custom = [d for d in ALL.values() if d["kind"] in CUSTOM]
    lines = [f"import type {{ {name} }} from '{module}';" for module, name in TYPES.values()]
    for index, document in enumerate(custom):
        kind = TYPES[document["kind"]][1]
        lines.append(f"export const d{index}: {kind} = {json.dumps(document)};")
    check = web_tools.WORKSHOP / "kubernetes.ts"
    check.write_text("\n".join(lines), encoding="utf-8")
    web_tools.run([web_tools.tool("tsc"), *TSC, "--moduleResolution", "bundler", check.name])
    assert web_tools.run(["node", "kubernetes.mjs"], json.dumps(custom)).strip() == "2"


@pytest.mark.timeout(500)
def test_the_check_of_custom_kinds_finds_what_is_wrong(web: None) -> None:
    broken = json.loads(json.dumps(ALL["ScaledObject/streaq-worker"]))
    del broken["spec"]["scaleTargetRef"]
    with pytest.raises(RuntimeError, match="scaleTargetRef"):
        web_tools.run(["node", "kubernetes.mjs"], json.dumps([broken]))


@pytest.mark.parametrize("name", ["streaq-worker", "streaq-exporter"])
def test_the_arguments_are_ones_that_streaq_knows(name: str) -> None:
    (container,) = ALL[f"Deployment/{name}"]["spec"]["template"]["spec"]["containers"]
    assert problem_with(container["args"]) is None


def test_probes_ask_what_the_worker_serves() -> None:
    (port,) = CONTAINER["ports"]
    assert f"--metrics-port={port['containerPort']}" in CONTAINER["args"]
    assert CONTAINER["livenessProbe"]["httpGet"] == {"path": "/livez", "port": port["name"]}
    assert CONTAINER["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}


def test_kubernetes_waits_longer_than_pre_stop_and_grace_together() -> None:
    (pause,) = re.findall(
        r"sleep\((\d+)\)", CONTAINER["lifecycle"]["preStop"]["exec"]["command"][2]
    )
    grace = 30
    assert WORKER["spec"]["terminationGracePeriodSeconds"] > int(pause) + grace


def test_containers_run_as_nobody_on_a_read_only_disk() -> None:
    for name in ("streaq-worker", "streaq-exporter"):
        spec = ALL[f"Deployment/{name}"]["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_service_monitor_finds_the_service_and_the_service_the_pods() -> None:
    service, monitor = ALL["Service/streaq-metrics"], ALL["ServiceMonitor/streaq"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    for name in ("streaq-worker", "streaq-exporter"):
        labels = ALL[f"Deployment/{name}"]["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_scaling_follows_the_age_of_the_oldest_due_task() -> None:
    spec = ALL["ScaledObject/streaq-worker"]["spec"]
    assert spec["scaleTargetRef"]["name"] == ALL["Deployment/streaq-worker"]["metadata"]["name"]
    assert "replicas" not in ALL["Deployment/streaq-worker"]["spec"], "the scaler decides"
    (trigger,) = spec["triggers"]
    assert trigger["metricType"] == "Value"
    assert "fallback" not in spec, "KEDA before 2.18 takes it with AverageValue only"
    asked = {use.name for use in uses(parse(trigger["metadata"]["query"]))}
    assert asked == {QUEUE_OLDEST_DUE.name}
