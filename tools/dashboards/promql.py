"""Builds PromQL from the metrics of `streaq/telemetry/names.py`.

Every selector carries the dashboard's variables for the labels its metric has. Metrics of scope
``queue`` are the same from every process that serves them, so they are joined with ``max`` (or
``min``), never added up; the helpers here know which.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType]

from streaq.telemetry.names import BUILD_INFO, PRIORITY, QUEUE, TASK, Metric

VARIABLES = (QUEUE, PRIORITY, TASK)
"""Labels with a dashboard variable of the same name."""
NOWHERE: Mapping[str, str] = {}
RATE = "$__rate_interval"
RANGE = "$__range"
TARGET = 'job=~"$job", instance=~"$instance"'

UP = "up"
PROCESS_CPU = "process_cpu_seconds_total"
PROCESS_MEMORY = "process_resident_memory_bytes"
OTHERS = (UP, PROCESS_CPU, PROCESS_MEMORY)
"""Metrics that are not streaq's own: Prometheus and its client library give them."""


def select(
    metric: Metric,
    part: str = "",
    *,
    free: tuple[str, ...] = (),
    where: Mapping[str, str] = NOWHERE,
) -> str:
    """A selector of ``metric``, filtered by the variables, but for the labels in ``free``.

    ``part`` is ``bucket``, ``sum`` or ``count`` for a histogram; ``where`` gives further labels
    the one value that they must have.
    """
    series = f"{metric.name}_{part}" if part else metric.name
    if series not in metric.series:
        raise ValueError(f"{series} is not a series of {metric.name}")
    labels = (*metric.labels, "le") if part == "bucket" else metric.labels
    unknown = set(where) - set(labels)
    if unknown:
        raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}")
    filters = [TARGET]
    filters += [
        f'{label}=~"${label}"' for label in VARIABLES if label in labels and label not in free
    ]
    for label, value in where.items():
        filters.append(f'{label}="{value}"')
    return f"{series}{{{', '.join(filters)}}}"


def rate(
    metric: Metric,
    by: tuple[str, ...],
    part: str = "",
    *,
    free: tuple[str, ...] = (),
    where: Mapping[str, str] = NOWHERE,
) -> str:
    """Events a second, summed by the labels ``by``."""
    return _summed(metric, f"rate({select(metric, part, free=free, where=where)}[{RATE}])", by)


def increase(
    metric: Metric,
    by: tuple[str, ...],
    part: str = "",
    *,
    free: tuple[str, ...] = (),
    where: Mapping[str, str] = NOWHERE,
) -> str:
    """Events over the time range that the dashboard shows, summed by the labels ``by``."""
    return _summed(metric, f"increase({select(metric, part, free=free, where=where)}[{RANGE}])", by)


def events(
    metric: Metric,
    by: tuple[str, ...],
    window: str = RATE,
    *,
    free: tuple[str, ...] = (),
    where: Mapping[str, str] = NOWHERE,
) -> str:
    """Number of rare events in ``window``, the very first one included.

    A counter with labels that nobody knows in advance is born with its first event, and
    ``increase`` never sees a birth. The second part counts the series that were not there one
    window ago although their target was scraped then; the third gives 0 when nothing happened.
    """
    if metric.scope == "queue":
        raise ValueError(f"{metric.name} is counted in Redis: use gained()")
    series = select(metric, free=free, where=where)
    born = f"{series} unless {series} offset {window}"
    scraped = f"and on (job, instance) ({UP}{{{TARGET}}} offset {window} == 1)"
    grown = f"increase({series}[{window}]) > 0"
    return join("sum", by, f"{grown} or ({born} {scraped}) or 0 * {series}")


def gained(metric: Metric, window: str) -> str:
    """How much a counter that lives in Redis has grown in ``window``, by all its labels.

    ``increase`` works series by series, and would miss what happened while no process was there
    to be scraped; such a counter is the same whoever serves it, so its values are compared.
    """
    series = select(metric)
    start = join("min", metric.labels, f"min_over_time({series}[{window}])")
    return f"clamp_min({join('max', metric.labels, series)} - {start}, 0)"


