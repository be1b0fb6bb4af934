"""A stand-in for a team's workers: two workers and a producer that emit every metric of names.py.

It plays a small shop by the clock (orders that must be quick, thumbnails that pile up while one
worker is away) and serves what real processes would serve, exemplars included. `make test-stack`
uses real workers; this is for drawing and for working on a dashboard without a queue at hand:
`python -m tests.stack.synthetic 9101 9102 9103`.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from collections import Counter as Tally
from collections import deque
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from streaq.telemetry import names

CYCLE_S = 900.0
"""The incident comes back this often."""
AWAY_S = (360.0, 480.0)
"""Between these seconds of a cycle the second worker is gone."""
SLOTS = {"orders": 4, "media": 6}
TICK_S = 0.25


@dataclass(frozen=True)
class Kind:
    """What one task of the shop does: arrivals a second, run time, and how it goes wrong."""

    queue: str
    name: str
    priority: str
    rate: float
    run_s: float
    fails: float = 0.0
    retries: float = 0.0
    exception: str = "ValueError"


SHOP = (
    Kind("orders", "charge", "high", 6, 0.12, fails=0.004, exception="CardDeclined"),
    Kind("orders", "receipt", "high", 6, 0.03),
    Kind(
        "orders", "fetch_rates", "low", 3, 0.35, retries=0.12, fails=0.01, exception="TimeoutError"
    ),
    Kind("orders", "import_row", "low", 2, 0.01, fails=0.02, exception="ValueError"),
    Kind("media", "thumbnail", "default", 8, 0.9, fails=0.001, exception="OSError"),
)
CRON = (("orders", "heartbeat", 10), ("orders", "close_day", 120))


class Endpoint:
    """One process as a scrape sees it."""

    def __init__(self, worker: bool) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.alive = True
        self.metrics = {
            metric.name: self._make(metric)
            for metric in names.METRICS
            if worker or metric.scope == "queue" or metric in PRODUCED
        }

    def _make(self, metric: names.Metric) -> Counter | Gauge | Histogram:
        name, text = metric.name.removesuffix("_total"), metric.help
        if metric.type == "counter":
            return Counter(name, text, metric.labels, registry=self.registry)
        if metric.type == "gauge":
            return Gauge(name, text, metric.labels, registry=self.registry)
        return Histogram(name, text, metric.labels, registry=self.registry, buckets=metric.buckets)

    def add(self, metric: names.Metric, *labels: str, amount: float = 1) -> None:
        self.metrics[metric.name].labels(*labels).inc(amount)

    def set(self, metric: names.Metric, *labels: str, to: float | None) -> None:
        found = self.metrics[metric.name]
        if to is None:
            if labels in found._metrics:
                found.remove(*labels)
        else:
            found.labels(*labels).set(to)

    def observe(self, metric: names.Metric, *labels: str, value: float) -> None:
        found = self.metrics[metric.name].labels(*labels)
        trace = f"{random.getrandbits(128):032x}"
        found.observe(value, {"trace_id": trace} if random.random() < 0.1 else None)


PRODUCED = (
    names.TASKS_ENQUEUED, names.REDIS_CALL_DURATION, names.REDIS_ERRORS, names.BUILD_INFO,
)  # fmt: skip


@dataclass
class Shop:
    """The state of the queues, moved on a quarter of a second at a time."""

    workers: list[Endpoint]
    producer: Endpoint
    waiting: dict[tuple[str, str], deque[tuple[float, Kind]]] = field(default_factory=dict)
    running: list[tuple[float, float, Kind, Endpoint, float]] = field(default_factory=list)
    retries: list[tuple[float, Kind]] = field(default_factory=list)
    enqueued: Tally[tuple[str, str]] = field(default_factory=Tally)
    last: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in SHOP:
            self.waiting.setdefault((kind.queue, kind.priority), deque())
        for endpoint in (*self.workers, self.producer):
            endpoint.set(names.BUILD_INFO, "0.1.0", "3.13.1", to=1)
            for operation in ("exchange", "enqueue", "renew"):
                endpoint.add(names.REDIS_ERRORS, operation, amount=0)

    def tick(self, now: float) -> None:
        """Arrivals, ends, starts, and then the gauges."""
        phase = now % CYCLE_S
        self.workers[1].alive = not AWAY_S[0] <= phase < AWAY_S[1]
        if abs(phase - AWAY_S[0]) < TICK_S:
            self._lose(self.workers[1])
        self._arrive(now)
        self._finish(now)
        self._start(now)
        self._cron(now)
        self._rare(phase)
        self._show(now)

    def _arrive(self, now: float) -> None:
        wave = 1 + 0.25 * math.sin(now / 75)
        due = [entry for entry in self.retries if entry[0] <= now]
        self.retries = [entry for entry in self.retries if entry[0] > now]
        for when, kind in due:
            self._lag(kind.queue, kind.name, kind.priority)
            self.waiting[kind.queue, kind.priority].append((when, kind))
        for kind in SHOP:
            for _ in range(_poisson(kind.rate * wave * TICK_S)):
                how = random.choices(names.KINDS, (8, 1, 0, 1))[0]
                self.producer.add(names.TASKS_ENQUEUED, kind.queue, kind.name, kind.priority, how)
                self._count(names.QUEUE_ENQUEUED, kind.queue, kind.priority)
                self.waiting[kind.queue, kind.priority].append(
                    (now - random.random() * TICK_S, kind)
                )
        self.producer.observe(names.REDIS_CALL_DURATION, "enqueue", value=_redis())

    def _start(self, now: float) -> None:
        for worker in self.workers:
            if not worker.alive:
                continue
            worker.observe(names.REDIS_CALL_DURATION, "exchange", value=_redis())
            worker.observe(names.REDIS_CALL_DURATION, "renew", value=_redis() / 2)
            free = {
                queue: slots
                - sum(1 for e in self.running if e[3] is worker and e[2].queue == queue)
                for queue, slots in SLOTS.items()
            }
            for key in (("orders", "high"), ("orders", "low"), ("media", "default")):
                while free[key[0]] > 0 and self.waiting[key]:
                    due, kind = self.waiting[key].popleft()
                    labels = (kind.queue, kind.name, kind.priority)
                    worker.add(names.TASKS_STARTED, *labels)
                    wait = max(0.0, now - due - TICK_S) + random.expovariate(1 / 0.004)
                    worker.observe(names.TASK_QUEUE_WAIT, *labels, value=wait)
                    run = kind.run_s * random.lognormvariate(0, 0.5)
                    self.running.append((now + run, now, kind, worker, due))
                    free[kind.queue] -= 1

    def _finish(self, now: float) -> None:
        over = [entry for entry in self.running if entry[0] <= now]
        self.running = [entry for entry in self.running if entry[0] > now]
        for end, start, kind, worker, due in over:
            labels = (kind.queue, kind.name, kind.priority)
            roll = random.random()
            if roll < kind.retries:
                status = "retried"
                worker.add(names.TASKS_RETRIED, *labels, random.choice(names.RETRY_REASONS))
                self.retries.append((now + 4, kind))
            else:
                status = "failed" if roll < kind.retries + kind.fails else "success"
                self._end(worker, labels, status, kind.exception)
                worker.observe(names.TASK_END_TO_END, *labels, value=max(0.001, end - due))
            worker.observe(names.TASK_DURATION, *labels, status, value=end - start)

    def _end(self, worker: Endpoint, labels: tuple[str, str, str], status: str, error: str) -> None:
        worker.add(names.TASKS_FINISHED, *labels, status)
        self._count(names.QUEUE_FINISHED, labels[0], labels[2], status)
        if status == "failed":
            worker.add(names.TASKS_FAILED, *labels, error)

    def _lose(self, worker: Endpoint) -> None:
        lost = [entry for entry in self.running if entry[3] is worker]
        self.running = [entry for entry in self.running if entry[3] is not worker]
        for _, _, kind, _, due in lost:
            self.workers[0].add(names.TASKS_RECLAIMED, kind.queue, kind.name, kind.priority)
            self.waiting[kind.queue, kind.priority].appendleft((due, kind))

    def _cron(self, now: float) -> None:
        for queue, task, period in CRON:
            fired = now // period * period
            if self.last.get(task) == fired:
                continue
            self.last[task] = fired
            for endpoint in (*self.workers, self.producer):
                endpoint.set(names.CRON_LAST_SUCCESS, queue, task, to=fired + 1)
                endpoint.set(names.CRON_NEXT_RUN, queue, task, to=fired + period)
                endpoint.add(names.CRON_MISSED, queue, task, amount=0)
            worker = self.workers[0]
            worker.add(names.TASKS_ENQUEUED, queue, task, "high", "cron")
            worker.add(names.TASKS_STARTED, queue, task, "high")
            worker.observe(
                names.TASK_QUEUE_WAIT, queue, task, "high", value=random.expovariate(200)
            )
            worker.observe(names.TASK_DURATION, queue, task, "high", "success", value=0.02)
            worker.observe(names.TASK_END_TO_END, queue, task, "high", value=0.03)
            self._end(worker, (queue, task, "high"), "success", "")
            self._lag(queue, task, "high")

    def _lag(self, queue: str, task: str, priority: str) -> None:
        lag = random.expovariate(1 / 0.006)
        self.workers[0].observe(names.SCHEDULE_LAG, queue, task, priority, value=lag)

    def _rare(self, phase: float) -> None:
        one = self.workers[0]
        labels = ("orders", "import_row", "low")
        if random.random() < 0.01 * TICK_S:
            one.add(names.TASKS_REFUSED, *labels, random.choice(("expired", "unknown", "unique")))
        if random.random() < 0.01 * TICK_S:
            self._end(one, labels, "aborted", "")
            one.observe(names.TASK_DURATION, *labels, "aborted", value=0.4)
        if abs(phase - AWAY_S[1]) < TICK_S:
            self.workers[1].add(names.TASKS_FENCED, "media", "thumbnail", "default", amount=2)
            one.add(names.REDIS_ERRORS, "exchange", amount=3)
        for worker in self.workers:
            for queue in ("orders", "media"):
                worker.set(names.EVENT_LOOP_LAG, queue, to=random.expovariate(1 / 0.004))

    def _count(self, metric: names.Metric, *labels: str) -> None:
        for endpoint in (*self.workers, self.producer):
            endpoint.add(metric, *labels)

    def _show(self, now: float) -> None:
        alive = [worker for worker in self.workers if worker.alive]
        for endpoint in (*self.workers, self.producer):
            for key, queue in self.waiting.items():
                later = sum(1 for _, kind in self.retries if (kind.queue, kind.priority) == key)
                held = sum(
                    1 for entry in self.running if (entry[2].queue, entry[2].priority) == key
                )
                oldest = min((due for due, _ in queue), default=None)
                endpoint.set(names.QUEUE_DEPTH, *key, to=len(queue))
                endpoint.set(names.QUEUE_SCHEDULED, *key, to=later)
                endpoint.set(names.QUEUE_BLOCKED, *key, to=held // 2)
                endpoint.set(names.QUEUE_RUNNING, *key, to=held)
                endpoint.set(names.QUEUE_OLDEST_DUE, *key, to=oldest)
            for queue in ("orders", "media"):
                endpoint.set(names.QUEUE_WORKERS, queue, to=len(alive))
        for worker in self.workers:
            for queue in ("orders", "media"):
                mine = [e for e in self.running if e[3] is worker and e[2].queue == queue]
                worker.set(names.WORKER_CONCURRENCY, queue, to=SLOTS[queue])
                oldest = min((start for _, start, *_ in mine), default=None)
                worker.set(names.WORKER_OLDEST_RUNNING, queue, to=oldest)
            for kind in SHOP:
                count = sum(1 for e in self.running if e[3] is worker and e[2] is kind)
                worker.set(names.TASKS_RUNNING, kind.queue, kind.name, kind.priority, to=count)


def _poisson(mean: float) -> int:
    limit, product, count = math.exp(-mean), random.random(), 0
    while product > limit:
        product *= random.random()
        count += 1
    return count


def _redis() -> float:
    return 0.0003 * random.lognormvariate(0, 0.6)


def main(ports: list[int]) -> None:
    """Serve the two workers and the producer on ``ports`` until stopped."""
    endpoints = [Endpoint(worker=True), Endpoint(worker=True), Endpoint(worker=False)]
    for endpoint, port in zip(endpoints, ports, strict=True):
        start_http_server(port, "127.0.0.1", registry=endpoint.registry)
    shop = Shop(endpoints[:2], endpoints[2])
    stop = threading.Event()
    while not stop.wait(TICK_S):
        shop.tick(time.time())


if __name__ == "__main__":
    main([int(port) for port in sys.argv[1:4]])
