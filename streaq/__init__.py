"""streaq: an async, fully typed, distributed task queue over Redis Streams.

The path of a task, which is also the way to read the code:

1. ``task`` holds a call; awaiting it hands it to ``producer``,
2. which turns it into an envelope (``wire``) and gives it to ``broker/publish``.
3. Redis keeps it: in a stream when it may run, elsewhere when it is due later.
4. ``engine/pump`` claims it with one script call, together with everything else that fits,
5. ``engine/attempt`` runs it and names the outcome,
6. ``broker/exchange`` settles the outcome in Redis and claims what comes next, and
7. ``broker/results`` hands the result to whoever waits for it.
8. All along, ``hooks`` tell ``telemetry`` (and you) what happens.
"""

from streaq.hooks import Hook
from streaq.task import TaskInfo, TaskResult, TaskStatus
from streaq.types import StreaqCancelled, StreaqError, StreaqRetry, TaskContext
from streaq.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Hook",
    "StreaqCancelled",
    "StreaqError",
    "StreaqRetry",
    "TaskContext",
    "TaskInfo",
    "TaskResult",
    "TaskStatus",
    "Worker",
]
