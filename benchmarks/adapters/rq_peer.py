"""RQ: `SimpleWorker`, which its notes on performance name as the quickest (no fork per job) and
allow for short, trusted jobs; job descriptions are not logged, results are kept 300 s.

A worker runs one job at a time, whatever concurrency a workload asks for. Batches use
`Queue.enqueue_many` with `Queue.prepare_data`; the "concurrent" row uses 8 threads. Priorities are
five queues listed in order. The chain is `depends_on`, each job reading the return value of the one
before. Scheduled jobs need `with_scheduler=True`, which looks once a second. Only the forking
worker can stop a running job, by killing it.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import _client as client
import _common as common
from redis import Redis
from rq import Queue, SimpleWorker, get_current_job

TTL_S = 300


def noop() -> None:
    common.tick()


def stamp() -> int:
    return common.stamp_body()


def echo(payload: str) -> str:
    return common.echo_body(payload)


def nap() -> None:
    common.nap_body()


def spin() -> None:
    common.spin_body()


def late(due_ms: int) -> None:
    common.late_body(due_ms)


def step(value: int) -> int:
    return common.step_body(value)


def next_step() -> int:
    before = get_current_job().fetch_dependencies()[0]
    return common.step_body(before.return_value())


class RqPeer(client.SyncPeer):
    missing = {"abort": "only the forking worker can stop a job, by killing it"}

    async def open(self) -> None:
        self.redis = Redis.from_url(common.URL)
        names = ["bench", *common.LANES]
        self.queues = {name: Queue(name, connection=self.redis) for name in names}

    def path(self, task: str) -> str:
        return f"rq_peer.{task}"

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        queue = self.queues[lane or "bench"]
        if at_ms is None:
            return queue.enqueue(self.path(task), args=args, result_ttl=TTL_S)
        due = datetime.fromtimestamp(at_ms / 1000, UTC)
        return queue.enqueue_at(due, self.path(task), args=args, result_ttl=TTL_S)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        if any(call[2] is not None for call in calls):
            for task, args, at_ms, lane in calls:
                await self.enqueue(task, *args, at_ms=at_ms, lane=lane)
            return
        for name, queue in self.queues.items():
            mine = [call for call in calls if (call[3] or "bench") == name]
            data = [Queue.prepare_data(self.path(c[0]), args=c[1], result_ttl=TTL_S) for c in mine]
            if data:
                queue.enqueue_many(data)

    async def result(self, job):
        return job.latest_result(timeout=120).return_value

    async def chain(self):
        queue = self.queues["bench"]
        job = queue.enqueue(self.path("step"), 0, result_ttl=TTL_S)
        for _ in range(2):
            job = queue.enqueue(self.path("next_step"), depends_on=job, result_ttl=TTL_S)
        return job

    def work(self) -> None:
        logging.disable(logging.WARNING)
        redis = Redis.from_url(common.URL)
        names = list(reversed(common.LANES)) if common.OPTIONS.get("lanes") else ["bench"]
        queues = [Queue(name, connection=redis) for name in names]
        worker = SimpleWorker(queues, connection=redis, log_job_description=False)
        common.gate()
        worker.work(logging_level="ERROR", with_scheduler=bool(common.OPTIONS.get("delay")))


if __name__ == "__main__":
    client.main(RqPeer(), __doc__, ["rq", "redis", "hiredis"])
