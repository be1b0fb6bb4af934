"""``/metrics`` as an ASGI app, for those who have a web server already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio.to_thread
from prometheus_client import REGISTRY, CollectorRegistry

from streaq.telemetry.collector import collector_for
from streaq.telemetry.serve import reader_of
from streaq.telemetry.server import metrics_answer

if TYPE_CHECKING:
    from streaq.worker import Worker

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


def metrics_app(
    worker: Worker[Any] | None = None, *, registry: CollectorRegistry | None = None
) -> App:
    """An ASGI app that answers every request with the metrics of this process.

    :param worker: also serve the metrics of this worker's queue, read from Redis.
    :param registry: the registry to serve; by default the one that the worker's telemetry counts
        in, or else Prometheus' default one.

    Example::

        app = FastAPI()
        app.mount("/metrics", metrics_app(worker))
    """
    served = registry or getattr(worker and worker.telemetry, "registry", None) or REGISTRY

    async def app(
        scope: Message,
        _receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"metrics_app answers HTTP, not {scope['type']}")
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        # In a thread: reading the queue waits for Redis.
        answer = await anyio.to_thread.run_sync(metrics_answer, served, accept)
        headers = [
            (b"content-type", answer.content_type.encode("latin-1")),
            (b"content-length", str(len(answer.body)).encode()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    if worker is not None:
        collector_for(served).add(reader_of(worker).blocks, owner=app)
    return app
