"""What ``streaq run`` writes: JSON, the task's ids on everybody's lines, and no secrets."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from streaq.telemetry import names
from tests.telemetry.plant import Plant, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

EVENTS = {event.name: event for event in names.LOG_EVENTS}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    traced = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with ExitStack() as stack:
        made = Plant(stack, tmp_path, **traced)
        wait_for(lambda: made.get("/readyz")[0] == 200, 30)
        yield made


async def test_lines_of_real_workers(plant: Plant) -> None:
    planted = [f"planted-{secrets.token_hex(8)}" for _ in range(2)]
    call = plant.worker.enqueue_unsafe
    async with plant.worker:
        spoken = await call("speaks", planted[0])
        assert (await spoken.result(20)).result == planted[0][::-1]
        leaked = await call("leaks", password=planted[1])
        await leaked.result(20)
        for name in ("ok", "retries", "fails", "nobody"):
            await (await call(name)).result(20)
    wait_for(lambda: "task.refused" in plant.log.read_text())
    text = plant.log.read_text()
    for secret in planted:
        assert secret not in text
        assert secret[::-1] not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert_own_lines(lines)
    assert_users_lines(text, lines, spoken.id)


def assert_own_lines(lines: list[dict[str, Any]]) -> None:
    seen = set()
    for line in lines:
        event = EVENTS.get(line["event"])
        if event is None:
            continue
        seen.add(event.name)
        fields = set(line) - {"event", "timestamp", "level", "logger"}
        assert set(event.fields) <= fields <= {*event.fields, *event.optional}, line
        assert line["logger"] == "streaq.events"
        if event.name.startswith("task.") and line.get("task") != "ticks":
            assert len(line["trace_id"]) == 32
            assert len(line["span_id"]) == 16
    assert seen >= {
        "worker.started", "task.started", "task.finished", "task.retried", "task.failed",
        "task.refused",
    }  # fmt: skip


def assert_users_lines(text: str, lines: list[dict[str, Any]], task_id: str) -> None:
    [finished] = [
        line for line in lines if line["event"] == "task.finished" and line["task_id"] == task_id
    ]
    ids = {name: finished[name] for name in names.CONTEXT_FIELDS}
    [standard] = [line for line in lines if line["event"] == "standard line"]
    assert {name: standard[name] for name in ids} == ids
    [structured] = [line for line in text.splitlines() if "structlog line" in line]
    for name in ("task_id", "trace_id", "span_id", "worker_id"):
        assert str(ids[name]) in structured
