"""``/metrics`` as an ASGI app, for those who have a web server already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio.to_thread
from prometheus_client import REGISTRY, CollectorRegistry

from streaq.telemetry.collector import collector_for
from streaq.telemetry.serve import reader_of
from streaq.telemetry.server import metrics_answer, packed

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

    def page(asked: dict[str, str]) -> tuple[dict[str, str], bytes]:
        answer = metrics_answer(served, asked.get("accept", ""))
        return packed(answer, asked.get("accept-encoding", ""))

    async def app(
        scope: Message,
        _receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"metrics_app answers HTTP, not {scope['type']}")
        asked = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        # In a thread: reading the queue waits for Redis.
        told, body = await anyio.to_thread.run_sync(page, asked)
        headers = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in told.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({
            "type": "http.response.body",
            "body": b"" if scope.get("method") == "HEAD" else body,
        })  # fmt: skip

    if worker is not None:
        collector_for(served).add(reader_of(worker).blocks, owner=app)
    return app
