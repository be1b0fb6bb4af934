"""From numbers to metric families: adds up every store of the process, once per scrape.

There is one collector per Prometheus registry, however many workers a process has. Counters of a
worker that is gone stay in the sums, so that they never go backwards; its gauges do not. Names are
capped once more, for all of them together.
"""

from __future__ import annotations

import platform
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Exemplar as OpenMetricsExemplar

from streaq.engine.health import Health
from streaq.telemetry import names
from streaq.telemetry.cells import Block, Exemplar, Store
from streaq.telemetry.fold import Fold
from streaq.telemetry.names import Metric

Family: TypeAlias = "CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily"
Source: TypeAlias = Callable[[], Iterable[Block]]

_MERGE: dict[str, Callable[[float, float], float]] = {
    "sum": lambda a, b: a + b,
    "max": max,
    "min": min,
}
ABSENT_AT_ZERO = {names.WORKER_OLDEST_RUNNING.name}
"""Gauges that have no value while there is nothing to tell."""


_UNIT = 1e6
"""Sums of seconds are added up in whole microseconds: floats would add up to a little less in
another order, as when a process ends, and less than before is a reset to Prometheus.
"""


@dataclass(slots=True)
class _Series:
    values: list[float]
    """As a block has them, but that the sum of a histogram is in microseconds."""
    exemplars: dict[int, Exemplar] = field(default_factory=dict[int, Exemplar])

    @classmethod
    def of(cls, block: Block) -> _Series:
        return cls(cls._values(block), dict(block.exemplars))

    @staticmethod
    def _values(block: Block) -> list[float]:
        values = list(block.values)
        if block.metric.buckets:
            values[-1] = round(values[-1] * _UNIT)
        return values

    def told(self, metric: Metric) -> tuple[float, ...]:
        return (*self.values[:-1], self.values[-1] / (_UNIT if metric.buckets else 1))

    def join(self, block: Block) -> None:
        merge = _MERGE[block.metric.merge]
        self.values = [merge(a, b) for a, b in zip(self.values, self._values(block), strict=True)]
        for bucket, exemplar in block.exemplars.items():
            old = self.exemplars.get(bucket)
            if old is None or old.at_s < exemplar.at_s:
                self.exemplars[bucket] = exemplar


class Sums:
    """Series by metric and labels, added up from any number of blocks."""

    def __init__(self) -> None:
        self._series: dict[str, dict[tuple[str, ...], _Series]] = {}

    def add(self, blocks: Iterable[Block]) -> None:
        """Join these blocks with what is there already."""
        for block in blocks:
            if block.metric.name in ABSENT_AT_ZERO and not block.values[0]:
                continue
            by_labels = self._series.setdefault(block.metric.name, {})
            found = by_labels.get(block.labels)
            if found is None:
                by_labels[block.labels] = _Series.of(block)
            else:
                found.join(block)

    def blocks(self) -> Iterator[Block]:
        """Everything, as blocks again."""
        for metric in names.METRICS:
            for labels, series in self._series.get(metric.name, {}).items():
                yield Block(metric, labels, series.told(metric), series.exemplars)

    def families(self) -> Iterator[Family]:
        """Everything, as Prometheus families, in the order of ``names.METRICS``."""
        for metric in names.METRICS:
            family = empty_family(metric)
            for labels, series in sorted(self._series.get(metric.name, {}).items()):
                _add(family, metric, labels, series)
            yield family


def empty_family(metric: Metric) -> Family:
    """A family without series."""
    kinds: dict[str, type[Any]] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    return kinds[metric.type](metric.name, metric.help, labels=metric.labels, unit=metric.unit)


def _add(family: Family, metric: Metric, labels: tuple[str, ...], series: _Series) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, series.values[0])
        return
    total, buckets = 0.0, list[Any]()
    for i, bound in enumerate((*metric.buckets, inf)):
        total += series.values[i]
        exemplar = series.exemplars.get(i)
        buckets.append(
            ("+Inf" if bound == inf else repr(bound), total, exemplar and _open_metrics(exemplar))
        )
    family.add_metric(labels, buckets, series.told(metric)[-1])


def _open_metrics(exemplar: Exemplar) -> OpenMetricsExemplar:
    return OpenMetricsExemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at_s)


def retained(blocks: Iterable[Block]) -> Iterator[Block]:
    """What stays of a process that is gone: its counters and histograms, not its gauges."""
    return (b for b in blocks if b.metric.type != "gauge" and b.metric.scope == "process")


def blocks_of(store: Store, health: Health | None = None) -> Iterator[Block]:
    """The series of a store, with what its health knows better as it is now.

    :param health: the default reads the one kept in the store's first cells.
    """
    health = health or Health(store.cells)
    for block in store.blocks():
        if block.metric is names.EVENT_LOOP_LAG:
            if health.is_ready:
                yield block._replace(values=(health.lag_s,))
        elif block.metric is names.WORKER_OLDEST_RUNNING:
            yield block._replace(values=(health.oldest_running_s,))
        else:
            yield block


class Collector:
    """What the registry calls at each scrape. Use ``collector_for(registry)``."""

    def __init__(self) -> None:
        self.fold = Fold()
        self._lock = threading.Lock()
        self._sources: dict[object, Source] = {}
        self._dead: deque[object] = deque()
        self._gone = Sums()

    def add(self, source: Source, owner: object = None) -> Callable[[], object]:
        """Add up what ``source()`` gives, until the answer is called, or ``owner`` is gone.

        The counters stay in the sums then. ``source`` must not refer to ``owner``.
        """
        key = object()
        with self._lock:
            self._sources[key] = source
        if owner is None:
            return partial(self._dead.append, key)
        # A finaliser may run anywhere, also in a thread that holds the lock: it only leaves a note.
        finalizer = weakref.finalize(owner, self._dead.append, key)
        finalizer.atexit = False
        return finalizer

    def add_once(self, key: object, source: Source) -> None:
        """Add up what ``source()`` gives for good, if nothing was added under this key before."""
        with self._lock:
            self._sources.setdefault(key, source)

    def bury(self) -> None:
        """Take leave now of the sources that are gone, instead of at the next scrape."""
        with self._lock:
            self._bury()

    def _bury(self) -> None:
        while self._dead:
            source = self._sources.pop(self._dead.popleft(), tuple)
            self._gone.add(self.fold(retained(source())))

    def describe(self) -> Iterator[Family]:
        """The names, so that the registry can refuse to have them twice."""
        return (empty_family(metric) for metric in names.METRICS)

    def collect(self) -> Iterator[Family]:
        """Called by the registry, in the thread that serves the scrape."""
        sums = Sums()
        with self._lock:
            self._bury()
            sources = list(self._sources.values())
            sums.add(self._gone.blocks())
        sums.add([build_info()])
        for source in sources:
            sums.add(self.fold(source()))
        return sums.families()


def build_info() -> Block:
    """The constant that tells versions."""
    from streaq import __version__

    return Block(names.BUILD_INFO, (__version__, platform.python_version()), (1.0,), {})


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, Collector] = weakref.WeakKeyDictionary()
_collectors_lock = threading.Lock()


def collector_for(registry: CollectorRegistry) -> Collector:
    """The collector of this registry, made and registered on first use."""
    with _collectors_lock:
        found = _collectors.get(registry)
        if found is None:
            found = Collector()
            registry.register(found)
            _collectors[registry] = found
        return found
