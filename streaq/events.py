"""Hook events made from what the broker answers, for producers and workers alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from streaq.hooks import Attempt, Dispatcher, Ending, Kind, Mark, Release, Status
from streaq.types import StreaqCancelled, StreaqError
from streaq.wire import REFUSALS, decode_headers

if TYPE_CHECKING:
    from streaq.broker.exchange import Refused
    from streaq.broker.publish import Change


def tell_changes(
    hooks: Dispatcher, queue: str, worker_id: str, now_ms: int, changes: Iterable[Change]
) -> None:
    """What the end of a task did to those that wait for it."""
    for change in changes:
        if change.what == "released":
            if hooks.on_release:
                event = Release(queue, change.fn, change.task_id, change.priority, change.by)
                hooks.emit(hooks.on_release, event)
        elif change.what == "failed":
            if hooks.on_refuse:
                error = StreaqError(REFUSALS["dependency"].format(text=f"task {change.by}"))
                ending = _ending_of(hooks, change, queue, worker_id, now_ms, "refused", error)
                hooks.emit(hooks.on_refuse, ending)
        elif hooks.on_finish:
            ending = _ending_of(hooks, change, queue, worker_id, now_ms, "success", None)
            hooks.emit(hooks.on_finish, ending)


def _ending_of(
    hooks: Dispatcher,
    change: Change,
    queue: str,
    worker_id: str,
    now_ms: int,
    status: Status,
    error: BaseException | None,
) -> Ending:
    attempt = never_started(
        hooks, queue, worker_id, change.task_id, change.fn, change.priority, change.kind,
        change.created_ms, change.due_ms, change.headers, now_ms, links=change.links,
    )  # fmt: skip
    reason = "skipped" if status == "success" else "dependency"
    return Ending(attempt, status, reason, error, now_ms, 0.0, 0, None)


def never_started(
    hooks: Dispatcher,
    queue: str,
    worker_id: str,
    task_id: str,
    fn: str,
    priority: str,
    kind: str,
    created_ms: int,
    due_ms: int,
    headers: bytes,
    now_ms: int,
    *,
    tries: int = 0,
    enqueued_ms: int = 0,
    previous: str = "",
    links: str = "",
) -> Attempt:
    """The attempt that was not: of a task that ended without its body being run."""
    return Attempt(
        queue, fn, task_id, priority, cast("Kind", kind or "immediate"), tries,
        hooks.max_tries(fn), worker_id,
        created_ms, due_ms, enqueued_ms, 0, decode_headers(headers), previous,
        tuple(links.split()), hooks.is_silent(fn), (), {}, Mark(), refused_ms=now_ms,
    )  # fmt: skip


def tell_refused(
    hooks: Dispatcher, queue: str, worker_id: str, now_ms: int, refused: Refused
) -> None:
    """A task that the claim ended: refused, or aborted before it ran."""
    aborted = refused.status == "aborted"
    slot = hooks.on_abort if aborted else hooks.on_refuse
    if not slot:
        return
    attempt = never_started(
        hooks, queue, worker_id, refused.task_id, refused.fn, refused.priority, refused.kind,
        refused.created_ms, refused.due_ms, refused.headers, now_ms, tries=refused.tries,
        enqueued_ms=refused.enqueued_ms, previous=refused.previous, links=refused.links,
    )  # fmt: skip
    if aborted:
        error: StreaqError = StreaqCancelled("The task was aborted before it ran.")
    else:
        template = REFUSALS.get(refused.reason, "{text}")
        error = StreaqError(template.format(fn=refused.fn, text=refused.text))
    status: Status = "aborted" if aborted else "refused"
    ending = Ending(attempt, status, refused.reason, error, now_ms, 0.0, 0, None)
    hooks.emit(slot, ending)
