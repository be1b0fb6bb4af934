"""Makes the panels: each function gives one kind of panel in Grafana's Classic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tools.dashboards.theme import MISSING, SERIES, Json, neutral, only_bad

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
BAR_WIDTH = "1m"
"""Least time that one bar of a bar graph stands for, so that bars do not count an event twice."""


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL query of a panel. ``legend`` may use ``{{label}}``."""

    expr: str
    legend: str = "__auto"
    exemplar: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the query that fills it, and how it looks."""

    title: str
    expr: str
    unit: str
    thresholds: Json | None = None
    decimals: int | None = None
    width: int | None = None


@dataclass(slots=True)
class Panel:
    """A panel and the size it wants; the layout gives it its place and its id."""

    json: Json
    width: int
    height: int
    links: list[Json] = field(default_factory=list[Json])


def stat(
    title: str,
    description: str,
    query: Query,
    unit: str,
    thresholds: Json,
    *,
    width: int = 4,
    no_value: str = "No data",
    no_color: str = MISSING,
    spark: bool = True,
    decimals: int | None = None,
) -> Panel:
    """One number in the colour of its threshold, over its recent course.

    ``no_value`` and ``no_color`` are for when there is none *now*: the last that there was would
    say that all is well long after everything has stopped.
    """
    options = {
        "colorMode": "background",
        "graphMode": "area" if spark else "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": "value",
        "wideLayout": True,
    }
    defaults = _defaults(unit, thresholds, "thresholds", decimals, [])
    defaults["noValue"] = no_value
    missing = {"text": no_value, "color": no_color, "index": 0}
    defaults["mappings"] = [
        {"type": "special", "options": {"match": "null+nan", "result": missing}}
    ]
    now = replace(query, expr=f"{query.expr} or vector(NaN)")
    body = _panel("stat", title, description, [now], defaults, options)
    return Panel(body, width, 4)


def graph(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    width: int = 12,
    height: int = 8,
    thresholds: Json | None = None,
    stacked: bool = False,
    bars: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    soft_maximum: float | None = None,
    decimals: int | None = None,
    colors: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    links: Sequence[Json] = (),
    legend_values: Sequence[str] = (),
    no_value: str = "No data",
) -> Panel:
    """Lines over time. With ``thresholds`` the limits are drawn into the graph."""
    custom = _line_style(stacked=stacked, bars=bars, limits=thresholds is not None)
    defaults = _defaults(unit, thresholds or neutral(), "palette-classic", decimals, list(links))
    defaults |= {"custom": custom, "noValue": no_value}
    if bars and soft_maximum is None:
        soft_maximum = 5
    if soft_maximum is not None:
        custom["axisSoftMax"] = soft_maximum
    if minimum is not None:
        defaults["min"] = minimum
    if maximum is not None:
        defaults["max"] = maximum
    options = {
        "legend": {
            "calcs": list(legend_values),
            "displayMode": "table" if legend_values else "list",
            "placement": "right" if legend_values else "bottom",
            "showLegend": True,
        },
        "tooltip": {"hideZeros": False, "mode": "multi", "sort": "desc"},
    }
    body = _panel("timeseries", title, description, queries, defaults, options)
    if bars:
        body["interval"] = BAR_WIDTH
    body["fieldConfig"]["overrides"] = [
        *(_paint(name, color) for name, color in _known(queries, colors or {}).items()),
        *(_dash(name) for name in dashed),
    ]
    return Panel(body, width, height)


def heatmap(
    title: str, description: str, query: Query, *, width: int = 12, height: int = 8
) -> Panel:
    """A histogram over time: the darker a cell, the more observations."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "ops"},
        "color": {
            "exponent": 0.5,
            "fill": "dark-orange",
            "mode": "scheme",
            "reverse": False,
            "scale": "exponential",
            "scheme": "Blues",
            "steps": 64,
        },
        "exemplars": {"color": "rgba(255,120,10,0.8)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
    }
    defaults: Json = {
        "unit": "s",
        "custom": {
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "scaleDistribution": {"type": "linear"},
        },
    }
    body = _panel("heatmap", title, description, [query], defaults, options)
    body["targets"][0]["format"] = "heatmap"
    return Panel(body, width, height)


