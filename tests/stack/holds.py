"""Hits a worker process in the middle of its tasks, however fast or slow the machine is.

The process is stopped first and looked at then: a task that Redis says it runs is one that it
cannot end any more, so what follows does not depend on who was quicker.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from streaq import TaskStatus, Worker

BETWEEN_TRIES_S = 0.1
YOUNG_MS = 2000
"""A task that was started so recently is not about to end, if it is one that takes longer."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A task that a process runs, and the number of its try there."""

    name: str
    task_id: str
    try_number: int


class Holds:
    """Who runs what in a queue."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self._queue = queue

    def stop_in_the_middle(
        self, pid: int, names: Collection[str] = (), within_s: float = 60.0
    ) -> list[Hold]:
        """Stop a worker process (SIGSTOP) in the middle of tasks; which these are.

        :param names: functions; it has just started a task of each then, and others are not told
            of. Without any, it has just started some task.
        """
        end = time.monotonic() + within_s
        while True:
            os.kill(pid, signal.SIGSTOP)
            try:
                _wait_until_stopped(pid)
                found = anyio.run(self._of, pid)
                if found and not set(names) - {hold.name for hold in found}:
                    return [hold for hold in found if not names or hold.name in names]
            except BaseException:
                os.kill(pid, signal.SIGCONT)
                raise
            os.kill(pid, signal.SIGCONT)
            assert time.monotonic() < end, f"process {pid} never ran {', '.join(names)} at once"
            time.sleep(BETWEEN_TRIES_S)

    def are_elsewhere(self, holds: Sequence[Hold]) -> bool:
        """Whether each of these tasks was started again since."""
        return anyio.run(partial(self._started_again, holds))

    async def _of(self, pid: int) -> list[Hold]:
        async with self._client() as client:
            # Whatever the process sent before it stopped has been done when this is answered.
            now = await client.snapshot()
            (worker_id,) = [w["id"] for w in now.workers if w["pid"] == pid] or [""]
            listed = await client.get_tasks_by_status(TaskStatus.RUNNING)
            histories = [await client.history_by_id(task.task_id) for task in listed]
            return [
                Hold(history.fn_name, history.task_id, history.tries)
                for history in histories
                if history is not None and history.state == "running"
                if history.attempts[-1].worker_id == worker_id
                and history.attempts[-1].began_ms > now.now_ms - YOUNG_MS
            ]

    async def _started_again(self, holds: Sequence[Hold]) -> bool:
        async with self._client() as client:
            for hold in holds:
                history = await client.history_by_id(hold.task_id)
                assert history is not None, "its result is gone already"
                if history.tries <= hold.try_number:
                    return False
        return True

    def _client(self) -> Worker[None]:
        return Worker(self._url, queue_name=self._queue, telemetry=False)


def _wait_until_stopped(pid: int) -> None:
    """A signal to a process with many threads reaches them one after the other."""
    while any(_state(task) not in "TtXZ" for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
