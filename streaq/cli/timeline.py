"""The ledger of one task drawn as a timeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from streaq.cli.words import DIM, STATE_STYLES, moment
from streaq.utils import say_ms
from streaq.wire import visible

if TYPE_CHECKING:
    from streaq.history import PastAttempt, TaskHistory

_WHY = {
    "timeout": "the one before timed out",
    "lost": "the worker before died",
    "returned": "the worker before shut down",
}
_WORDS = {
    "success": "succeeded",
    "retried": "ended",
    "returned": "handed back (its worker shut down, the try is refunded)",
    "lost": "lost (its worker died)",
    "running": "running",
}


def headline(history: TaskHistory, queue: str) -> Text:
    """The task in one line: function, id, where it is."""
    state = history.outcome or history.state
    line = Text.assemble(
        (state, f"bold {STATE_STYLES.get(state, 'default')}"),
        "  ",
        (history.fn_name, "bold"),
        "  ",
        history.task_id,
    )
    line.append(f"\nqueue {queue} · priority {history.priority}", style=DIM)
    return line


def timeline(history: TaskHistory, now_ms: int) -> Table:
    """A line for everything that happened, with the time since the task was created."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style=DIM)
    table.add_column(no_wrap=True, justify="right", style=DIM)
    table.add_column()

    def add(ms: int, what: Text | str) -> None:
        table.add_row(moment(ms, now_ms), f"+{say_ms(max(0, ms - history.created_ms))}", what)

    add(history.created_ms, "enqueued")
    left_out = history.attempts[0].number - 1 if history.attempts else 0
    if left_out > 0:
        said = "1 earlier try is" if left_out == 1 else f"{left_out} earlier tries are"
        table.add_row("", "", Text(f"{said} not kept", style=DIM))
    for attempt in history.attempts:
        add(attempt.began_ms, _start_of(attempt))
        add(attempt.ended_ms or now_ms, _end_of(attempt, now_ms))
    _add_rest(history, now_ms, add)
    return table


def _start_of(attempt: PastAttempt) -> Text:
    line = Text(f"try {attempt.number} started on worker {attempt.worker_id or 'unknown'}")
    if attempt.why not in ("", "asked"):  # the line before says that another try was asked for
        line.append(f" ({_WHY.get(attempt.why, attempt.why)})")
    if attempt.trace_id:
        line.append(f"  trace {attempt.trace_id}", style=DIM)
    return line


def _end_of(attempt: PastAttempt, now_ms: int) -> Text:
    word = _WORDS.get(attempt.outcome, attempt.outcome)
    line = Text(word, style=STATE_STYLES.get(attempt.outcome, "default"))
    took_ms = (attempt.ended_ms or now_ms) - attempt.began_ms
    line.append(f" {'for' if attempt.ended_ms is None else 'after'} {say_ms(max(0, took_ms))}")
    if attempt.outcome == "retried":
        line.append(", to be tried again")
    if attempt.error:
        line.append(f"  {visible(attempt.error)}", style="default")
    return line


def _add_rest(history: TaskHistory, now_ms: int, add: Callable[[int, Text | str], None]) -> None:
    """What no attempt tells: an end without one, or what it waits for now."""
    if history.state == "done":
        last = history.attempts[-1] if history.attempts else None
        if last is None or last.outcome != history.outcome:
            word = (
                "succeeded without being run"
                if history.outcome == "success"
                else (f"{history.outcome} ({history.reason})")
            )
            line = Text(word, style=STATE_STYLES.get(history.outcome, "default"))
            add(history.finished_ms, line.append(f"  {visible(history.error)}", style="default"))
    elif history.state == "scheduled" and history.due_ms > now_ms:
        style = STATE_STYLES["scheduled"]
        what = f"due, in {say_ms(history.due_ms - now_ms)}"
        add(history.due_ms, Text(what, style=style))
