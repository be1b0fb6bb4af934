"""What hooks are told of one attempt: made from its lease, and from what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from streaq.broker.exchange import new_tuple
from streaq.engine.outcome import (
    Aborted,
    Failed,
    Forfeited,
    Outcome,
    Retried,
    Returned,
    Succeeded,
)
from streaq.hooks import Attempt, Ending, Kind, Mark, Status
from streaq.wire import decode_headers

if TYPE_CHECKING:
    from streaq.broker.exchange import Claimed
    from streaq.engine.attempt import Lease

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

_STATUS: dict[type[Outcome], Status] = {
    Succeeded: "success",
    Failed: "failed",
    Retried: "retried",
    Aborted: "aborted",
    Returned: "returned",
    Forfeited: "lost",
}

_REASON: dict[type[Outcome], str] = {
    Succeeded: "ok",
    Returned: "shutdown",
    Forfeited: "lost",
}


class Events:
    """Makes the events of one worker's attempts."""

    def __init__(self, queue: str, worker_id: str) -> None:
        self._queue = queue
        self._worker_id = worker_id

    def attempt(self, lease: Lease) -> Attempt:
        """The attempt as hooks know it."""
        c = lease.claimed
        return new_tuple(Attempt, (
            self._queue, c.fn, c.task_id, c.priority, cast("Kind", c.kind), c.try_number,
            lease.function.policy.max_tries, self._worker_id, c.created_ms, c.due_ms,
            int(c.message_id.partition(b"-")[0]), c.started_ms,
            decode_headers(c.headers) if c.headers else _NO_HEADERS, c.previous,
            tuple(c.links.split()) if c.links else (), lease.function.silent, *lease.call, Mark(),
            c.first_due_ms, _retry_delay_ms(c) if c.kind == "retry" else 0, 0,
        ))  # fmt: skip

    def end(self, lease: Lease, outcome: Outcome, duration_s: float) -> Ending:
        """What is to be told once the settle has committed, or was refused."""
        attempt = lease.attempt or self.attempt(lease)
        ending = attempt.mark.end or self.ending(attempt, outcome, duration_s)
        # It refers to the attempt: a cycle, which only the garbage collector would free.
        attempt.mark.end = None
        return ending

    def ending(self, attempt: Attempt, outcome: Outcome, duration_s: float) -> Ending:
        """How this attempt ended."""
        finished_ms = attempt.started_ms + round(duration_s * 1000)
        if isinstance(outcome, Succeeded):
            value = outcome.value
            fields = (attempt, "success", "ok", None, finished_ms, duration_s, 0, value)
            return new_tuple(Ending, fields)
        error = None if isinstance(outcome, Returned | Forfeited) else outcome.error
        retry_due_ms = 0
        if isinstance(outcome, Retried):
            relative = outcome.when.startswith("+")
            retry_due_ms = int(outcome.when) + (finished_ms if relative else 0)
        status = _STATUS[type(outcome)]
        if isinstance(outcome, Failed) and outcome.reason == "undecodable":
            status = "refused"
        reason = _REASON.get(type(outcome)) or getattr(outcome, "reason", "")
        return Ending(attempt, status, reason, error, finished_ms, duration_s, retry_due_ms, None)


def _retry_delay_ms(c: Claimed) -> int:
    """From the end of the attempt before, if that asked for this one, to when this one was due."""
    try:
        last = json.loads(f"[{c.log}]")[-1]
        return max(0, c.due_ms - int(last["ended"])) if last["outcome"] == "retried" else 0
    except (ValueError, LookupError, TypeError):  # somebody changed it in Redis
        return 0
