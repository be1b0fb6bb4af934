"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import typer


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class State(StrEnum):
    """Tasks to list."""

    QUEUED = "queued"
    RUNNING = "running"
    SCHEDULED = "scheduled"
    DONE = "done"


def _address(given: str) -> str:
    """An empty one, as of a variable that is not set, would be every address of the machine."""
    if not given.strip():
        raise typer.BadParameter("it is empty; give an address, as 127.0.0.1, or 0.0.0.0 for all.")
    return given


WorkerPath: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:WORKER",
        envvar="STREAQ_WORKER",
        show_default=False,
        help="Where the worker is, as module.submodule:variable.",
    ),
]
TaskId: TypeAlias = Annotated[
    str, typer.Argument(metavar="ID", show_default=False, help="Id of the task.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
MetricsHost: TypeAlias = Annotated[
    str,
    typer.Option(
        callback=_address, help="Address that the metrics are served on; loopback unless told."
    ),
]
LogFormatOption: TypeAlias = Annotated[
    LogFormat, typer.Option(help="auto is console on a terminal, and JSON elsewhere.")
]
LogLevelOption: TypeAlias = Annotated[
    LogLevel | None,
    typer.Option(
        show_default="info, or what the application has set",
        help="The least that is logged.",
    ),
]
