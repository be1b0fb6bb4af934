from __future__ import annotations

import pytest

from tests.support import MakeWorker, running

pytestmark = pytest.mark.anyio


async def test_add(make_worker: MakeWorker) -> None:
    worker = make_worker()

    @worker.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with running(worker):
        assert (await (await add.enqueue(1, 2)).result(3)).result == 3