def quantile(
    q: float,
    metric: Metric,
    by: tuple[str, ...] = (),
    *,
    free: tuple[str, ...] = (),
    where: Mapping[str, str] = NOWHERE,
) -> str:
    """The quantile ``q`` of a histogram, by the labels ``by``."""
    buckets = rate(metric, ("le", *by), "bucket", free=free, where=where)
    return f"histogram_quantile({q}, {buckets})"


def ours(series: str, on: str = "job, instance") -> str:
    """``series`` of streaq's own targets: "All" jobs are all that Prometheus has, others too."""
    return f"{series} and on ({on}) last_over_time({select(BUILD_INFO)}[{RANGE}])"


def within(metric: Metric, bound_s: float) -> dict[str, str]:
    """The matcher of the bucket that ends at ``bound_s`` seconds."""
    if bound_s not in metric.buckets:
        raise ValueError(f"{bound_s} is not a bucket of {metric.name}")
    return {"le": floatToGoString(bound_s)}


def gauge(
    metric: Metric,
    by: tuple[str, ...],
    *,
    free: tuple[str, ...] = (),
    where: Mapping[str, str] = NOWHERE,
) -> str:
    """The gauge joined by the labels ``by``; what is read from Redis is joined once, then added."""
    series = select(metric, free=free, where=where)
    if metric.scope == "process":
        return join(metric.merge, by, series)
    whole = join(metric.merge, metric.labels, series)
    if set(by) == set(metric.labels):
        return whole
    return join("sum" if metric.merge == "max" else "min", by, whole)


def mean(metric: Metric, by: tuple[str, ...], *, free: tuple[str, ...] = ()) -> str:
    """A process's gauge joined by the labels ``by``, smoothed over one rate interval."""
    series = f"avg_over_time({select(metric, free=free)}[{RATE}])"
    return join(metric.merge, by, series)


def age(metric: Metric, by: tuple[str, ...], *, free: tuple[str, ...] = ()) -> str:
    """Seconds since the timestamp in ``metric`` when it was scraped, by the labels ``by``.

    Against the time of the scrape and not against ``time()``, which would add up to a whole scrape
    interval and make an idle queue look late.
    """
    series = select(metric, free=free)
    return f"clamp_min({_oldest(metric, by, f'timestamp({series}) - {series}')}, 0)"


def ahead(metric: Metric, by: tuple[str, ...]) -> str:
    """Seconds until the timestamp in ``metric``, negative when it has passed."""
    series = select(metric)
    return _oldest(metric, by, f"{series} - timestamp({series})")


def or_zero(expression: str, like: str) -> str:
    """``expression``, and 0 for the label sets that only ``like`` has."""
    return f"({expression} or 0 * {like})"


def ratio(part: str, whole: str) -> str:
    """``part`` over ``whole``, 0 where there is no part, and nothing where there is no whole."""
    return f"{or_zero(part, whole)} / ({whole} > 0)"


def join(operator: str, by: tuple[str, ...], expression: str) -> str:
    """``expression`` aggregated by the labels ``by``, or as a whole."""
    labels = f" by ({', '.join(by)}) " if by else ""
    return f"{operator}{labels}({expression})"


def _oldest(metric: Metric, by: tuple[str, ...], seconds: str) -> str:
    """The greatest age, or the latest time, of those that different processes saw."""
    if metric.scope == "queue" and set(by) != set(metric.labels):
        raise ValueError(f"{metric.name} is joined by all its labels first")
    return join("max", by, seconds)


def _summed(metric: Metric, expression: str, by: tuple[str, ...]) -> str:
    if metric.scope == "queue":
        expression = join("max", metric.labels, expression)
        return expression if set(by) == set(metric.labels) else join("sum", by, expression)
    return join("sum", by, expression)
