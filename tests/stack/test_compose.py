"""The stack in containers, as far as it can be proven without an engine to run them."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from tests.commandline import problem_with
from tests.stack.conftest import ROOT

COMPOSE = ROOT / "docker-compose.yml"
BIN = Path(sys.executable).parent
WITHOUT_A_SHELL = {"tempo", "loki", "collector"}
"""Their images hold one program: the service `ready` asks them from outside."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as Compose understands it, anchors and defaults resolved."""
    done = subprocess.run(
        [BIN / "docker-compose", "--file", COMPOSE, "config", "--format", "json"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


def test_it_fits_the_schema_of_compose() -> None:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose.items():
        image, _, tag = service["image"].partition(":")
        assert re.search(r"\d+\.\d+\.\d+", tag) or image == "streaq", name


def test_every_port_is_bound_to_loopback(compose: dict[str, Any]) -> None:
    published = [port for service in compose.values() for port in service.get("ports", [])]
    assert published
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_nobody_is_root_or_can_become_it(compose: dict[str, Any]) -> None:
    for name, service in compose.items():
        uid = int(service["user"].split(":")[0])
        assert uid > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_every_service_is_checked_and_waited_for(compose: dict[str, Any]) -> None:
    own = {name for name, service in compose.items() if service.get("healthcheck", {}).get("test")}
    built = {name for name, service in compose.items() if "build" in service} - {"ready"}
    assert own | built | WITHOUT_A_SHELL | {"ready"} == set(compose)
    assert set(compose["ready"]["depends_on"]) == WITHOUT_A_SHELL
    asked = " ".join(compose["ready"]["command"])
    assert all(name in asked for name in WITHOUT_A_SHELL)


def test_the_order_is_redis_workers_load_and_grafana_last(compose: dict[str, Any]) -> None:
    def waits(name: str) -> dict[str, str]:
        return {on: how["condition"] for on, how in compose[name].get("depends_on", {}).items()}

    assert waits("worker") == {"valkey": "service_healthy"}
    assert waits("producer") == {"worker": "service_healthy"}
    assert waits("grafana") == {
        "prometheus": "service_healthy",
        "ready": "service_completed_successfully",
    }


def test_redis_keeps_what_it_was_told(compose: dict[str, Any]) -> None:
    command = compose["valkey"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert compose["valkey"]["volumes"][0]["type"] == "volume"


def test_what_has_state_has_a_named_volume(compose: dict[str, Any]) -> None:
    kept = {
        mount["source"]
        for service in compose.values()
        for mount in service.get("volumes", [])
        if mount["type"] == "volume"
    }
    named = set(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"])
    assert kept == named == {"valkey", "prometheus", "alertmanager", "tempo", "loki", "grafana"}


def test_every_file_that_is_mounted_exists(compose: dict[str, Any]) -> None:
    mounts = [
        Path(mount["source"])
        for service in compose.values()
        for mount in service.get("volumes", [])
        if mount["type"] == "bind"
    ]
    assert mounts
    assert [mount for mount in mounts if not mount.exists()] == []


def test_two_workers_run_and_prometheus_finds_both_and_the_producer(
    compose: dict[str, Any],
) -> None:
    assert compose["worker"]["deploy"]["replicas"] == 2
    text = (ROOT / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    jobs = {job["job_name"]: job for job in yaml.safe_load(text)["scrape_configs"]}
    for name in ("worker", "producer"):
        (found,) = jobs[f"streaq-{name}"]["dns_sd_configs"]
        assert (found["names"], found["type"]) == ([name], "A")
        assert str(found["port"]) in compose[name]["expose"]
        assert f"--metrics-port={found['port']}" in compose[name]["command"]


def test_the_commands_are_ones_that_streaq_and_the_load_generator_know(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem_with(compose["worker"]["command"]) is None
    entrypoint, script = compose["producer"]["entrypoint"]
    assert entrypoint == "python"
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr("sys.argv", [script, *compose["producer"]["command"]])
    chosen = importlib.import_module(Path(script).stem).options()
    assert (chosen.metrics_host, chosen.metrics_port) == ("0.0.0.0", 9100)


def test_exemplars_are_kept(compose: dict[str, Any]) -> None:
    assert "--enable-feature=exemplar-storage" in compose["prometheus"]["command"]


def test_the_image_is_built_in_stages_and_runs_as_nobody_with_a_health_check() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(stages) == 2
    assert all(re.search(r":\d+\.\d+\.\d+-", stage) for stage in stages)
    final = text.rsplit("FROM ", 1)[1]
    assert re.search(r"^USER 10001", final, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*\n.*?/livez", final, re.MULTILINE)


def test_the_image_copies_all_that_the_package_is_built_from(tmp_path: Path) -> None:
    first_stage = _dockerfile().split("FROM ")[1]
    for line in re.findall(r"^COPY (.+)$", first_stage, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            _copy(ROOT / source, tmp_path / target)
    built = WheelBuilder(str(tmp_path)).build(directory=str(tmp_path), versions=["standard"])
    assert [Path(path).suffix for path in built] == [".whl"]


def _copy(source: Path, target: Path) -> None:
    """As COPY does it: of a directory its contents, a file into the directory that is named."""
    target.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def test_the_health_check_of_the_image_is_python_that_compiles() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    check = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    assert check
    program = json.loads(check[1])
    assert program[:2] == ["python", "-c"]
    compile(program[2], "HEALTHCHECK", "exec")


def test_secrets_and_caches_stay_out_of_the_image() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert allowed[0] == "*"
    copied = set(re.findall(r"^COPY (?!--from)(.+?) \S+$", _dockerfile(), re.MULTILINE))
    named = {word.removeprefix("./").split("/")[0] for line in copied for word in line.split()}
    assert named == {line.removeprefix("!") for line in allowed if line.startswith("!")}


def test_nothing_asks_a_registry_by_its_address() -> None:
    for path in (COMPOSE, ROOT / "Dockerfile"):
        images = re.findall(r"^(?:FROM|\s+image:) (\S+)", path.read_text("utf-8"), re.MULTILINE)
        assert images
        assert not any("." in image.split("/")[0] and "/" in image for image in images)


def _dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")
