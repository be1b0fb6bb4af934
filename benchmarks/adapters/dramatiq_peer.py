"""Dramatiq on Redis: `dramatiq --processes 1 --threads 8` (8 threads is its documented default per
process) and 100 threads where the workload asks for concurrency 100; the default middleware plus
`Results` with the Redis backend, which its guide recommends, storing every result for 300 s.

No bulk enqueue: the batch row calls `send` in a loop, the "concurrent" row uses 8 threads.
Priorities belong to actors, so there are five of them. Chains are `pipeline`. Aborting needs the
third-party `dramatiq-abort`.
"""

from __future__ import annotations

import time

import _client as client
import _common as common
import dramatiq
from dramatiq import group
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend


class Gate(Middleware):
    def before_worker_boot(self, broker, worker) -> None:
        common.gate()


broker = RedisBroker(url=common.URL)
results = RedisBackend(url=common.URL)
broker.add_middleware(Results(backend=results, store_results=True, result_ttl=300_000))
broker.add_middleware(Gate())
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    common.tick()


@dramatiq.actor
def stamp() -> int:
    return common.stamp_body()


@dramatiq.actor
def echo(payload: str) -> str:
    return common.echo_body(payload)


@dramatiq.actor
def nap() -> None:
    common.nap_body()


@dramatiq.actor
def spin() -> None:
    common.spin_body()


@dramatiq.actor
def late(due_ms: int) -> None:
    common.late_body(due_ms)


@dramatiq.actor
def step(value: int) -> int:
    return common.step_body(value)


ACTORS = {a.actor_name: a for a in [noop, stamp, echo, nap, spin, late, step]}
BY_LANE = {
    lane: dramatiq.actor(noop.fn, actor_name=f"noop-{lane}", priority=len(common.LANES) - index)
    for index, lane in enumerate(common.LANES)
}


class DramatiqPeer(client.SyncPeer):
    missing = {"abort": "needs the third-party package dramatiq-abort"}

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        actor = BY_LANE[lane] if lane else ACTORS[task]
        if at_ms is None:
            return actor.send(*args)
        delay = max(at_ms - int(time.time() * 1000), 0)
        return actor.send_with_options(args=args, delay=delay)

    async def result(self, message):
        return message.get_result(backend=results, block=True, timeout=120_000)

    async def results(self, handles: list) -> list:
        return list(group(handles).get_results(block=True, timeout=300_000))

    async def chain(self):
        return (step.message(0) | step.message() | step.message()).run()

    def work(self) -> None:
        threads = 8 if common.CONCURRENCY <= 32 else common.CONCURRENCY
        common.exec_cli(
            *["dramatiq", "dramatiq_peer", "--processes", "1", "--threads", str(threads)],
            *["--skip-logging"],
        )


if __name__ == "__main__":
    client.main(DramatiqPeer(), __doc__, ["dramatiq", "redis", "hiredis"])
