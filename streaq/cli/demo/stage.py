"""The course of the demo: start a worker, enqueue, watch, wait for the last result, stop."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskStatus
from rich.live import Live
from rich.text import Text

from streaq.broker.keys import Keys
from streaq.cli.demo.view import Pace, picture, plain_line
from streaq.cli.demo.workload import WorkerProcess, worker_process
from streaq.cli.words import DIM, plural, screen
from streaq.types import StreaqError
from streaq.wire import parse_record

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streaq.cli.demo.tally import Tally
    from streaq.cli.demo.workload import Example

FRAMES_A_SECOND = 8
PLAIN_EVERY_S = 3.0
DRAIN_SHARE, DRAIN_MOST_S = 0.25, 3.0
"""The end of the time is kept for the last tasks to end in."""
GIVE_UP_S = 30.0
READY_POLL_S = 0.05


class Stage:
    """One run of the demo.

    :param seconds: how long in all, about; None is for ever.
    :param workers: processes to start.
    """

    def __init__(
        self, example: Example, tally: Tally, *, seconds: float | None, workers: int
    ) -> None:
        self._example = example
        self._worker = example.worker
        self._tally = tally
        self._workers = workers
        self._seconds = seconds
        self._pace = Pace()
        self._console = screen()
        self._over = anyio.Event()
        self._result = anyio.Event()

    def say(self, text: str) -> None:
        """A line beside the picture."""
        self._console.print(text, style=DIM, markup=False)

    async def play(self) -> None:
        """All of it.

        :raises StreaqError: when the queue is not empty, or the worker ends.
        """
        async with self._worker:
            await self._refuse_others()
            with ExitStack() as stack:
                running = worker_process(self._workers) if self._workers else nullcontext()
                process = stack.enter_context(running)
                live = stack.enter_context(self._live())
                async with anyio.create_task_group() as group:
                    await group.start(self._watch)
                    group.start_soon(self._draw, live, process)
                    await self._act(process)
                    group.cancel_scope.cancel()
                if process is not None:
                    process.stop()
            self._console.print(self._picture(done=True))

    async def _refuse_others(self) -> None:
        """The numbers are the demo's own only on a queue of its own."""
        snapshot = await self._worker.snapshot()
        waiting = snapshot.size(include_scheduled=True)
        if self._workers and (waiting or snapshot.workers or snapshot.repeating):
            raise StreaqError(
                f"Queue {snapshot.queue!r} at {self._worker.connector.safe_url} is in use "
                f"({plural(waiting, 'task')} waiting, {plural(len(snapshot.workers), 'worker')}); "
                f"give REDIS_URL another database for the demo."
            )

    async def _act(self, process: WorkerProcess | None) -> None:
        """Enqueue, then wait until every task has its result."""
        await self._until_ready()
        seconds = self._seconds
        if seconds is None:
            await self._example.shop(math.inf)
            return
        await self._example.shop(seconds - min(DRAIN_MOST_S, seconds * DRAIN_SHARE))
        if process is None:
            return
        with anyio.move_on_after(GIVE_UP_S):
            while self._tally.outstanding:
                await self._next_result()
            # A cron job fires every second: just after one has ended, none is on its way.
            await self._next_result()

    async def _until_ready(self) -> None:
        """So that the waits shown are not those for Python to start."""
        while len((await self._worker.snapshot()).workers) < self._workers:  # noqa: ASYNC110
            # Another process is waited for.
            await anyio.sleep(READY_POLL_S)
        self._pace = Pace()

    async def _next_result(self) -> None:
        self._result = anyio.Event()
        await self._result.wait()

    async def _watch(self, *, task_status: TaskStatus[None]) -> None:
        """Hear of every result of the queue as it is published."""
        client: Any = await self._worker.connector.open()
        try:
            listener = client.pubsub()
            await listener.psubscribe(Keys(self._worker.queue_name).done("*"))
            task_status.started()
            async for message in listener.listen():
                if message["type"] == "pmessage":
                    self._tally.on_result(parse_record(message["data"]))
                    self._result.set()
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()

    async def _draw(self, live: Live | None, process: WorkerProcess | None) -> None:
        while True:
            if process is not None:
                process.check()
            self._pace.note(self._tally.ended)
            if live is not None:
                live.update(self._picture(), refresh=True)
                await anyio.sleep(1 / FRAMES_A_SECOND)
            else:
                self.say(plain_line(self._tally, self._pace))
                await anyio.sleep(PLAIN_EVERY_S)

    def _live(self) -> AbstractContextManager[Live | None]:
        if not self._console.is_terminal:
            return nullcontext()
        return Live(self._picture(), console=self._console, auto_refresh=False, transient=True)

    def _picture(self, *, done: bool = False) -> RenderableType:
        where = self._worker.connector.safe_url
        if where == "embedded://":
            where = "a Valkey of its own"
        who = plural(self._workers, "worker process").replace("processs", "processes")
        heading = Text.assemble(
            ("streaq demo", "bold"), (f"  examples/orders.py on {where}, {who}", DIM)
        )
        return picture(self._tally, self._pace, heading, self._worker.priorities, done=done)
