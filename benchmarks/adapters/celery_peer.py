"""Celery on Redis, tuned by its optimising guide for many short tasks: a large prefetch multiplier
(64), no gossip, mingle or heartbeat, no rate limits, no events, results that expire after 300 s.

Two entrants: the thread pool (`-P threads -c 32`) and the default prefork pool with one child per
core (`-c 2`). Celery has no bulk enqueue: the batch row calls `apply_async` with one acquired
producer, as its documentation shows; the "concurrent" row uses 8 threads. Priorities are the Redis
transport's `priority_steps` with `queue_order_strategy: priority`. Aborting a running task is
possible on prefork only (`revoke(terminate=True)`; SIGUSR1 here, which raises SoftTimeLimitExceeded
in the task, because the default signal kills the child before the task could note the time).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import _client as client
import _common as common
from celery import Celery, chain
from celery.result import ResultSet
from celery.signals import worker_init

PREFORK = common.OPTIONS.get("pool") == "prefork"
app = Celery("celery_peer", broker=common.URL, backend=common.URL)
app.conf.update(
    worker_prefetch_multiplier=64,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    result_expires=300,
    task_track_started=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "queue_order_strategy": "priority",
        "priority_steps": list(range(5)),
    },
)


@worker_init.connect
def wait_for_the_others(**_) -> None:
    common.gate()


@app.task(name="noop")
def noop() -> None:
    common.tick()


@app.task(name="stamp")
def stamp() -> int:
    return common.stamp_body()


@app.task(name="echo")
def echo(payload: str) -> str:
    return common.echo_body(payload)


@app.task(name="nap")
def nap() -> None:
    common.nap_body()


@app.task(name="spin")
def spin() -> None:
    common.spin_body()


@app.task(name="late")
def late(due_ms: int) -> None:
    common.late_body(due_ms)


@app.task(name="step")
def step(value: int) -> int:
    return common.step_body(value)


@app.task(name="hold")
def hold() -> None:
    common.hold_began()
    try:
        time.sleep(30)
    finally:
        common.hold_ended()


class CeleryPeer(client.SyncPeer):
    missing = {} if PREFORK else {"abort": "a running task can be terminated on prefork only"}

    def message(self, task: str, args: tuple, at_ms: int | None, lane: str | None, **more):
        if at_ms is not None:
            more["eta"] = datetime.fromtimestamp(at_ms / 1000, UTC)
        if lane is not None:  # 0 is the highest on Redis
            more["priority"] = len(common.LANES) - 1 - common.LANES.index(lane)
        return app.tasks[task].apply_async(args, **more)

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        return self.message(task, args, at_ms, lane)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        with app.producer_or_acquire() as producer:
            for call in calls:
                self.message(*call, producer=producer)

    async def result(self, handle):
        return handle.get(timeout=120)

    async def results(self, handles: list) -> list:
        return ResultSet(handles).join_native(timeout=300)

    async def abort(self, handle) -> None:
        app.control.revoke(handle.id, terminate=True, signal="SIGUSR1")

    async def chain(self):
        return chain(step.s(0), step.s(), step.s())()

    def work(self) -> None:
        pool = ["-c", "2"] if PREFORK else ["-P", "threads", "-c", str(common.CONCURRENCY)]
        common.exec_cli(
            *["celery", "-A", "celery_peer", "worker", "-l", "ERROR", *pool],
            *["--without-gossip", "--without-mingle", "--without-heartbeat"],
            *["-n", f"bench{time.time_ns()}@%h"],
        )


if __name__ == "__main__":
    client.main(CeleryPeer(), __doc__, ["celery", "kombu", "redis", "hiredis"])
