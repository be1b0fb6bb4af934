"""Asks a Prometheus what a dashboard asks, the way Grafana would: variables filled in, same steps.

Used by the pictures and by the tests of the stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tools.dashboards.theme import Json

ANY = ".*"
"""What "All" stands for."""
MAX_POINTS = 700
"""About the pixels of a panel, and so the points that Grafana asks for."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Window:
    """The time range that a dashboard shows, in Unix seconds, and how often targets are scraped."""

    start: float
    end: float
    scrape_s: float = 5.0

    @property
    def range_s(self) -> float:
        return self.end - self.start

    def step(self, least_s: float = 0.0) -> float:
        """Grafana's ``$__interval``: as fine as the panel can show, not finer than the scrapes."""
        return max(round(self.range_s / MAX_POINTS), self.scrape_s, least_s, 1.0)

    def aligned(self, step: float) -> tuple[float, float]:
        """The range, moved to multiples of ``step`` as Grafana does."""
        return self.start // step * step, self.end // step * step


def interpolate(
    expression: str,
    window: Window,
    least_s: float = 0.0,
    variables: Mapping[str, str] | None = None,
) -> str:
    """``expression`` with every variable filled in: "All" for what ``variables`` does not name."""
    step = window.step(least_s)
    built_in = {
        "__interval": f"{step:.0f}s",
        "__rate_interval": f"{max(step + window.scrape_s, 4 * window.scrape_s):.0f}s",
        "__range": f"{max(window.range_s, 1):.0f}s",
    }

    def fill(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return built_in.get(name) or (variables or {}).get(name, ANY)

    return _VARIABLE.sub(fill, expression)


def panels(dashboard: Json) -> Iterator[Json]:
    """Every panel that asks something."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def seconds(interval: str | None) -> float:
    """A Prometheus duration of one unit, such as ``1m``, in seconds; 0 for none."""
    if not interval:
        return 0.0
    return float(interval[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[interval[-1]]


class Prometheus:
    """The HTTP API of a Prometheus server at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: object) -> Any:
        """The ``data`` of an answer; raises ``urllib.error.HTTPError`` when the query is wrong."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def instant(self, expression: str, at: float) -> list[Json]:
        """Every series that ``expression`` gives at the time ``at``."""
        return self.get("query", query=expression, time=at)["result"]

    def over(self, expression: str, window: Window, least_s: float = 0.0) -> list[Json]:
        """Every series that ``expression`` gives over ``window``."""
        step = window.step(least_s)
        start, end = window.aligned(step)
        data = self.get("query_range", query=expression, start=start, end=end, step=step)
        return data["result"]

    def exemplars(self, expression: str, window: Window) -> list[Json]:
        """The exemplars of the series in ``expression``."""
        return self.get("query_exemplars", query=expression, start=window.start, end=window.end)

    def target(self, panel: Json, target: Json, window: Window) -> list[Json]:
        """What one query of one panel gives."""
        least_s = seconds(panel.get("interval"))
        expression = interpolate(target["expr"], window, least_s)
        if target["instant"]:
            return self.instant(expression, window.end)
        return self.over(expression, window, least_s)
