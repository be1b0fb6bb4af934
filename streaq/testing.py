"""For users' tests: run a queue to completion in the test's own process, without sleeping, and
record what happened.

Example::

    import pytest
    from streaq.testing import RecordingHook, drain, sandbox

    from shop import charge, worker

    @pytest.mark.anyio
    async def test_charge() -> None:
        hook = RecordingHook()
        async with sandbox(worker, hooks=[hook]):
            task = await charge.enqueue(42)
            await drain(worker)
            assert (await task.result()).result == "paid"
        assert hook.names("on_finish") == ["charge"]
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import anyio
import anyio.to_thread
from anyio import TASK_STATUS_IGNORED

from streaq.broker.connection import ConnectionSettings, Connector
from streaq.broker.keys import Keys
from streaq.hooks import SLOTS, Hook
from streaq.session import Session, session_of
from streaq.types import StreaqError
from streaq.utils import to_seconds

if TYPE_CHECKING:
    from streaq.telemetry import Telemetry
    from streaq.worker import Worker

__all__ = ["Recorded", "RecordingHook", "drain", "sandbox"]


class Recorded(NamedTuple):
    """One call of a hook: its name, as ``on_finish``, and the event."""

    hook: str
    event: Any


class RecordingHook(Hook):
    """Keeps every event, in the order they were told.

    ``around_publish`` and ``around_attempt`` are recorded when they are entered.

    Example::

        hook = RecordingHook()
        worker = Worker("embedded://", hooks=[hook])
        ...
        assert [e.reason for e in hook.of("on_fail")] == ["timeout"]
    """

    def __init__(self) -> None:
        #: everything so far
        self.recorded: list[Recorded] = []

    def of(self, hook: str) -> list[Any]:
        """The events of one kind.

        :param hook: name of the method, as ``on_finish``.

        :raises ValueError: when hooks have no such method.
        """
        if hook not in SLOTS:
            raise ValueError(f"hooks have no method {hook!r}; they have {', '.join(SLOTS)}.")
        return [event for name, event in self.recorded if name == hook]

    def names(self, hook: str) -> list[str]:
        """The names of the tasks that events of one kind are about.

        :param hook: name of the method, as ``on_finish``.

        :raises ValueError: when hooks have no such method, or it is not about tasks.
        """
        return [_task_of(event) for event in self.of(hook)]

    def clear(self) -> None:
        """Forget everything."""
        self.recorded.clear()


def _task_of(event: Any) -> str:
    for name in ("ending", "attempt"):
        event = getattr(event, name, event)
    task = getattr(event, "task", None)
    if not isinstance(task, str):
        raise ValueError(f"{type(event).__name__} is not about one task.")  # noqa: TRY004
    return task


def _on(name: str) -> Callable[[RecordingHook, Any], None]:
    def on(self: RecordingHook, e: Any) -> None:
        self.recorded.append(Recorded(name, e))

    return on


def _around(name: str) -> Callable[[RecordingHook, Any], AbstractContextManager[None]]:
    @contextmanager
    def around(self: RecordingHook, e: Any) -> Generator[None]:
        self.recorded.append(Recorded(name, e))
        yield

    return around


# One override each, so that no event is forgotten when hooks are added.
for _name in SLOTS:
    setattr(RecordingHook, _name, (_around if _name.startswith("around_") else _on)(_name))


@asynccontextmanager
async def sandbox(
    worker: Worker[Any],
    *,
    hooks: Sequence[Hook] = (),
    telemetry: bool | Telemetry = False,
    redis_url: str = "embedded://",
) -> AsyncGenerator[Worker[Any]]:
    """Lend a worker a queue of its own on a local server, for one test.

    Inside, the worker is entered (tasks can be enqueued), its queue is empty, it handles no
    signals, and nothing reaches the server it is made for. Afterwards it is as before, and the
    queue is gone.

    :param hooks: told what happens, beside those that the worker has.
    :param telemetry: as the worker's own; none unless asked for.
    :param redis_url: another server for tests; the default needs the ``embedded`` extra.

    :raises StreaqError: when the worker is entered or runs already, or the server can't be
        reached.

    Example::

        @pytest.fixture
        async def queue():
            async with sandbox(worker):
                yield worker
    """
    if session_of(worker).in_use:
        raise StreaqError(f"Worker {worker.id} is in use; a sandbox is entered before the worker.")
    lent: dict[str, Any] = {
        "connector": Connector(ConnectionSettings(redis_url)),
        "queue_name": f"{worker.queue_name}-test-{uuid4().hex[:8]}",
        "extra_hooks": [*worker.extra_hooks, *hooks],
        "handle_signals": False,
        "counters": {},
        "_session": Session(worker, telemetry),
    }
    own = {name: getattr(worker, name) for name in lent}
    _set(worker, lent)
    try:
        async with worker:
            try:
                yield worker
            finally:
                with anyio.CancelScope(shield=True):
                    base = Keys(worker.queue_name).base
                    await anyio.to_thread.run_sync(_forget, worker.connector, base)
    finally:
        _set(worker, own)


async def drain(
    worker: Worker[Any],
    *,
    skip_delays: bool = False,
    timeout: timedelta | float | None = 60,
) -> None:
    """Run a worker until nothing is queued, running or due, and whatever follows from that.

    What fails, fails as it would in production: look at the task's result, or at a
    ``RecordingHook``. What is due later stays scheduled, and so does what waits for it.

    :param skip_delays: whether tasks that are due later (delayed, scheduled for a moment, to be
        tried again) run at once as well. Repeating schedules don't, since they never end.
    :param timeout: seconds (or a ``timedelta``) after which something must be wrong; None for no
        limit.

    :raises TimeoutError: when it takes longer; what runs then is handed back.
    :raises StreaqError: when the worker runs already.

    Example::

        await fetch.enqueue(url).start(delay=3600)
        await drain(worker, skip_delays=True)
    """
    with anyio.fail_after(to_seconds(timeout)):
        await session_of(worker).work(TASK_STATUS_IGNORED, burst=True, hurry=skip_delays)


def _set(worker: Worker[Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(worker, name, value)


def _forget(connector: Connector, base: str) -> None:
    client: Any = connector.open_sync()
    try:
        keys: list[bytes] = list(client.scan_iter(f"{base}*", count=1000))
        if keys:
            client.delete(*keys)
    finally:
        client.close()
