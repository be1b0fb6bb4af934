"""What the plots show: the figures of a book, arranged in panels, as plain data for `plots.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.entrants import BY_NAME, ENTRANTS, OURS, UPSTREAM
from benchmarks.figures import Book

RATE, MS, SECONDS = "tasks a second", "milliseconds", "seconds"


@dataclass(frozen=True)
class Panel:
    """Bars for one metric of one workload; `mark` is a second metric, drawn as a tick."""

    title: str
    workload: str
    metric: str = "rate"
    axis: str = RATE
    log: bool = False
    mark: str = ""
    mark_label: str = ""


@dataclass(frozen=True)
class Chart:
    """One picture: a file name, a caption for the page, and its panels, two in a line."""

    name: str
    caption: str
    panels: tuple[Panel, ...]


CHARTS: tuple[Chart, ...] = (
    Chart(
        "drain",
        "Draining a queue of no-ops",
        (Panel("one worker process", "drain"), Panel("two worker processes", "drain2")),
    ),
    Chart(
        "enqueue",
        "Enqueueing",
        (Panel("in batches", "batch"), Panel("100 awaited singly at once", "concurrent")),
    ),
    Chart(
        "latency",
        "One task on an idle queue",
        (
            Panel("enqueue to start, p50", "latency", "start_p50", MS, True, "start_p99", "p99"),
            Panel("enqueue to result, p50", "latency", "result_p50", MS, True, "result_p99", "p99"),
        ),
    ),
    Chart(
        "punctuality",
        "Scheduled tasks and aborts",
        (
            Panel("lateness of a scheduled task, p50", "lateness", "p50", MS, True, "p99", "p99"),
            Panel("abort seen by the task, p50", "abort", "p50", MS, True, "max", "slowest"),
        ),
    ),
    Chart(
        "kinds",
        "Other kinds of work, one worker process",
        (
            Panel("1 KiB payload and result", "echo1k"),
            Panel("100 KiB payload and result", "echo100k"),
            Panel("10 ms awaiting task, concurrency 100", "nap"),
            Panel("the same, 2 workers", "nap2"),
            Panel("1 ms CPU-bound sync task", "spin"),
            Panel("5 priorities", "lanes"),
            Panel("chain of 3", "chain"),
        ),
    ),
    Chart(
        "scale",
        "A million tasks waiting, ten thousand results awaited",
        (
            Panel(
                "drain with a million waiting",
                "backlog",
                "rate_full",
                mark="rate_empty",
                mark_label="nothing else waiting",
            ),
            Panel("10,000 results awaited, until the last", "waiters", "seconds", SECONDS, True),
        ),
    ),
    Chart(
        "costs",
        "What one no-op task costs",
        (
            Panel("Redis commands a task", "drain", "commands", "commands"),
            Panel("bytes to and from Redis a task", "drain", "bytes", "bytes"),
            Panel("processor time of Redis a task", "drain", "redis_us", "microseconds", True),
            Panel("memory of a worker (RSS)", "drain", "rss_mb", "MB"),
        ),
    ),
)
BUDGET = ("budget", "Where the time of one no-op task goes")


def spec(book: Book) -> dict[str, Any]:
    """Everything that `plots.py` needs; panels and charts without a figure are left out."""
    charts: list[dict[str, Any]] = []
    for chart in CHARTS:
        panels = [drawn for panel in chart.panels if (drawn := bars_of(book, panel))]
        if panels:
            charts.append({"name": chart.name, "caption": chart.caption, "panels": panels})
    return {"charts": charts, "budget": stacks(book)}


def bars_of(book: Book, panel: Panel) -> dict[str, Any] | None:
    bars: list[dict[str, Any]] = []
    for entrant in ENTRANTS:
        cell = book.get(panel.workload, entrant.name)
        value = cell.median(panel.metric) if cell else None
        if cell is None or value is None:
            continue
        low, high = cell.spread(panel.metric) or (value, value)
        bars.append(
            {
                "label": entrant.label + (" †" if cell.cap else ""),
                "kind": kind(entrant.name),
                "value": value,
                "low": low,
                "high": high,
                "mark": cell.median(panel.mark) if panel.mark else None,
            }
        )
    if not bars:
        return None
    told = {"title": panel.title, "axis": panel.axis, "log": panel.log, "mark": panel.mark_label}
    return {**told, "bars": bars}


def stacks(book: Book) -> list[dict[str, Any]]:
    """The kept budget of a task, as one stack of parts for each entrant."""
    return [
        {"label": BY_NAME[kept["entrant"]].label, "parts": parts(kept)}
        for kept in book.extra.get("budget", [])
    ]


def parts(kept: Mapping[str, Any]) -> list[tuple[str, float]]:
    rest = max(kept["redis_us"] - kept["script_us"], 0)
    return [
        *((room.partition(" (")[0], us) for room, us in kept["rooms"].items()),
        ("Redis: scripts", kept["script_us"]),
        ("Redis: everything else", rest),
    ]


def kind(entrant: str) -> str:
    """The group that decides a bar's colour."""
    if entrant in {OURS, UPSTREAM, "floor"}:
        return entrant
    return "variant" if BY_NAME[entrant].environment == OURS else "peer"


def captions(book: Book) -> list[tuple[str, str]]:
    """File name and caption of every picture that the book fills, in the order of the page."""
    shown = spec(book)
    named = [(chart["name"], chart["caption"]) for chart in shown["charts"]]
    return [*named, BUDGET] if shown["budget"] else named
