"""Names of the spans and of their attributes; read them as ``streaq.telemetry.names``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SYSTEM_NAME = "streaq"
"""Value of ``messaging.system``."""
INSTRUMENTATION = "streaq"
"""Name of the tracer."""

MESSAGING_SYSTEM = "messaging.system"
MESSAGING_OPERATION_NAME = "messaging.operation.name"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
MESSAGING_DESTINATION = "messaging.destination.name"
MESSAGING_MESSAGE_ID = "messaging.message.id"
MESSAGING_CLIENT_ID = "messaging.client.id"
MESSAGING_CONSUMER_GROUP = "messaging.consumer.group.name"
MESSAGING_BATCH_COUNT = "messaging.batch.message_count"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
TASK_NAME = "streaq.task.name"
TASK_PRIORITY = "streaq.task.priority"
TASK_TRY = "streaq.task.try"
TASK_MAX_TRIES = "streaq.task.max_tries"
TASK_QUEUE_WAIT_MS = "streaq.task.queue_wait_ms"
TASK_KIND = "streaq.task.kind"
TASK_OUTCOME = "streaq.task.outcome"
TASK_REASON = "streaq.task.reason"
LINK_REASON = "streaq.link"

LINK_PRODUCER = "producer"
LINK_PREVIOUS = "previous_attempt"
LINK_DEPENDENCY = "dependency"
LINK_SCHEDULE = "schedule"
LINK_REASONS = (LINK_PRODUCER, LINK_PREVIOUS, LINK_DEPENDENCY, LINK_SCHEDULE)
"""Values of ``streaq.link``, the attribute of every link."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One span attribute. ``at_start`` ones can be read by a sampler."""

    name: str
    type: Literal["string", "int"]
    help: str
    at_start: bool = True


@dataclass(frozen=True, slots=True)
class SpanName:
    """One kind of span. ``{task}`` in ``name`` is the task's name."""

    name: str
    kind: Literal["PRODUCER", "CONSUMER"]
    help: str
    attributes: tuple[str, ...]


_IF_SAME = "; on a batch if all its tasks have the same"

ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(MESSAGING_SYSTEM, "string", "Always `streaq`."),
    Attribute(MESSAGING_OPERATION_NAME, "string", "`send`, `create` or `process`."),
    Attribute(MESSAGING_OPERATION_TYPE, "string", "`send`, `create` or `process`."),
    Attribute(MESSAGING_DESTINATION, "string", "The queue."),
    Attribute(MESSAGING_MESSAGE_ID, "string", "The task id; absent on a batch."),
    Attribute(MESSAGING_CLIENT_ID, "string", "Id of the worker that sends or processes."),
    Attribute(MESSAGING_CONSUMER_GROUP, "string", "The consumer group that shares the queue."),
    Attribute(MESSAGING_BATCH_COUNT, "int", "Number of tasks sent by one call; batches only."),
    Attribute(SERVER_ADDRESS, "string", "Host of Redis."),
    Attribute(SERVER_PORT, "int", "Port of Redis."),
    Attribute(
        ERROR_TYPE,
        "string",
        "Class of the exception that ended the task, or the reason of a refusal.",
        at_start=False,
    ),
    Attribute(TASK_NAME, "string", f"The task's name{_IF_SAME}."),
    Attribute(TASK_PRIORITY, "string", f"The priority it was enqueued with{_IF_SAME}."),
    Attribute(TASK_TRY, "int", "Number of this try, from 1; 0 when refused before any."),
    Attribute(TASK_MAX_TRIES, "int", "Tries the task may have; absent when unlimited."),
    Attribute(
        TASK_QUEUE_WAIT_MS,
        "int",
        "Milliseconds from being due and queued to the start; intended delay excluded.",
    ),
    Attribute(
        TASK_KIND,
        "string",
        "Why the task became due: `immediate`, `delayed`, `cron`, `dependent` or `retry`"
        f"{_IF_SAME}.",
    ),
    Attribute(
        TASK_OUTCOME,
        "string",
        "`success`, `failed`, `aborted`, `retried`, `returned` (shutdown), `lost` (its lease went "
        "to another worker) or `refused`.",
        at_start=False,
    ),
    Attribute(
        TASK_REASON,
        "string",
        "More on the outcome, such as `timeout`, `exhausted`, `expired`, `unknown`.",
        at_start=False,
    ),
    Attribute(
        LINK_REASON,
        "string",
        "On links only: `producer`, `previous_attempt`, `dependency` or `schedule`.",
    ),
)

_COMMON = (
    MESSAGING_SYSTEM,
    MESSAGING_OPERATION_NAME,
    MESSAGING_OPERATION_TYPE,
    MESSAGING_DESTINATION,
    MESSAGING_CLIENT_ID,
    SERVER_ADDRESS,
    SERVER_PORT,
)
_PER_TASK = (MESSAGING_MESSAGE_ID, TASK_NAME, TASK_PRIORITY, TASK_KIND)

SEND = SpanName(
    "send {task}",
    "PRODUCER",
    "One call that enqueues: a task, a pipeline or a batch. A batch of several task names is "
    "called `send {queue}`.",
    (*_COMMON, *_PER_TASK, MESSAGING_BATCH_COUNT, ERROR_TYPE),
)
CREATE = SpanName(
    "create {task}",
    "PRODUCER",
    "One task of a batch, inside its `send` span. Off unless `Telemetry(create_spans=True)`.",
    (*_COMMON, *_PER_TASK),
)
PROCESS = SpanName(
    "process {task}",
    "CONSUMER",
    "One attempt; of no length when the task was refused before its body ran.",
    (
        *_COMMON,
        *_PER_TASK,
        MESSAGING_CONSUMER_GROUP,
        TASK_TRY,
        TASK_MAX_TRIES,
        TASK_QUEUE_WAIT_MS,
        TASK_OUTCOME,
        TASK_REASON,
        ERROR_TYPE,
    ),
)

SPANS: tuple[SpanName, ...] = (SEND, CREATE, PROCESS)
