"""What to emit, and how: the settings, and the hooks made from them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from streaq.telemetry.cells import LocalStore
from streaq.telemetry.checks import check_settings, check_telemetry
from streaq.telemetry.collector import blocks_of, collector_for
from streaq.telemetry.context import ContextHook
from streaq.telemetry.environment import tell_of_ignored
from streaq.telemetry.logs import LogRules, LogsHook
from streaq.telemetry.metrics import MAX_EXCEPTION_NAMES, MAX_TASK_NAMES, MetricsHook
from streaq.telemetry.propagation import Propagation, Rules
from streaq.telemetry.scope import ScopeHook
from streaq.telemetry.shared import inherited_store
from streaq.telemetry.tracing import Tracing, TracingHook

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from streaq.engine.health import Health
    from streaq.hooks import Hook


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What a worker tells of its tasks. Pass it as ``Worker(telemetry=Telemetry(...))``.

    :param traces: make spans, as soon as the process has an OpenTelemetry SDK.
    :param metrics: count for Prometheus.
    :param logs: write log lines, and bind the task's ids to the user's own lines.
    :param propagation: ``"child"`` puts attempts under the span that enqueued them; ``"link"``
        gives each a trace of its own, linked to it: of the tasks that this process enqueues, and of
        those that it runs.
    :param link_after: intended delay (seconds or timedelta) beyond which a task starts a trace of
        its own all the same: of the tasks that this process enqueues, and of its retries.
    :param link_batches_over: number of tasks in one call beyond which they do.
    :param create_spans: one ``create`` span for each task of a batch, beside the call's ``send``.
    :param max_task_names: task names of a queue with series of their own, in each process and on
        each page of metrics; the rest is ``__other__``.
    :param max_exception_names: the same for exception classes.
    :param registry: where the metrics appear; Prometheus' default registry by default.
    :param tracer_provider: instead of the process' global one.
    :param meter_provider: record OpenTelemetry metrics there too, besides Prometheus'; with
        ``metrics=False`` neither.
    :param logger: a structlog logger for the lines, instead of ``streaq.events``.
    :param log_args: put the arguments of each attempt in ``task.started``.
    :param log_results: put the results in ``task.finished``.
    :param log_errors: put the messages of exceptions in the lines, not just their class. What
        they quote of the arguments is masked unless ``log_args``; what they say else is not.
    :param log_limit: characters after which a logged value is cut.
    :raises StreaqError: for values that make no sense.

    Example::

        worker = Worker(telemetry=Telemetry(propagation="link", log_args=True))
    """

    traces: bool = True
    metrics: bool = True
    logs: bool = True
    propagation: Propagation = "child"
    link_after: timedelta | float = 60
    link_batches_over: int = 100
    create_spans: bool = False
    max_task_names: int = MAX_TASK_NAMES
    max_exception_names: int = MAX_EXCEPTION_NAMES
    registry: CollectorRegistry | None = None
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    logger: Any = None
    log_args: bool = False
    log_results: bool = False
    log_errors: bool = True
    log_limit: int = 500

    def __post_init__(self) -> None:
        check_settings(vars(self))

    def hooks(
        self,
        *,
        queue: str,
        client_id: str,
        server_address: tuple[str, int] | None = None,
        health: Health | None = None,
    ) -> list[Hook]:
        """The hooks of one worker. Called by the worker; the parameters are as in ``hooks_for``."""
        hooks: list[Hook] = []
        tracing, logs = None, None
        if self.traces:
            tracing = self._tracing_hook(queue, client_id, server_address)
            hooks.append(tracing)
        if self.logs:
            rules = LogRules(self.log_args, self.log_results, self.log_errors, self.log_limit)
            logs = LogsHook(rules, self.logger)
            hooks.append(ContextHook())
        if self.metrics:
            hooks.append(self._metrics_hook(queue, health))
        if tracing or logs:
            hooks.append(ScopeHook(tracing, logs))
        if self.metrics and self.meter_provider is not None:
            from streaq.telemetry.otel_metrics import OtelMetricsHook

            hooks.append(
                OtelMetricsHook(
                    self.meter_provider,
                    queue,
                    max_task_names=self.max_task_names,
                    max_exception_names=self.max_exception_names,
                )
            )
        if logs:
            hooks.append(logs)
        return hooks

    def _tracing_hook(
        self, queue: str, client_id: str, server_address: tuple[str, int] | None
    ) -> TracingHook:
        after = self.link_after
        after_s = after.total_seconds() if isinstance(after, timedelta) else after
        return TracingHook(
            Tracing(self.tracer_provider),
            Rules(self.propagation, round(after_s * 1000), self.link_batches_over),
            queue=queue,
            client_id=client_id,
            server_address=server_address,
            create_spans=self.create_spans,
        )

    def _metrics_hook(self, queue: str, health: Health | None) -> MetricsHook:
        inherited = inherited_store()
        store = inherited or LocalStore()
        registry = REGISTRY if self.registry is None else self.registry
        hook = MetricsHook(
            store,
            queue,
            max_task_names=self.max_task_names,
            max_exception_names=self.max_exception_names,
        )
        collector = collector_for(registry)
        collector.fold.allow(
            max_task_names=self.max_task_names, max_exception_names=self.max_exception_names
        )
        if inherited is not None:  # what all workers of this process count in, and once shown
            collector.add_once(inherited, partial(blocks_of, inherited))
        else:
            collector.add(lambda: blocks_of(store, health), owner=hook)
        return hook


def hooks_for(
    telemetry: bool | Telemetry,  # noqa: FBT001 - as Worker(telemetry=True) has it
    *,
    queue: str,
    client_id: str,
    server_address: tuple[str, int] | None = None,
    health: Health | None = None,
) -> list[Hook]:
    """The hooks that a worker gets by its ``telemetry`` argument.

    :param telemetry: True for the defaults, False for none.
    :param queue: name of the queue.
    :param client_id: id of the worker.
    :param server_address: host and port of Redis (a socket has port 0), for spans.
    :param health: the worker's, for the lag of its event loop.
    :raises StreaqError: ``telemetry`` is none of these.
    """
    check_telemetry(telemetry, Telemetry)
    if not telemetry:
        return []
    tell_of_ignored()
    settings = telemetry if isinstance(telemetry, Telemetry) else Telemetry()
    return settings.hooks(
        queue=queue, client_id=client_id, server_address=server_address, health=health
    )
