"""Huey on Redis: `huey_consumer -k thread -w 8` (threads are its documented choice when in doubt;
100 where the workload asks for concurrency 100), `RedisExpireHuey` with results kept 300 s and
`store_none=True` so that a no-op's result is stored as everyone else's is, minimum polling delay
(`-d 0.01`); reads block (`BRPOP`).

Where results are waited for, `notify_result=True` is set, which its documentation offers for that.
No bulk enqueue: a loop; 8 threads in the "concurrent" row. Priorities need
`PriorityRedisExpireHuey`, chains are `Task.then`. The scheduler looks once a second (its minimum).
A running task cannot be revoked.
"""

from __future__ import annotations

import logging
from datetime import datetime

import _client as client
import _common as common
from huey import PriorityRedisExpireHuey, RedisExpireHuey
from huey.api import ResultGroup

kind = PriorityRedisExpireHuey if common.OPTIONS.get("lanes") else RedisExpireHuey
huey = kind(
    "bench",
    url=common.URL,
    expire_time=300,
    store_none=True,
    notify_result=bool(common.OPTIONS.get("waits")),
)


@huey.on_startup()
def opened() -> None:
    logging.disable(logging.WARNING)


@huey.task(name="noop")
def noop() -> None:
    common.tick()


@huey.task(name="stamp")
def stamp() -> int:
    return common.stamp_body()


@huey.task(name="echo")
def echo(payload: str) -> str:
    return common.echo_body(payload)


@huey.task(name="nap")
def nap() -> None:
    common.nap_body()


@huey.task(name="spin")
def spin() -> None:
    common.spin_body()


@huey.task(name="late")
def late(due_ms: int) -> None:
    common.late_body(due_ms)


@huey.task(name="step")
def step(value: int) -> int:
    return common.step_body(value)


TASKS = {"noop": noop, "stamp": stamp, "echo": echo, "nap": nap, "spin": spin, "late": late}


class HueyPeer(client.SyncPeer):
    missing = {"abort": "a running task cannot be revoked"}

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        if at_ms is not None:
            due = datetime.fromtimestamp(at_ms / 1000)  # noqa: DTZ006 - Huey takes local times
            return TASKS[task].schedule(args=args, eta=due)
        if lane is not None:
            return huey.enqueue(TASKS[task].s(*args, priority=common.LANES.index(lane)))
        return TASKS[task](*args)

    async def result(self, handle):
        return handle.get(blocking=True, timeout=120)

    async def results(self, handles: list) -> list:
        return ResultGroup(handles).get(blocking=True, timeout=300)

    async def chain(self):
        return huey.enqueue(step.s(0).then(step).then(step))

    def work(self) -> None:
        threads = 8 if common.CONCURRENCY <= 32 else common.CONCURRENCY
        logging.disable(logging.WARNING)
        consumer = huey.create_consumer(
            workers=threads, worker_type="thread", initial_delay=0.01, periodic=False
        )
        common.gate()
        consumer.run()


if __name__ == "__main__":
    client.main(HueyPeer(), __doc__, ["huey", "redis", "hiredis"])
