"""Settings, and the hooks made from them."""

from __future__ import annotations

import gc
import logging
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry

from streaq import Worker
from streaq.hooks import Dispatcher
from streaq.telemetry import Telemetry, hooks_for, install
from streaq.telemetry.collector import collector_for
from streaq.types import StreaqError
from tests.support import MakeWorker, running
from tests.telemetry.events import attempt, ending, starts, successes

WHO: dict[str, Any] = {"queue": "shop", "client_id": "w1", "server_address": ("db", 6379)}


def kinds(telemetry: bool | Telemetry) -> list[str]:
    return [type(hook).__name__ for hook in hooks_for(telemetry, **WHO)]


def test_all_of_it_by_default() -> None:
    telemetry = Telemetry(registry=CollectorRegistry())
    assert kinds(telemetry) == [
        "TracingHook", "ContextHook", "MetricsHook", "ScopeHook", "LogsHook",
    ]  # fmt: skip


def test_true_is_the_default_and_false_is_none() -> None:
    assert kinds(True) == kinds(Telemetry())
    assert kinds(False) == []


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ("traces", ["ContextHook", "MetricsHook", "ScopeHook", "LogsHook"]),
        ("metrics", ["TracingHook", "ContextHook", "ScopeHook", "LogsHook"]),
        ("logs", ["TracingHook", "MetricsHook", "ScopeHook"]),
    ],
)
def test_each_can_be_off(off: str, left: list[str]) -> None:
    options: Any = {off: False}
    assert kinds(Telemetry(registry=CollectorRegistry(), **options)) == left


def test_metrics_alone_put_nothing_around_attempts() -> None:
    telemetry = Telemetry(registry=CollectorRegistry(), traces=False, logs=False)
    assert kinds(telemetry) == ["MetricsHook"]


def test_only_one_context_manager_surrounds_an_attempt() -> None:
    hooks = Dispatcher(hooks_for(Telemetry(registry=CollectorRegistry()), **WHO))
    assert len(hooks.around_attempt) == 1
    assert hooks.on_start == ()


def test_nobody_watches_while_there_are_no_spans_and_no_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks = Dispatcher(hooks_for(Telemetry(registry=CollectorRegistry()), **WHO))
    events = logging.getLogger("streaq.events")
    monkeypatch.setattr(events, "level", logging.WARNING)
    hooks.look()
    assert not hooks.watching
    events.setLevel(logging.INFO)
    hooks.look()
    assert hooks.watching, "it is asked anew each time"


def test_an_sdk_is_watching() -> None:
    telemetry = Telemetry(
        registry=CollectorRegistry(), logs=False, tracer_provider=TracerProvider()
    )
    hooks = Dispatcher(hooks_for(telemetry, **WHO))
    hooks.look()
    assert hooks.watching


def test_metrics_appear_in_the_default_registry_unless_told() -> None:
    [hook] = hooks_for(Telemetry(traces=False, logs=False), **WHO)
    a = attempt("of-test-config")
    hook.on_starts(starts(a))
    hook.on_successes(successes(ending(a)))
    labels = {"queue": "shop", "task": "of-test-config", "priority": "normal"}
    assert REGISTRY.get_sample_value("streaq_tasks_started_total", labels) == 1


def test_workers_of_one_process_are_added_up_and_remembered() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry=registry, traces=False, logs=False)
    for _ in range(3):
        [hook] = hooks_for(telemetry, **WHO)
        hook.on_starts(starts(attempt()))
        del hook
    gc.collect()
    labels = {"queue": "shop", "task": "charge", "priority": "normal"}
    assert registry.get_sample_value("streaq_tasks_started_total", labels) == 3
    assert len(collector_for(registry)._sources) == 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("propagation", "parent"),
        ("propagation", ["link"]),
        ("max_task_names", 0),
        ("max_task_names", "5"),
        ("max_exception_names", None),
        ("log_limit", True),
        ("link_after", "60"),
        ("link_after", None),
        ("link_after", -1),
        ("link_after", float("nan")),
        ("link_after", timedelta(seconds=-1)),
        ("link_batches_over", -1),
        ("link_batches_over", 1.5),
        ("traces", "off"),
        ("log_args", 1),
        ("registry", "metrics"),
        ("tracer_provider", 3),
        ("meter_provider", TracerProvider()),
        ("logger", "streaq"),
    ],
)
def test_what_makes_no_sense_is_said(name: str, wrong: Any) -> None:
    options: Any = {name: wrong}
    with pytest.raises(StreaqError, match=rf"^Telemetry\({name}=.*\): it is .+\.$"):
        Telemetry(**options)


def test_the_least_that_makes_sense() -> None:
    Telemetry(link_after=0, link_batches_over=0, max_task_names=1, log_limit=1)


@pytest.mark.parametrize("wrong", ["off", None, 0, Telemetry, {"traces": False}])
def test_telemetry_is_on_off_or_settings(wrong: Any) -> None:
    with pytest.raises(StreaqError, match=r"telemetry must be True, False or a streaq\.telemetry"):
        Worker(telemetry=wrong)
    worker: Worker[Any] = Worker()
    with pytest.raises(StreaqError, match=r"telemetry must be True, False or a streaq\.telemetry"):
        worker.telemetry = wrong
    assert worker.telemetry is True
    with pytest.raises(StreaqError, match="it is True, False or a Telemetry"):
        hooks_for(wrong, **WHO)


def test_no_metrics_are_none_of_either_kind() -> None:
    telemetry = Telemetry(metrics=False, traces=False, logs=False, meter_provider=MeterProvider())
    assert kinds(telemetry) == []


def test_link_after_takes_seconds_or_a_timedelta() -> None:
    for value in (90, 90.0, timedelta(seconds=90)):
        [tracing, _] = Telemetry(link_after=value, metrics=False, logs=False).hooks(**WHO)
        assert tracing._rules.link_after_ms == 90_000  # type: ignore[attr-defined]


def test_install_gives_a_worker_telemetry() -> None:
    worker: Worker[Any] = Worker(telemetry=False)
    install(worker)
    assert isinstance(worker.telemetry, Telemetry)
    settings = Telemetry(propagation="link")
    install(worker, settings)
    assert worker.telemetry is settings


@pytest.mark.anyio
async def test_telemetry_stays_while_the_worker_is_in_use(make_worker: MakeWorker) -> None:
    worker = make_worker()
    async with worker:
        with pytest.raises(StreaqError, match=rf"^Worker {worker.id} is in use, .* is entered\.$"):
            install(worker)
        with pytest.raises(StreaqError, match="is in use"):
            worker.telemetry = True
    async with running(worker):
        with pytest.raises(StreaqError, match="is in use"):
            worker.telemetry = True
    assert worker.telemetry is False
    install(worker)
    assert isinstance(worker.telemetry, Telemetry)


def test_an_unknown_name_is_not_there() -> None:
    import streaq.telemetry

    with pytest.raises(AttributeError, match="nonsense"):
        _ = streaq.telemetry.nonsense  # type: ignore[attr-defined]
    for name in streaq.telemetry.__all__:
        assert getattr(streaq.telemetry, name) is not None
