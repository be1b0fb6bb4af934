"""Who takes part: each entrant is one way to run one queue, in a virtual environment of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OURS = "ours"
UPSTREAM = "streaq"


@dataclass(frozen=True)
class Environment:
    """A virtual environment and what is installed in it; `.` stands for this repository."""

    name: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Entrant:
    """One contestant.

    `rate` is a first guess of its no-op drain in tasks a second, only to size the first run. `only`
    limits a variant to the workloads where it tells something; None means all of them.
    """

    name: str
    label: str
    environment: str
    script: str
    rate: float
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    only: frozenset[str] | None = None
    traced: bool = False

    @property
    def family(self) -> str:
        return self.environment

    def plays(self, workload: str) -> bool:
        return self.only is None or workload in self.only


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(OURS, ("-e", ".[fast,trio,embedded,otlp]", "hiredis")),
        Environment(UPSTREAM, ("streaq==7.2.0", "uvloop", "trio", "hiredis")),
        Environment("taskiq", ("taskiq", "taskiq-redis", "taskiq-pipelines", "uvloop", "hiredis")),
        # saq[redis] imports typing_extensions without requiring it.
        Environment("saq", ("saq[redis,hiredis]", "typing-extensions", "uvloop")),
        Environment("arq", ("arq", "uvloop", "hiredis")),
        Environment("celery", ("celery[redis]", "hiredis")),
        Environment("dramatiq", ("dramatiq[redis]", "hiredis")),
        Environment("rq", ("rq", "hiredis")),
        Environment("docket", ("pydocket", "uvloop", "hiredis")),
        Environment("huey", ("huey", "redis", "hiredis")),
        Environment("report", ("matplotlib",)),
    )
}

_DRAIN = frozenset({"drain", "drain2"})
_LOOP = frozenset({"drain", "echo1k", "echo100k", "nap", "batch", "concurrent", "latency"})
_TELEMETRY = frozenset({"drain", "batch", "concurrent", "latency"})

ENTRANTS: tuple[Entrant, ...] = (
    Entrant(OURS, "ours", OURS, "adapters/ours.py", 26_000),
    Entrant("floor", "bare loop (floor)", OURS, "floor.py", 60_000, only=_LOOP),
    Entrant(UPSTREAM, "streaq 7.2.0", UPSTREAM, "adapters/streaq_peer.py", 1_600),
    Entrant(
        "ours-default",
        "ours, telemetry as it comes",
        OURS,
        "adapters/ours.py",
        10_000,
        {"telemetry": "default"},
        _TELEMETRY,
    ),
    Entrant(
        "ours-full",
        "ours, everything on",
        OURS,
        "adapters/ours.py",
        6_000,
        {"telemetry": "full"},
        _TELEMETRY,
        traced=True,
    ),
    Entrant(
        "ours-trio", "ours on Trio", OURS, "adapters/ours.py", 14_000, {"backend": "trio"}, _DRAIN
    ),
    Entrant(
        "streaq-trio",
        "streaq 7.2.0 on Trio",
        UPSTREAM,
        "adapters/streaq_peer.py",
        1_500,
        {"backend": "trio"},
        _DRAIN,
    ),
    Entrant("taskiq", "taskiq", "taskiq", "adapters/taskiq_peer.py", 2_600),
    Entrant(
        "taskiq-list",
        "taskiq (list broker, no ack)",
        "taskiq",
        "adapters/taskiq_peer.py",
        2_600,
        {"broker": "list"},
        _DRAIN,
    ),
    Entrant("saq", "saq", "saq", "adapters/saq_peer.py", 3_500),
    Entrant("arq", "arq", "arq", "adapters/arq_peer.py", 2_500),
    Entrant("celery", "celery (threads)", "celery", "adapters/celery_peer.py", 900),
    Entrant(
        "celery-prefork",
        "celery (prefork 2)",
        "celery",
        "adapters/celery_peer.py",
        1_500,
        {"pool": "prefork"},
        frozenset({"drain", "spin", "abort"}),
    ),
    Entrant("dramatiq", "dramatiq", "dramatiq", "adapters/dramatiq_peer.py", 2_200),
    Entrant("rq", "rq (SimpleWorker)", "rq", "adapters/rq_peer.py", 370),
    Entrant("docket", "docket", "docket", "adapters/docket_peer.py", 330),
    Entrant("huey", "huey", "huey", "adapters/huey_peer.py", 2_500),
)

BY_NAME = {entrant.name: entrant for entrant in ENTRANTS}


def chosen(only: Sequence[str]) -> list[Entrant]:
    """Ours first, then those named; a family name (an environment) takes in its variants.

    Variants of ours and the floor take part when nobody is named, or when `ours` is.

    Raises ValueError for a name that nobody has.
    """
    known = set(BY_NAME) | {entrant.family for entrant in ENTRANTS}
    unknown = sorted(set(only) - known)
    if unknown:
        raise ValueError(f"unknown peer {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if not only:
        return list(ENTRANTS)
    return [e for e in ENTRANTS if e.name in {OURS, *only} or e.family in only]
