"""Due tasks, repeating schedules and cron jobs. Sleeps until the next of them is due, or until a
control message says that an earlier one was added.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from itertools import islice
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import anyio

from streaq.broker.connection import Backoff
from streaq.broker.errors import RedisError
from streaq.broker.link import CronFiring
from streaq.broker.publish import text
from streaq.engine.cron import Crontab
from streaq.engine.wake import Wake
from streaq.hooks import Cron, Due, Enqueue, Publish
from streaq.producer import keep_of
from streaq.types import StreaqError
from streaq.wire import encode_headers

if TYPE_CHECKING:
    from streaq.broker.link import Broker, CronState, DueSchedule, Tick
    from streaq.engine.settings import Settings
    from streaq.hooks import Dispatcher
    from streaq.task import RegisteredTask
    from streaq.wire import Codec

logger = logging.getLogger("streaq")

TICK_BATCH = 500
COUNT_MISSED_UP_TO = 10_000
COUNT_AT_ONCE = 50


@dataclass(slots=True)
class CronJob:
    """A cron job of the code: its timetable and when it fires next."""

    task: RegisteredTask
    crontab: Crontab
    next_ms: int | None = None


class Scheduler:
    """Moves what is due to the queue, and fires schedules.

    :param crons: functions of this worker that run by a timetable.
    """

    def __init__(
        self,
        broker: Broker,
        codec: Codec,
        hooks: Dispatcher,
        settings: Settings,
        crons: Sequence[RegisteredTask],
    ) -> None:
        self._broker = broker
        self._codec = codec
        self._hooks = hooks
        self._settings = settings
        tz = settings.tz
        self._jobs = [CronJob(task, Crontab.parse(task.crontab or "", tz)) for task in crons]
        self._registered = anyio.Event()
        self.wake = Wake()

    async def run(self) -> None:
        """Keep the timetable for ever."""
        backoff = Backoff()
        while True:
            try:
                if not self._registered.is_set():
                    await self._register_jobs()
                    self._registered.set()
                sleep_s = await self._turn()
                backoff.reset()
            except (RedisError, OSError):
                sleep_s = backoff.next_delay()
            await self.wake.wait_for(sleep_s)

    async def look(self) -> None:
        """Do everything that is due, now."""
        await self._registered.wait()
        if self._settings.hurry:
            await self._broker.hasten(self._settings.priorities)
        while await self._turn() <= 0:
            pass

    async def _turn(self) -> float:
        """Do everything that is due; seconds until something will be."""
        tick = await self._broker.tick(TICK_BATCH, self._settings.priorities)
        self._tell_moved(tick)
        for schedule in tick.schedules:
            await self._fire(tick.now_ms, schedule)
        for job in self._jobs:
            if job.next_ms is not None and job.next_ms <= tick.now_ms:
                await self._fire_job(job, job.next_ms, tick.now_ms)
        if tick.schedules or len(tick.moved) >= TICK_BATCH:
            return 0.0
        times = [job.next_ms for job in self._jobs if job.next_ms is not None]
        if tick.next_ms is not None:
            times.append(tick.next_ms)
        return max(0.0, (min(times) - tick.now_ms) / 1000) if times else math.inf

    def _tell_moved(self, tick: Tick) -> None:
        if not self._hooks.on_due:
            return
        for task_id, fn, priority, due_ms in tick.moved:
            lag_s = (tick.now_ms - due_ms) / 1000
            event = Due(self._settings.queue, fn, task_id, priority, due_ms, lag_s)
            self._hooks.emit(self._hooks.on_due, event)

    # ------------------------------------------------------------- repeating schedules

    async def _fire(self, now_ms: int, schedule: DueSchedule) -> None:
        """One firing of ``start(schedule="...")``: the one that is due, and none for those that
        passed while nobody looked.
        """
        raw_id, fn, due_ms, expression, tz, priority = schedule
        schedule_id = text(raw_id)
        next_ms: int | None = None
        missed = 0
        try:
            crontab = Crontab.parse(expression, self._zone(tz))
            next_ms = crontab.next_after(max(now_ms, due_ms))
            missed = await count_missed(crontab, due_ms, now_ms)
        except StreaqError as e:
            logger.error("schedule %s is dropped: %s", schedule_id, e)  # noqa: TRY400 - one line
        task_id = uuid5(NAMESPACE_URL, f"streaq:{schedule_id}:{due_ms}").hex
        made = await self._broker.fire(raw_id, due_ms, next_ms, task_id)
        if made:
            self._tell(Cron(
                self._settings.queue, fn, made, due_ms, next_ms or 0, missed,
                (now_ms - due_ms) / 1000, priority, self._hooks.is_silent(fn),
            ))  # fmt: skip

    def _zone(self, name: str) -> tzinfo:
        if name == "UTC":
            return UTC
        try:
            return ZoneInfo(name) if name else self._settings.tz
        except (ZoneInfoNotFoundError, ValueError):
            return self._settings.tz

    # ------------------------------------------------------------- jobs written in the code

    async def _register_jobs(self) -> None:
        for job in self._jobs:
            state = await self._register(job, None)
            job.next_ms = job.crontab.next_after(state.now_ms)
            last_due = job.crontab.last_at_or_before(state.now_ms)
            if last_due is not None and last_due > state.last_ms:
                # Passed while no worker was alive: run the latest, count the others.
                await self._fire_job(job, last_due, state.now_ms, since_ms=state.last_ms)
            else:
                state = await self._register(job, job.next_ms)
            self._tell(Cron(
                self._settings.queue, job.task.fn_name, "", 0, job.next_ms or 0, state.missed, 0.0,
                self._settings.default_priority, job.task.silent,
            ))  # fmt: skip

    async def _fire_job(
        self, job: CronJob, due_ms: int, now_ms: int, since_ms: int | None = None
    ) -> None:
        name = job.task.fn_name
        latest = job.crontab.last_at_or_before(now_ms)
        if latest is not None and latest > due_ms:
            since_ms = due_ms - 1 if since_ms is None else since_ms
            due_ms = latest  # this worker slept through some: only the latest is run
        job.next_ms = job.crontab.next_after(max(now_ms, due_ms))
        task_id = uuid5(NAMESPACE_URL, f"streaq:{self._settings.queue}:{name}:{due_ms}").hex
        headers: dict[str, str] = {}
        event = Enqueue(
            self._settings.queue, name, task_id, self._settings.default_priority, "cron", 0, (),
            headers, job.task.silent, due_ms,
        )  # fmt: skip
        publish = Publish(self._settings.queue, self._settings.worker_id, (event,))
        with self._hooks.around(self._hooks.around_publish, publish):
            self._hooks.emit(self._hooks.on_enqueue, event)
            state, missed = await self._make(job, due_ms, since_ms, task_id, headers)
        if state.made:
            self._tell(Cron(
                self._settings.queue, name, task_id, due_ms, job.next_ms or 0, missed,
                (now_ms - due_ms) / 1000, self._settings.default_priority, job.task.silent,
            ))  # fmt: skip

    async def _make(
        self,
        job: CronJob,
        due_ms: int,
        since_ms: int | None,
        task_id: str,
        headers: Mapping[str, str],
    ) -> tuple[CronState, int]:
        """Have the task made, and answer how many were missed: since then, or since the last
        firing of others that this worker has not heard of.
        """
        head, missed = encode_headers(headers), 0
        while True:
            if since_ms is not None:
                missed = await count_missed(job.crontab, since_ms, due_ms - 1)
            firing = await self._firing(job, due_ms, job.next_ms, task_id)
            state = await self._broker.cron(
                firing._replace(missed=missed, since_ms=since_ms or 0, headers=head)
            )
            if not state.outdated:
                return state, missed
            since_ms = state.last_ms

    async def _register(self, job: CronJob, next_ms: int | None) -> CronState:
        return await self._broker.cron(await self._firing(job, 0, next_ms, ""))

    async def _firing(
        self, job: CronJob, due_ms: int, next_ms: int | None, task_id: str
    ) -> CronFiring:
        name = job.task.fn_name
        return CronFiring(
            name, f"{job.crontab.expression} {job.crontab.tz}", due_ms, next_ms, 0, task_id,
            self._settings.default_priority, await self._codec.dump_call(name, (), {}), "",
            str(keep_of(job.task.ttl)),
        )  # fmt: skip

    def _tell(self, event: Cron) -> None:
        self._hooks.emit(self._hooks.on_cron, event)


async def count_missed(crontab: Crontab, start_ms: int, end_ms: int) -> int:
    """Count firings after one moment and not after another; so many may take a while, in which
    the event loop has its turns.
    """
    count = 0
    for _ in islice(crontab.between(start_ms, end_ms), COUNT_MISSED_UP_TO):
        count += 1
        if count % COUNT_AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()
    return count


async def sweep_forever(broker: Broker, lease_ms: int, reclaim: Callable[[], None]) -> None:
    """Every half lease: forget workers that died, and have their tasks looked for."""
    while True:
        await anyio.sleep(lease_ms / 2000)
        reclaim()
        try:
            await broker.sweep(lease_ms)
        except (RedisError, OSError):
            continue  # the exchange tells of it and waits it out
