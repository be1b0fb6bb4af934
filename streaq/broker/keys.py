"""Every key and channel name, and nowhere else (but for ``lua/_base.lua``, which extends these).

| key | type | what it holds | gone |
|---|---|---|---|
| ``stream:<priority>`` | stream | messages of queued and running tasks | stays, empty |
| ``task:<id>`` | hash | a task that has not ended | when it ends |
| ``result:<id>`` | string | its result | after the task's ``ttl`` |
| ``ended:<id>`` | string | that a task without a result has ended | after a minute |
| ``due:<priority>`` | sorted set | ids due later | with its last member |
| ``late:<priority>`` | sorted set | ids that came late to their stream, by due time | after a day |
| ``blocked:<priority>`` | sorted set | ids that wait for others | with its last member |
| ``dependents:<id>`` | hash | who waits for this task, and how | when it ends |
| ``dependencies:<id>`` | set | whom this task waits for | when the last one ends |
| ``lock:<function>`` | string | id of the unique task that runs | two leases, renewed |
| ``schedules`` | sorted set | repeating schedules by next firing | with its last member |
| ``schedule:<id>`` | hash | one of them | when unscheduled |
| ``crons`` | sorted set | cron jobs by next firing | a week after the last |
| ``cron:<function>`` | hash | what is known of one | a week after its next firing |
| ``registry:<digest>`` | hash | functions and options of one version of the code | ten leases |
| ``worker:<consumer>`` | string | health record of a worker | one lease, renewed |
| ``workers`` | sorted set | their consumers by the end of their lease | a day after the last |
| ``priorities`` | set | priorities ever used | stays |
| ``totals`` | hash | how many tasks ever came in, and how many ended how | stays |
| ``done`` | list | ids that ended last, at most 10,000 | with the longest ``ttl`` |

Channels: ``control`` (aborts, due times, handed-back tasks), ``done:<id>`` (results).
"""

from __future__ import annotations

from os import urandom

STAY = ("stream:", "priorities", "totals")
"""Keys without a TTL that an idle, healthy queue keeps: consumer groups live in the streams, and
totals must never go backwards."""

GROUP = "workers"


def new_consumer(worker_id: str) -> str:
    """The name under which one run of a worker holds messages and leases.

    Two processes may well have workers of one name, and a worker that comes back has the name of
    the one that died: neither may take (or hand back) what the other holds.
    """
    return f"{worker_id}:{urandom(4).hex()}"


def worker_of(consumer: str) -> str:
    """The worker's own name; ``worker_of`` in ``lua/_base.lua`` does the same."""
    return consumer.rpartition(":")[0] or consumer


class Keys:
    """Names of one queue. The braces are a hash tag: all of them share one Cluster slot."""

    __slots__ = ("base", "control", "queue")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.base = f"streaq:{{{queue}}}:"
        self.control = f"{self.base}control"

    def stream(self, priority: str) -> str:
        """Messages of one priority."""
        return f"{self.base}stream:{priority}"

    def task(self, task_id: str) -> str:
        """A task that has not ended."""
        return f"{self.base}task:{task_id}"

    def result(self, task_id: str) -> str:
        """The result of one that has."""
        return f"{self.base}result:{task_id}"

    def done(self, task_id: str) -> str:
        """The channel on which the result of a task is published."""
        return f"{self.base}done:{task_id}"
