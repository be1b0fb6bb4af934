"""taskiq with taskiq-redis: `RedisStreamBroker` (the one its README recommends, with
acknowledgement) and `RedisAsyncResultBackend`, run by `taskiq worker --workers 1 --max-async-tasks
32` on uvloop, which the worker takes by itself when it is installed. `--no-parse` skips pydantic
parsing of arguments and the results expire as ours do (`result_ex_time=300`). With the option
`broker: list` it runs `ListQueueBroker`, which acknowledges nothing and loses running tasks with
their worker, and is quicker for it. No bulk enqueue: the batch row awaits `kiq()` calls with
`asyncio.gather`. Waiting on a result polls with the default interval (0.2 s). Delayed tasks need
`taskiq scheduler` beside the worker (`ListRedisScheduleSource`, looking once a second:
`--update-interval 1`, where the default is a minute); pipelines are the package `taskiq-pipelines`.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import _client as client
import _common as common
from taskiq import TaskiqEvents, TaskiqScheduler
from taskiq_pipelines import Pipeline, PipelineMiddleware
from taskiq_redis import (
    ListQueueBroker,
    ListRedisScheduleSource,
    RedisAsyncResultBackend,
    RedisStreamBroker,
)

backend = RedisAsyncResultBackend(common.URL, result_ex_time=300)
kind = ListQueueBroker if common.OPTIONS.get("broker") == "list" else RedisStreamBroker
more = {} if kind is ListQueueBroker else {"consumer_id": "0"}
broker = kind(common.URL, **more).with_result_backend(backend)
if common.OPTIONS.get("chain"):
    broker = broker.with_middlewares(PipelineMiddleware())
source = ListRedisScheduleSource(common.URL)
scheduler = TaskiqScheduler(broker, sources=[source])


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def wait_for_the_others(state) -> None:
    common.gate()


@broker.task(task_name="noop")
async def noop() -> None:
    common.tick()


@broker.task(task_name="stamp")
async def stamp() -> int:
    return common.stamp_body()


@broker.task(task_name="echo")
async def echo(payload: str) -> str:
    return common.echo_body(payload)


@broker.task(task_name="nap")
async def nap() -> None:
    started = time.time_ns()
    await asyncio.sleep(0.01)
    common.tick(started)


@broker.task(task_name="spin")
def spin() -> None:
    common.spin_body()


@broker.task(task_name="late")
async def late(due_ms: int) -> None:
    common.late_body(due_ms)


@broker.task(task_name="step")
async def step(value: int) -> int:
    return common.step_body(value)


TASKS = {"noop": noop, "stamp": stamp, "echo": echo, "nap": nap, "spin": spin, "late": late}


class TaskiqPeer(client.AsyncPeer):
    missing = {
        "lanes": "no priorities on Redis",
        "abort": "a running task cannot be aborted",
    }

    async def open(self) -> None:
        await broker.startup()
        await source.startup()

    async def close(self) -> None:
        await broker.shutdown()
        await source.shutdown()

    async def enqueue(self, task: str, *args, at_ms=None, lane=None):
        if at_ms is None:
            return await TASKS[task].kiq(*args)
        due = datetime.fromtimestamp(at_ms / 1000, UTC)
        return await TASKS[task].schedule_by_time(source, due, *args)

    async def enqueue_batch(self, calls: list[tuple]) -> None:
        for start in range(0, len(calls), 100):  # one connection each: bounded by the file limit
            part = calls[start : start + 100]
            await self.gather([self.enqueue(c[0], *c[1], at_ms=c[2]) for c in part])

    async def result(self, task):
        return (await task.wait_result(timeout=120)).return_value

    async def chain(self):
        return await Pipeline(broker, step).call_next(step).call_next(step).kiq(0)

    def work(self) -> None:
        common.exec_cli(
            *["taskiq", "worker", "taskiq_peer:broker", "--workers", "1", "--no-parse"],
            *["--max-async-tasks", str(common.CONCURRENCY), "--log-level", "WARNING"],
            *["--max-threadpool-threads", str(common.CONCURRENCY)],
        )

    def companion(self) -> None:
        common.exec_cli(
            *["taskiq", "scheduler", "taskiq_peer:scheduler", "--log-level", "WARNING"],
            *["--update-interval", "1"],
        )


if __name__ == "__main__":
    packages = ["taskiq", "taskiq-redis", "taskiq-pipelines", "redis", "hiredis", "uvloop"]
    client.main(TaskiqPeer(), __doc__, packages)
