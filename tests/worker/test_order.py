"""Tasks start in the order in which they came, from a worker's first moment on."""

from __future__ import annotations

import pytest

from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def test_a_blocking_read_is_not_overtaken(make_worker: MakeWorker) -> None:
    """A worker that just started looks for messages to reclaim; a new one that came after what its
    blocking read brings must not be claimed along with them.
    """
    order: list[int] = []
    for start in range(10):
        worker = make_worker(concurrency=1)

        @worker.task(name="record")
        async def record(number: int) -> None:
            order.append(number)

        async with running(worker):
            tasks = [await record.enqueue(start * 2 + i) for i in range(2)]
            for task in tasks:
                await task.result(5)
    assert order == sorted(order)