def bars(
    title: str,
    description: str,
    query: Query,
    unit: str,
    thresholds: Json,
    *,
    width: int = 8,
    height: int = 8,
    links: Sequence[Json] = (),
    no_value: str = "None",
) -> Panel:
    """One horizontal bar per series, for "which are the worst"."""
    options: Json = {
        "displayMode": "basic",
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
        "maxVizHeight": 36,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "sizing": "manual",
        "valueMode": "color",
    }
    defaults = _defaults(unit, thresholds, "thresholds", None, list(links))
    defaults |= {"min": 0, "noValue": no_value}
    body = _panel("bargauge", title, description, [query], defaults, options)
    for target in body["targets"]:
        target |= {"instant": True, "range": False}
    return Panel(body, width, height)


def table(
    title: str,
    description: str,
    labels: Sequence[str],
    columns: Sequence[Column],
    *,
    sort: str,
    width: int = 24,
    height: int = 9,
    links: Mapping[str, Sequence[Json]] | None = None,
    descending: bool = True,
) -> Panel:
    """A table that sorts: one row per set of ``labels``, one column per query."""
    queries = [Query(column.expr) for column in columns]
    defaults = _defaults("short", neutral(), "thresholds", None, [])
    defaults["custom"] = {
        "align": "auto",
        "cellOptions": {"type": "auto"},
        "filterable": False,
        "inspect": False,
        "minWidth": 80,
    }
    options = {
        "cellHeight": "sm",
        "frameIndex": 0,
        "showHeader": True,
        "sortBy": [{"desc": descending, "displayName": sort}],
    }
    body = _panel("table", title, description, queries, defaults, options)
    for target in body["targets"]:
        target |= {"format": "table", "instant": True, "range": False}
    body["transformations"] = _as_table(labels, columns)
    body["fieldConfig"]["overrides"] = [
        *(_column(column) for column in columns),
        *(_linked(label, found) for label, found in (links or {}).items()),
    ]
    return Panel(body, width, height)


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Query],
    defaults: Json,
    options: Json,
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [_target(index, query) for index, query in enumerate(queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _target(index: int, query: Query) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "exemplar": query.exemplar,
        "expr": query.expr,
        "format": "time_series",
        "instant": False,
        "legendFormat": query.legend,
        "range": True,
    }


def _defaults(
    unit: str, thresholds: Json, color: str, decimals: int | None, links: list[Json]
) -> Json:
    defaults: Json = {
        "unit": unit,
        "color": {"mode": color},
        "thresholds": thresholds,
        "links": links,
        "mappings": [],
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return defaults


def _line_style(*, stacked: bool, bars: bool, limits: bool) -> Json:
    return {
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "axisColorMode": "text",
        "axisLabel": "",
        "axisPlacement": "auto",
        "barAlignment": 0,
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 70 if bars else 25 if stacked else 8,
        "gradientMode": "none",
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "insertNulls": False,
        "lineInterpolation": "linear",
        "lineWidth": 1 if stacked else 2,
        "pointSize": 4,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if limits else "off"},
    }


def _known(queries: Sequence[Query], colors: Mapping[str, str]) -> dict[str, str]:
    """The colours of the series whose legend is one of the words with a fixed meaning."""
    named = {query.legend: SERIES[query.legend] for query in queries if query.legend in SERIES}
    return {**named, **colors}


def _override(name: str, **properties: object) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _paint(name: str, color: str) -> Json:
    return _override(name, color={"mode": "fixed", "fixedColor": color})


def _dash(name: str) -> Json:
    style = {"fill": "dash", "dash": [8, 8]}
    return _override(name, **{"custom.lineStyle": style, "custom.fillOpacity": 0})


def _column(column: Column) -> Json:
    properties: Json = {"unit": column.unit}
    if column.decimals is not None:
        properties["decimals"] = column.decimals
    if column.width is not None:
        properties["custom.width"] = column.width
    if column.thresholds is not None:
        properties["thresholds"] = only_bad(column.thresholds)
        properties["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    return _override(column.title, **properties)


def _linked(label: str, links: Sequence[Json]) -> Json:
    return _override(label.capitalize(), links=list(links))


def _as_table(labels: Sequence[str], columns: Sequence[Column]) -> list[Json]:
    values = {f"Value #{chr(ord('A') + i)}": column.title for i, column in enumerate(columns)}
    heads = {label: label.capitalize() for label in labels}
    order = {name: i for i, name in enumerate((*labels, *values))}
    organize = {
        "excludeByName": {"Time": True},
        "indexByName": order,
        "renameByName": {**heads, **values},
    }
    return [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
