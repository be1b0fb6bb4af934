"""Links: between the dashboards, and from a panel to the traces behind it."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

from tools.dashboards.theme import Json

TAG = "streaq"
UIDS = {
    "latency": "streaq-latency",
    "tasks": "streaq-tasks",
    "workers": "streaq-workers",
    "cron": "streaq-cron",
}
TRACES = "traces"
"""The variable that names the trace store."""

_TOKEN = re.compile(r"(\$\{[^}]+\})")


def dashboard_links() -> list[Json]:
    """The bar at the top: every streaq dashboard with the same filters, and the traces."""
    return [
        _link("streaQ", type="dashboards", tags=[TAG], includeVars=True, keepTime=True),
        _link(
            "Traces",
            type="link",
            url=explore('{ span.messaging.system = "streaq" }'),
            icon="gf-traces",
            tooltip="Search the traces of all tasks",
            targetBlank=True,
        ),
    ]


def traces_of(**labels: str) -> Json:
    """A data link from a series or table row to its traces.

    ``labels`` names the label that picks the traces and where its value comes from, for example
    ``queue="${__field.labels.queue}"``.
    """
    attributes = {"queue": "span.messaging.destination.name", "task": "span.streaq.task.name"}
    wanted = " && ".join(f'{attributes[label]} = "{value}"' for label, value in labels.items())
    return {
        "title": f"Traces of this {next(reversed(labels))}",
        "url": explore(f'{{ span.messaging.system = "streaq" && {wanted} }}'),
        "targetBlank": True,
    }


def to_dashboard(name: str, **labels: str) -> Json:
    """A data link to another dashboard, with the variables set from ``labels``."""
    chosen = "".join(f"&var-{label}={value}" for label, value in labels.items())
    keep = "".join(f"&${{{variable}:queryparam}}" for variable in ("datasource", "job"))
    return {
        "title": f"Open on the {name} dashboard",
        "url": f"/d/{UIDS[name]}?${{__url_time_range}}{keep}{chosen}",
    }


def explore(traceql: str) -> str:
    """The address of Grafana's trace search for ``traceql``; ``${...}`` stays for Grafana."""
    pane = {
        "streaq": {
            "datasource": f"${{{TRACES}}}",
            "queries": [
                {
                    "refId": "A",
                    "datasource": {"type": "tempo", "uid": f"${{{TRACES}}}"},
                    "queryType": "traceql",
                    "query": traceql,
                    "limit": 20,
                    "tableType": "traces",
                }
            ],
            "range": {"from": "${__from}", "to": "${__to}"},
        }
    }
    text = json.dumps(pane, separators=(",", ":"))
    parts = _TOKEN.split(text)
    encoded = "".join(part if _TOKEN.fullmatch(part) else quote(part, safe="") for part in parts)
    return f"/explore?schemaVersion=1&orgId=1&panes={encoded}"


def _link(title: str, **fields: object) -> Json:
    return {
        "title": title,
        "type": "link",
        "icon": "dashboard",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "includeVars": False,
        "keepTime": False,
        "targetBlank": False,
        **fields,
    }
