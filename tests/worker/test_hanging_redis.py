"""A Redis that takes what it is sent and does not answer, like a machine that stands still: it is
told of, it keeps no worker from stopping, and nothing is lost by it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from streaq import Hook, Worker
from streaq.hooks import LoopBlocked, RedisLink
from tests.servers import Server, binaries
from tests.support import running, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

LIMIT_S = 0.3


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "contact.SILENCE_S", "pump.SILENCE_S", "pump.GIVE_UP_S", "lifecycle.UNWIND_S",
        "lifecycle.LEAVE_S",
    ):  # fmt: skip
        monkeypatch.setattr(f"streaq.engine.{name}", LIMIT_S)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("valkey" if "valkey" in binaries() else "redis-7") as started:
        yield started


@contextmanager
def hanging(server: Server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


class Heard(Hook):
    def __init__(self) -> None:
        self.words: list[str] = []

    def on_redis_lost(self, e: RedisLink) -> None:
        self.words.append(f"lost: {e.error}")

    def on_redis_restored(self, e: RedisLink) -> None:
        self.words.append("restored")

    def on_loop_blocked(self, e: LoopBlocked) -> None:
        self.words.append("blocked")


class Crew:
    """A worker with a task that ends when it is told to, and one that takes over from it."""

    def __init__(self, url: str) -> None:
        self.heard = Heard()
        self.ends = anyio.Event()
        self.runs = 0
        self.worker = self.make(url)

    def make(self, url: str) -> Worker[Any]:
        worker: Worker[Any] = Worker(
            url, concurrency=2, idle_timeout=2, handle_signals=False, hooks=[self.heard]
        )

        @worker.task(name="waits")
        async def waits() -> int:
            self.runs += 1
            await self.ends.wait()
            return self.runs

        return worker


async def test_it_is_told_of_and_its_late_answer_is_used(server: Server) -> None:
    crew = Crew(server.url)
    async with crew.worker, running(crew.worker):
        task = await crew.worker.enqueue_unsafe("waits")
        await until(lambda: crew.runs == 1)
        with hanging(server):
            crew.ends.set()
            await until(lambda: bool(crew.heard.words))
        assert crew.heard.words[0].startswith("lost: no answer")
        assert (await task.result(10)).result == 1
        await until(lambda: crew.heard.words[1:] == ["restored"])
        assert (await (await crew.worker.enqueue_unsafe("waits")).result(10)).result == 2
    assert crew.worker.counters == {"completed": 2}


@pytest.mark.parametrize("busy", ["idle", "running", "ended"])
async def test_a_worker_stops_all_the_same_and_others_go_on(server: Server, busy: str) -> None:
    crew = Crew(server.url)
    async with crew.worker:
        task = await crew.worker.enqueue_unsafe("waits")
        async with anyio.create_task_group() as group:
            if busy == "idle":
                await task.abort()
            await group.start(crew.worker.run_async)
            if busy != "idle":
                await until(lambda: crew.runs == 1)
            with hanging(server), anyio.fail_after(20):
                if busy == "ended":
                    crew.ends.set()
                    await until(lambda: bool(crew.heard.words))
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await until(lambda: not crew.worker.health.is_started, 15)
        assert "blocked" not in crew.heard.words
        if busy == "idle":
            return
        crew.ends.set()
        other = crew.make(server.url)
        async with other, running(other):
            result = await task.result(15)
            assert result.success
            assert result.result == crew.runs
