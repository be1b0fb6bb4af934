"""A worker's life: what starts in which order, and how it stops without losing anything.

Start: make the functions known, keep leases, listen for control messages, schedule, pump.
Stop: claim no more, let running tasks finish for as long as ``grace_period`` says, hand back the
rest with their tries refunded, settle everything, leave.
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from streaq.broker.errors import RedisError
from streaq.broker.portal import home_scheduler
from streaq.engine.attempt import Attempts
from streaq.engine.lease import Leases, LostLease
from streaq.engine.ledger import Ledger
from streaq.engine.outcome import Cause
from streaq.engine.pump import Pump
from streaq.engine.scheduler import Scheduler, sweep_forever
from streaq.engine.spawn import open_spawner
from streaq.engine.watchdog import Watchdog
from streaq.hooks import LoopBlocked, WorkerEvent

if TYPE_CHECKING:
    from streaq.broker.link import Broker
    from streaq.engine.catalog import Catalog
    from streaq.engine.health import Health
    from streaq.engine.settings import Settings
    from streaq.hooks import Dispatcher
    from streaq.wire import Codec

logger = logging.getLogger("streaq")

UNWIND_S = 10.0
"""How long a cancelled task may take to clean up before the worker leaves without it."""
LEAVE_S = 5.0
"""How long Redis may take to let the worker go."""


class Life:
    """One run of a worker, from the first registration to the last settle.

    :param counters: the worker's public counters, kept up to date.
    """

    def __init__(
        self,
        broker: Broker,
        catalog: Catalog,
        codec: Codec,
        hooks: Dispatcher,
        health: Health,
        settings: Settings,
        counters: dict[str, int],
        *,
        backend: str,
    ) -> None:
        self._broker = broker
        self._catalog = catalog
        self._hooks = hooks
        self._health = health
        self._settings = settings
        self._backend = backend
        exchanger = broker.exchanger(settings.consumer, settings.lease_ms, settings.priorities)
        self.pump = Pump(
            broker,
            exchanger,
            catalog,
            hooks,
            health,
            settings,
            Ledger(counters, hooks, settings.queue, settings.worker_id),
        )
        self._attempts = Attempts(
            codec,
            hooks,
            queue=settings.queue,
            worker_id=settings.worker_id,
            finished=self.pump.finish,
        )
        self._scheduler = Scheduler(broker, codec, hooks, settings, catalog.crons)
        self.pump.burst.look = self._scheduler.look
        self._leases: Leases
        self._working = anyio.CancelScope()
        self._reason = "cancelled"
        self._signalled = False
        self._has_begun = False

    async def run(self, task_status: TaskStatus[None]) -> None:
        """Work until a signal, the end of the burst, or cancellation."""
        await self._register()
        self._leases = self._make_leases()
        self._attempts.traced = self._leases.traced
        watchdog = self._make_watchdog()
        async with open_spawner(self._attempts.run) as self.pump.spawn:
            self._leases.start()
            watchdog.start()
            self._health.ready(self._settings.concurrency)
            try:
                await self._work(watchdog, task_status)
            finally:
                self._health.stopping()
                with anyio.CancelScope(shield=True):
                    async with anyio.create_task_group() as group:
                        group.start_soon(self._beat, watchdog)
                        await self._stop()
                        group.cancel_scope.cancel()
                    watchdog.stop()
                    self._health.stopped()
                    if self._has_begun:
                        self._tell(start=False)

    async def _work(self, watchdog: Watchdog, task_status: TaskStatus[None]) -> None:
        pump, broker, settings = self.pump, self._broker, self._settings
        async with anyio.create_task_group() as group:
            self._working = group.cancel_scope
            await broker.listen(self._on_control, self._on_control_ready)
            if settings.handle_signals and threading.current_thread() is threading.main_thread():
                await group.start(self._handle_signals)  # before anything is claimed
            # Whoever hears of it may send a signal.
            self._has_begun = True
            self._tell(start=True)
            group.start_soon(self._beat, watchdog)
            group.start_soon(pump.reader.run)
            group.start_soon(pump.help_forever)
            group.start_soon(self._scheduler.run)
            group.start_soon(sweep_forever, broker, settings.lease_ms, pump.reclaim_soon)
            task_status.started()
            await pump.run()
            if not self._signalled:
                self._reason = "drained"
            group.cancel_scope.cancel()

    async def _stop(self) -> None:
        """Settle what finished, hand back what did not, and leave no trace."""
        pump = self.pump
        pump.interrupted()
        pump.drain()
        pump.cancel_running()
        with anyio.move_on_after(UNWIND_S) as scope:
            self._working = scope
            await pump.run()
        if scope.cancelled_caught:
            self._tell_left_behind()
        await anyio.to_thread.run_sync(self._leases.stop)
        if pump.is_cut_off:
            return  # others tidy up
        try:
            with anyio.fail_after(LEAVE_S):
                await self._leave()
        except (RedisError, OSError) as e:
            why = str(e) or f"no answer for {LEAVE_S:.0f} s"
            logger.warning("could not take leave of Redis (%s); other workers will tidy up", why)

    def _tell_left_behind(self) -> None:
        names = sorted({lease.function.name for lease in self.pump.running.values()})
        if names:
            logger.error("tasks that ignore cancellation are left behind: %s", ", ".join(names))
        else:
            logger.error(
                "Redis does not answer: attempts that ended are not settled, and will be reclaimed"
            )

    async def _leave(self) -> None:
        settings, broker = self._settings, self._broker
        await broker.unlisten()
        claimed = [lease.claimed for lease in self.pump.running.values()]
        held = [(c.priority, c.message_id) for c in claimed]
        await broker.recover(settings.consumer, settings.priorities, held)
        await broker.sweep(settings.lease_ms, settings.consumer)

    # --------------------------------------------------------------------- its parts

    async def _register(self) -> None:
        settings = self._settings
        await self._broker.register(
            settings.consumer,
            self._catalog.digest,
            settings.lease_ms,
            settings.priorities,
            self._catalog.options,
        )

    def _make_leases(self) -> Leases:
        soon = home_scheduler()

        def tell(lost: list[LostLease], stop: list[str], gone: int) -> None:
            soon(self._on_leases, lost, stop, gone)

        return Leases(
            self._broker.connector,
            self._broker.keys.base,
            self._settings,
            self._catalog.digest,
            self._health,
            held=self.pump.held,
            running=self.pump.traced,
            functions=sorted(self._catalog.functions),
            crons=sorted(task.fn_name for task in self._catalog.crons),
            tell=tell,
        )

    def _make_watchdog(self) -> Watchdog:
        hooks, functions = self._hooks, self._catalog.functions

        def report(event: LoopBlocked) -> None:
            if hooks.on_loop_blocked:
                hooks.emit(hooks.on_loop_blocked, event)
            else:
                logger.warning(
                    "the event loop has been blocked for %.1f s at %s", event.blocked_s, event.where
                )

        return Watchdog(
            self._health,
            queue=self._settings.queue,
            worker_id=self._settings.worker_id,
            idle_timeout_s=self._settings.lease_ms / 1000,
            emit=report,
            running=lambda: {lease.function.name for lease in list(self.pump.running.values())},
            function_of=lambda name: getattr(functions[name].task, "fn", None),
        )

    async def _beat(self, watchdog: Watchdog) -> None:
        while True:
            if not self.pump.look_after():
                self._working.cancel()
            watchdog.beat()
            await anyio.sleep(watchdog.interval_s)

    async def _handle_signals(self, *, task_status: TaskStatus[None]) -> None:
        """The first signal asks tasks to finish within the grace period, the second cuts it."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async with anyio.create_task_group() as group:
                async for signum in signals:
                    worker_id = self._settings.worker_id
                    logger.info("received %s: worker %s stops", signum.name, worker_id)
                    self._reason, self._signalled = signum.name, True
                    self._health.stopping()
                    if self.pump.drain():
                        group.start_soon(self._end_grace)
                    else:
                        self.pump.cancel_running()

    async def _end_grace(self) -> None:
        await anyio.sleep(self._settings.grace_s)
        self.pump.cancel_running()

    # -------------------------------------------------------------------- what it hears

    def _on_control(self, message: bytes) -> None:
        word, _, rest = message.decode("utf-8", "replace").partition(" ")
        if word == "abort":
            self.pump.stop_task(rest, Cause.ABORT)
        elif word == "due":
            self._scheduler.wake.ring()
        elif word == "returned":
            self.pump.reclaim_soon()

    def _on_control_ready(self) -> None:
        """Messages may have been missed: look for what they would have said."""
        self._leases.renew_soon()
        self._scheduler.wake.ring()
        self.pump.reclaim_soon()

    def _on_leases(self, lost: list[LostLease], stop: list[str], gone: int) -> None:
        for task_id, try_number in lost:
            self.pump.lose(task_id, try_number)
        for task_id in stop:
            self.pump.stop_task(task_id, Cause.ABORT)
        if gone:
            self.pump.register_again()

    def _tell(self, *, start: bool) -> None:
        slot = self._hooks.on_worker_start if start else self._hooks.on_worker_stop
        settings = self._settings
        event = WorkerEvent(
            settings.queue, settings.worker_id, settings.concurrency, settings.priorities,
            tuple(sorted(self._catalog.functions)), "" if start else self._reason, self._backend,
        )  # fmt: skip
        self._hooks.emit(slot, event)
