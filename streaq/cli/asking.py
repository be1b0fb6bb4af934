"""Runs one question to a worker's queue, from a command that is not async itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from streaq.broker.connection import is_connection_lost
from streaq.cli.load import load_worker
from streaq.types import StreaqError
from streaq.worker import Worker

T = TypeVar("T")


def ask(path: str, question: Callable[[Worker[Any]], Awaitable[T]]) -> T:
    """What ``question(worker)`` answers, asked with the worker connected.

    :param path: ``module:worker``.

    :raises StreaqError: for a wrong path, or when Redis can't be reached.

    Example::

        snapshot = ask("shop:worker", lambda worker: worker.snapshot())
    """
    worker = load_worker(path)
    # What is asked here is nothing that the tasks did: it is neither counted nor traced.
    worker.telemetry = False

    async def run() -> T:
        async with worker:
            return await question(worker)

    try:
        return anyio.run(run)
    except Exception as e:
        if is_connection_lost(e):
            raise StreaqError(f"{worker.connector.safe_url}: the connection broke ({e})") from e
        raise
