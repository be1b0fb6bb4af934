"""What a worker object holds between entering and leaving: the broker, and the engine."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskStatus

from streaq.broker.keys import new_consumer
from streaq.broker.link import Broker
from streaq.broker.portal import current_backend
from streaq.engine.catalog import Catalog
from streaq.engine.lifecycle import Life
from streaq.engine.settings import Settings
from streaq.hooks import Dispatcher
from streaq.producer import Producer, check_start
from streaq.queries import Queries
from streaq.types import StreaqError

if TYPE_CHECKING:
    from streaq.task import Task
    from streaq.telemetry import Telemetry
    from streaq.worker import Worker

NOT_ENTERED = "The worker is not connected: use 'async with worker:' around this."


class Session:
    """Opened by the first ``async with`` on a worker, closed by the last.

    :param telemetry: as the worker's.

    :raises StreaqError: ``telemetry`` is neither a bool nor settings.
    """

    def __init__(self, worker: Worker[Any], telemetry: bool | Telemetry) -> None:  # noqa: FBT001 - as Worker has it
        self._worker = worker
        self._telemetry = _checked(telemetry)
        self._users = 0
        self._broker: Broker | None = None
        self._producer: Producer | None = None
        self._hooks: Dispatcher | None = None
        self._decoded: Any = None
        self._life: Life | None = None
        self._context: tuple[Any] | None = None

    @property
    def in_use(self) -> bool:
        """Whether somebody is inside ``async with worker``, or the worker runs."""
        return self._users > 0

    async def enter(self) -> None:
        """Connect, unless that was done."""
        self._users += 1
        if self._users > 1:
            return
        try:
            await self._open()
        except BaseException:
            self._users -= 1
            raise

    async def leave(self) -> None:
        """Disconnect, when the last user leaves."""
        self._users -= 1
        if self._users:
            return
        broker, self._broker, self._producer = self._broker, None, None
        decoded, self._decoded = self._decoded, None
        # Whoever is cancelled while leaving would leave connections open behind.
        with anyio.CancelScope(shield=True):
            if decoded is not None:
                await decoded.aclose()
            if broker is not None:
                await broker.close()

    async def _open(self) -> None:
        worker = self._worker
        broker = Broker(worker.connector, worker.queue_name, self.hooks())
        await broker.open()
        if current_backend() == "asyncio":
            self._decoded = await worker.connector.open_decoded()
        self._broker = broker
        self._producer = Producer(
            broker,
            worker.codec,
            self.hooks(),
            queue=worker.queue_name,
            client_id=worker.id,
            priorities=worker.priorities,
            default_priority=worker.default_priority,
            tz=worker.tz,
        )

    @property
    def telemetry(self) -> bool | Telemetry:
        """What the worker tells of its tasks. Setting it drops the hooks made from what it was;
        what they counted stays in their registry.

        :raises StreaqError: setting it while the worker is in use, or to what is none.
        """
        return self._telemetry

    @telemetry.setter
    def telemetry(self, given: bool | Telemetry) -> None:
        telemetry = _checked(given)
        if self.in_use:
            raise StreaqError(
                f"Worker {self._worker.id} is in use, and tells by the telemetry it has: set "
                f"another, or install it, before the worker is entered."
            )
        self._telemetry = telemetry
        self._hooks = None

    def hooks(self) -> Dispatcher:
        """The hooks of this worker, telemetry first; made once for what ``telemetry`` is."""
        if self._hooks is None:
            worker = self._worker
            hooks = list(worker.extra_hooks)
            if self._telemetry:
                from streaq.telemetry import hooks_for  # costs imports: only for who wants it

                hooks = [
                    *hooks_for(
                        self._telemetry,
                        queue=worker.queue_name,
                        client_id=worker.id,
                        server_address=worker.connector.address,
                        health=worker.health,
                    ),
                    *hooks,
                ]
            self._hooks = Dispatcher(hooks, self._is_silent, self._max_tries)
        return self._hooks

    def _is_silent(self, name: str) -> bool:
        task = self._worker.registry.get(name)
        return task is not None and task.silent

    def _max_tries(self, name: str) -> int | None:
        task = self._worker.registry.get(name)
        return None if task is None else task.max_tries

    def broker(self) -> Broker:
        """The open broker.

        :raises StreaqError: when the worker was not entered.
        """
        if self._broker is None:
            raise StreaqError(NOT_ENTERED)
        return self._broker

    def producer(self) -> Producer:
        """What enqueues.

        :raises StreaqError: when the worker was not entered.
        """
        if self._producer is None:
            raise StreaqError(NOT_ENTERED)
        return self._producer

    def queries(self) -> Queries:
        """What answers questions about tasks.

        :raises StreaqError: when the worker was not entered.
        """
        worker = self._worker
        return Queries(
            self.broker(),
            worker.codec,
            self.hooks(),
            queue=worker.queue_name,
            client_id=worker.id,
            priorities=worker.priorities,
            tz=worker.tz,
        )

    def decoded_client(self) -> Any:
        """The users' own client.

        :raises StreaqError: when the worker was not entered, or runs under Trio.
        """
        if self._broker is None:
            raise StreaqError(NOT_ENTERED)
        if self._decoded is None:
            raise StreaqError("worker.redis is an asyncio client and can't be used under Trio.")
        return self._decoded

    def check_start(self, task: Task[Any, Any]) -> None:
        """Refuse options that can't work."""
        check_start(task, self._worker.priorities, self._worker.tz)

    def check_not_running(self, what: str) -> None:
        """Refuse what comes too late for a worker that runs: it told Redis what it can run.

        :raises StreaqError: when it does.
        """
        if self._life is not None:
            raise StreaqError(
                f"{what} comes too late: worker {self._worker.id} runs already. Register it before "
                f"(import its module where the worker is made, or in the lifespan)."
            )

    def running(self) -> int:
        """How many tasks run now."""
        return len(self._life.pump.running) if self._life is not None else 0

    def context(self) -> Any:
        """What the lifespan yielded.

        :raises StreaqError: while the worker does not run.
        """
        if self._context is None:
            raise StreaqError("Context is only available in running workers.")
        return self._context[0]

    async def work(
        self, task_status: TaskStatus[None], *, burst: bool = False, hurry: bool = False
    ) -> None:
        """Run the engine until it stops.

        :param burst: whether to stop when nothing is due any more.
        :param hurry: whether a burst makes what is due later due now.

        :raises StreaqError: when this worker object runs already.
        """
        worker = self._worker
        if self._life is not None:
            raise StreaqError(f"Worker {worker.id} runs already; one object runs once at a time.")
        async with worker, worker.lifespan() as context:
            self._context = (context,)
            catalog = Catalog(worker.registry, worker.middlewares, worker.sync_concurrency)
            self._life = Life(
                self.broker(),
                catalog,
                worker.codec,
                self.hooks(),
                worker.health,
                self._settings(burst=burst, hurry=hurry),
                worker.counters,
                backend=f"{current_backend()}, Python {platform.python_version()}",
            )
            try:
                await self._life.run(task_status)
            finally:
                self._life = None
                self._context = None

    def _settings(self, *, burst: bool, hurry: bool) -> Settings:
        worker = self._worker
        return Settings(
            queue=worker.queue_name,
            worker_id=worker.id,
            consumer=new_consumer(worker.id),
            priorities=tuple(worker.priorities),
            default_priority=worker.default_priority,
            concurrency=worker.concurrency,
            prefetch=worker.prefetch,
            lease_ms=worker.idle_timeout_ms,
            grace_s=worker.grace_period_s,
            tz=worker.tz,
            burst=burst,
            hurry=hurry,
            handle_signals=worker.handle_signals,
        )


def _checked(given: bool | Telemetry) -> bool | Telemetry:  # noqa: FBT001 - as Worker has it
    """Checked without an import: nobody has a Telemetry before that module is loaded."""
    config = sys.modules.get("streaq.telemetry.config")
    kinds: tuple[type, ...] = (bool,) if config is None else (bool, config.Telemetry)
    if not isinstance(given, kinds):
        raise StreaqError(
            f"telemetry must be True, False or a streaq.telemetry.Telemetry; it is {given!r}."
        )
    return given


def session_of(worker: Worker[Any]) -> Session:
    """A worker's session, for the rooms that know both."""
    return worker._session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
