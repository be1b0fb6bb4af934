"""With the SDK switched off, or sampling nothing, a worker says no more than it must."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from streaq.telemetry.context import current_fields
from streaq.telemetry.propagation import Rules
from streaq.telemetry.scope import ScopeHook
from streaq.telemetry.tracing import Tracing, TracingHook
from tests.support import MakeWorker, running
from tests.telemetry.events import attempt

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The process' own, made while the SDK is disabled."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    made = TracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made)
    yield made
    made.shutdown()


def hook(provider: TracerProvider | None = None) -> TracingHook:
    return TracingHook(Tracing(provider), Rules(), queue="shop", client_id="w1")


def test_a_disabled_sdk_makes_the_scope_quiet(provider: TracerProvider) -> None:
    for tracing in (hook(), hook(provider)):
        assert not tracing.records()
        assert ScopeHook(tracing, None).is_quiet()


def test_what_was_given_is_not_replaced_by_the_process_own(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing = hook(provider)
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    assert not tracing.records()


async def test_users_lines_have_no_empty_ids(
    make_worker: MakeWorker, provider: TracerProvider
) -> None:
    assert provider is trace.get_tracer_provider()
    # Somebody reads of tasks that succeed, so that each is watched.
    logging.getLogger("streaq.events").setLevel(logging.INFO)
    worker = make_worker(telemetry=True)

    @worker.task
    async def look() -> dict[str, object]:
        return current_fields()

    try:
        async with running(worker):
            seen = (await (await look.enqueue()).result(5)).result
    finally:
        logging.getLogger("streaq.events").setLevel(logging.NOTSET)
    assert seen["task_id"]
    assert not {"trace_id", "span_id"} & set(seen)


def test_what_is_not_sampled_keeps_its_ids() -> None:
    tracing = hook(TracerProvider(sampler=ALWAYS_OFF))
    a = attempt()
    with ScopeHook(tracing, None).around_attempt(a):
        assert len(a.mark.trace) == 55
        assert not int(a.mark.trace[-2:], 16) & 1
