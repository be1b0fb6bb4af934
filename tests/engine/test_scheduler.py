"""What the scheduler does beside keeping time: it lets others have their turns."""

from __future__ import annotations

import anyio
import pytest

from streaq.engine.cron import Crontab
from streaq.engine.scheduler import COUNT_MISSED_UP_TO, count_missed

pytestmark = pytest.mark.anyio

EVERY_SECOND = Crontab.parse("* * * * * *")
DAY_MS = 86_400_000


async def test_what_was_missed_is_counted_to_a_limit() -> None:
    assert await count_missed(EVERY_SECOND, 0, 7_999) == 7
    assert await count_missed(EVERY_SECOND, 0, 0) == 0
    assert await count_missed(EVERY_SECOND, 0, DAY_MS) == COUNT_MISSED_UP_TO


async def test_counting_what_was_missed_does_not_hold_up_the_loop() -> None:
    turns = 0

    async with anyio.create_task_group() as group:

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        group.start_soon(take_turns)
        await count_missed(EVERY_SECOND, 0, DAY_MS)
        group.cancel_scope.cancel()
    assert turns >= COUNT_MISSED_UP_TO // 100
