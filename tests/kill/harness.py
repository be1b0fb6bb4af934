"""Starts, kills and counts worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import redis

from streaq import Worker
from streaq.broker.keys import STAY, Keys
from streaq.task import Task, TaskResult
from streaq.telemetry import names
from streaq.telemetry.queue_metrics import QueueReader
from streaq.telemetry.serve import SnapshotCall

ROOT = Path(__file__).parents[2]


class Fleet:
    """Worker processes on one queue, and the record of what they ran."""

    def __init__(self, url: str, queue: str, folder: Path) -> None:
        self.url = url
        self.queue = queue
        self.ran_file = folder / "ran"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.producer = Worker(url, queue_name=queue, telemetry=False)

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        """One more worker. Keyword arguments become ``STREAQ_...`` variables."""
        environment = {
            **os.environ,
            "STREAQ_KILL_URL": self.url,
            "STREAQ_KILL_QUEUE": self.queue,
            "STREAQ_KILL_RAN": str(self.ran_file),
            **{f"STREAQ_{name.upper()}": value for name, value in settings.items()},
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.workload"], cwd=ROOT, env=environment
        )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9, as the machine or the kernel would."""
        process.kill()
        process.wait()
        self.processes.remove(process)

    def close(self) -> None:
        """Stop what still runs, in good order; one that was started just now once it has begun."""
        deadline = time.monotonic() + 30
        for process in self.processes:
            ready = Path(f"{self.ran_file}.{process.pid}")
            while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            assert process.wait(30) == 0, "a worker did not stop in good order"
        self.processes.clear()

    def abandon(self) -> None:
        """End what a failing test left behind."""
        for process in self.processes:
            process.kill()
            process.wait()

    def runs(self) -> Counter[str]:
        """How often each task ran."""
        if not self.ran_file.exists():
            return Counter()
        lines = self.ran_file.read_text().splitlines()
        return Counter(line.partition(" ")[0] for line in lines)

    def tries(self) -> dict[str, list[int]]:
        """The try numbers each task ran with."""
        found: dict[str, list[int]] = {}
        for line in self.ran_file.read_text().splitlines():
            task_id, _, number = line.partition(" ")
            found.setdefault(task_id, []).append(int(number))
        return found

    def client(self) -> Any:
        """A plain client, to look at keys."""
        return redis.Redis.from_url(self.url)


class Books(NamedTuple):
    """What came in, how it ended, and what is still there, by the queue's metrics alone.

    They are read as an exporter reads them. What processes count themselves can't balance here:
    each of them is a worker of its own with memory of its own, which dies with it (`streaq run`
    keeps that of its children: tests/telemetry/test_conservation.py).
    """

    enqueued: float
    finished: dict[str, float]
    live: float

    @property
    def balance(self) -> float:
        """What was lost; below 0 what was made out of nothing."""
        return self.enqueued - sum(self.finished.values()) - self.live


def fresh_reader(worker: Worker[Any]) -> QueueReader:
    """One that has not seen the queue before: the worker's own keeps what it saw for a second."""
    return QueueReader(SnapshotCall(worker.connector, worker.queue_name))


def books(fleet: Fleet) -> Books:
    """One scrape."""
    read: defaultdict[str, float] = defaultdict(float)
    finished: defaultdict[str, float] = defaultdict(float)
    for block in fresh_reader(fleet.producer).blocks():
        read[block.metric.name] += block.values[0]
        if block.metric is names.QUEUE_FINISHED:
            finished[block.labels[-1]] += block.values[0]
    live = (names.QUEUE_DEPTH, names.QUEUE_SCHEDULED, names.QUEUE_BLOCKED, names.QUEUE_RUNNING)
    assert {metric.name for metric in live} <= set(read), "the queue could not be read"
    return Books(
        read[names.QUEUE_ENQUEUED.name], dict(finished), sum(read[metric.name] for metric in live)
    )


async def enqueue(worker: Worker[Any], names: list[str], count: int) -> list[Task[Any, Any]]:
    """Count tasks over these functions, in turn."""
    tasks = [worker.enqueue_unsafe(names[i % len(names)], i) for i in range(count)]
    await worker.enqueue_many(tasks)
    return tasks


async def results_of(
    worker: Worker[Any], tasks: list[Task[Any, Any]], timeout: float = 60
) -> dict[str, TaskResult[Any]]:
    """The result of every task, waited for."""
    deadline = time.monotonic() + timeout
    found: dict[str, TaskResult[Any]] = {}
    for task in tasks:
        found[task.id] = await task.result(max(0.1, deadline - time.monotonic()))
    return found


def stray_keys(fleet: Fleet) -> list[str]:
    """Keys that have neither a TTL nor a reason to stay."""
    client = fleet.client()
    base = Keys(fleet.queue).base
    stray: list[str] = []
    for raw in client.scan_iter(match=f"{base}*", count=1000):
        key = raw.decode()
        name = key.removeprefix(base)
        if not name.startswith(STAY) and client.ttl(key) == -1:
            stray.append(key)
    return stray


def leftovers(fleet: Fleet) -> list[str]:
    """Messages still in streams, and consumers of workers that are gone."""
    client = fleet.client()
    base = Keys(fleet.queue).base
    found: list[str] = []
    for raw in client.scan_iter(match=f"{base}stream:*", count=1000):
        if length := client.xlen(raw):
            found.append(f"{raw.decode()} holds {length} messages")
        found += [
            f"{raw.decode()} has consumer {consumer['name']!r}"
            for consumer in client.xinfo_consumers(raw, "workers")
            if consumer["name"] != b"-"
        ]
    return found
