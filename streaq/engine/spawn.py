"""Starting attempts: each in a task of its own, so that each has its own contextvars.

On asyncio these are plain tasks, which cost half of what a task group's do; nothing is lost by
it, since an attempt never raises and is always stopped by its own cancel scope.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio

from streaq.broker.portal import current_backend
from streaq.engine.attempt import Lease

Run: TypeAlias = Callable[[Lease], Coroutine[Any, Any, None]]
Spawn: TypeAlias = Callable[[Lease], object]


@asynccontextmanager
async def open_spawner(run: Run) -> AsyncGenerator[Spawn]:
    """What starts ``run(lease)`` beside the caller. On asyncio the lease keeps its task alive."""
    if current_backend() == "asyncio":
        loop = asyncio.get_running_loop()

        def spawn(lease: Lease) -> None:
            # A task takes a copy of the context that is current here.
            context = lease.lane.context
            if context is None:
                lease.task = loop.create_task(run(lease))
            else:
                lease.task = context.run(loop.create_task, run(lease))

        if loop.get_task_factory() is None:
            yield spawn
        else:
            # An eager one runs the body at once; hooks are to hear first that it begins.
            yield lambda lease: loop.call_soon(spawn, lease)
        return
    async with anyio.create_task_group() as group:

        async def run_shielded(lease: Lease) -> None:
            # A worker that is cancelled must not cancel its attempts as well: only their leases
            # know why they stop, and a deploy would cost them a try.
            with anyio.CancelScope(shield=True):
                await run(lease)

        def spawn_in_group(lease: Lease) -> None:
            context = lease.lane.context
            if context is None:
                group.start_soon(run_shielded, lease)
            else:
                context.run(group.start_soon, run_shielded, lease)

        yield spawn_in_group
