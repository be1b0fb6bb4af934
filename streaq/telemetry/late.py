"""Telemetry for a worker that was made without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaq.telemetry.config import Telemetry

if TYPE_CHECKING:
    from streaq.worker import Worker


def install(worker: Worker[Any], telemetry: Telemetry | None = None) -> None:
    """Have ``worker`` tell of its tasks; for one that only enqueues, such as a web app's.

    Workers do so by default. Call this, before the worker is entered, for one that was made with
    ``telemetry=False``, or to give it settings that are known only now.

    :param telemetry: the settings; the defaults when not given.
    :raises StreaqError: the worker is entered or runs, or ``telemetry`` is no such thing.

    Example::

        from streaq.telemetry import Telemetry, install

        install(worker, Telemetry(propagation="link"))

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with worker:
                yield
    """
    worker.telemetry = telemetry or Telemetry()
