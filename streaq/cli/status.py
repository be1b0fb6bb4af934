"""``streaq status``: a whole queue on one screen."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from streaq.cli.asking import ask
from streaq.cli.options import AsJson, WorkerPath
from streaq.cli.words import BAD, DIM, GOOD, WARN, moment, plural, relative, screen
from streaq.utils import say_ms

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streaq.broker.inspect import QueueSnapshot

LATE_MS = 1000
VERY_LATE_MS = 10_000
"""From here on a queue's oldest due task is shown in yellow and red."""


def status(path: WorkerPath, *, as_json: AsJson = False) -> None:
    """Show a queue: what waits, what runs, who works, and the timetable."""

    async def look(worker: Any) -> tuple[QueueSnapshot, list[str], str]:
        return await worker.snapshot(), worker.priorities, worker.connector.safe_url

    snapshot, priorities, url = ask(path, look)
    if as_json:
        screen().print_json(json.dumps(asdict(snapshot)))
    else:
        screen().print(picture(snapshot, priorities, url))


def picture(snapshot: QueueSnapshot, priorities: list[str], url: str) -> RenderableType:
    """The screen.

    :param priorities: of the worker, highest first; those that the queue has beyond them come
        last.
    """
    head = Text.assemble(
        ("queue ", DIM), (snapshot.queue, "bold"), (f"  {url}", DIM), style="default"
    )
    parts: list[RenderableType] = [head, "", _priorities(snapshot, priorities), ""]
    parts.append(_workers(snapshot) if snapshot.workers else Text("no live worker", style=BAD))
    if snapshot.crons or snapshot.repeating:
        parts += ["", _crons(snapshot)]
    return Group(*parts)


def _table(*columns: str) -> Table:
    """The first column to the left, numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _priorities(snapshot: QueueSnapshot, priorities: list[str]) -> RenderableType:
    rank = {name: i for i, name in enumerate(priorities)}
    known = {p.priority: p for p in snapshot.priorities}
    names = sorted({*known, *rank}, key=lambda name: (rank.get(name, len(rank)), name))
    table = _table("priority", "queued", "running", "scheduled", "blocked", "oldest due")
    for name in names:
        p = known.get(name)
        counts = (p.depth, p.running, p.scheduled, p.blocked) if p else (0, 0, 0, 0)
        cells = [Text(f"{n:,}", style="default" if n else DIM) for n in counts]
        late = None if p is None or p.oldest_due_ms is None else snapshot.now_ms - p.oldest_due_ms
        table.add_row(name, *cells, _lateness(late))
    return table


def _lateness(ms: int | None) -> Text:
    if ms is None:
        return Text("–", style=DIM)
    style = BAD if ms >= VERY_LATE_MS else WARN if ms >= LATE_MS else GOOD
    return Text(f"{say_ms(max(0, ms))} ago", style=style)


def _workers(snapshot: QueueSnapshot) -> RenderableType:
    table = _table("worker", "host", "pid", "running", "up", "functions")
    for w in sorted(snapshot.workers, key=lambda w: (str(w.get("host")), int(w.get("pid", 0)))):
        running, slots = int(w.get("running", 0)), int(w.get("concurrency", 0))
        reserved = int(w.get("reserved", 0))
        taken = f"{running} of {slots}" + (f", {reserved} reserved" if reserved else "")
        table.add_row(
            str(w.get("id")),
            str(w.get("host")),
            str(w.get("pid")),
            Text(taken, style=WARN if slots and running >= slots else "default"),
            say_ms((snapshot.now_ms - int(w.get("started_ms", 0))) // 1000 * 1000),
            f"{len(w.get('functions', ()))}",
        )
    return table


def _crons(snapshot: QueueSnapshot) -> RenderableType:
    parts: list[RenderableType] = []
    if snapshot.crons:
        table = _table("cron job", "timetable", "last success", "next", "missed")
        now = snapshot.now_ms
        for c in snapshot.crons:
            tab, _, tz = c.crontab.rpartition(" ")
            last = relative(c.last_success_ms, now) if c.last_success_ms else "never"
            upcoming = f"{moment(c.next_ms, now)}" if c.next_ms else "–"
            missed = Text(f"{c.missed:,}", style=WARN if c.missed else DIM)
            table.add_row(c.name, f"{tab} {tz}", last, upcoming, missed)
        parts.append(table)
    if snapshot.repeating:
        parts.append(Text(f"and {plural(snapshot.repeating, 'repeating task')}", style=DIM))
    return Group(*parts)
