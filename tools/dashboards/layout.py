"""Puts panels into Grafana's grid of 24 columns, and the whole into a dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streaq.telemetry.names import (
    BUILD_INFO,
    PRIORITY,
    QUEUE,
    QUEUE_DEPTH,
    TASK,
    TASKS_ENQUEUED,
    TASKS_STARTED,
)
from tools.dashboards.links import TAG, TRACES, UIDS, dashboard_links
from tools.dashboards.panels import DATASOURCE, Panel
from tools.dashboards.theme import Json

COLUMNS = 24
SCHEMA_VERSION = 41


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the dashboard with its panels; the first has no heading."""

    title: str
    panels: Sequence[Panel]


def dashboard(
    name: str, title: str, description: str, sections: Sequence[Section], *, ids: int
) -> Json:
    """The dashboard ``name``. ``ids`` is where the ids of its panels start."""
    return {
        "uid": UIDS[name],
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "refresh": "10s",
        "links": dashboard_links(),
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "panels": _placed(sections, ids),
    }


def _placed(sections: Sequence[Section], first_id: int) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for section in sections:
        if section.title:
            placed.append(_row(section.title, y))
            y += 1
        x = line = 0
        for panel in section.panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            body = dict(panel.json)
            body["gridPos"] = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            placed.append(body)
            x, line = x + panel.width, max(line, panel.height)
        y += line
    for offset, body in enumerate(placed):
        body["id"] = first_id + offset
    return placed


def _row(title: str, y: int) -> Json:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": [],
    }


def _variables() -> list[Json]:
    target = 'job=~"$job", instance=~"$instance"'
    tasks = f'{{__name__=~"{TASKS_ENQUEUED.name}|{TASKS_STARTED.name}"'
    depth = QUEUE_DEPTH.name
    return [
        _source("datasource", "Data source", "prometheus"),
        _source(TRACES, "Traces", "tempo", hide=2),
        _values("job", "Job", f"{BUILD_INFO.name}"),
        _values("instance", "Instance", f'{BUILD_INFO.name}{{job=~"$job"}}'),
        _values(QUEUE, "Queue", f"{depth}{{{target}}}"),
        _values(PRIORITY, "Priority", f'{depth}{{{target}, {QUEUE}=~"${QUEUE}"}}'),
        _values(TASK, "Task", f'{tasks}, {target}, {QUEUE}=~"${QUEUE}"}}'),
    ]


def _source(name: str, label: str, query: str, *, hide: int = 0) -> Json:
    chosen = "default" if name == "datasource" else ""
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "query": query,
        "regex": "",
        "hide": hide,
        "refresh": 1,
        "includeAll": False,
        "multi": False,
        "options": [],
        "current": {"text": chosen, "value": chosen},
    }


def _values(name: str, label: str, series: str) -> Json:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {
            "query": f"label_values({series}, {name})",
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        },
        "regex": "",
        "hide": 0,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        # A label may be empty, as the priority of what has none; a target always has a name.
        "allValue": ".+" if name in {"job", "instance"} else ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _alerts() -> Json:
    """Firing streaQ alerts, drawn over every graph."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "target": {
            "refId": "Anno",
            "expr": 'ALERTS{alertname=~"Streaq.+", alertstate="firing"}',
            "interval": "15s",
        },
        "titleFormat": "{{alertname}}",
        "textFormat": "{{queue}} {{priority}} {{task}}",
    }
