"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from streaq.cli import demo, observe, run, status, tasks
from streaq.cli.words import screen

app = typer.Typer(
    help="An async task queue over Redis Streams: run workers, and see what they do.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dashboards = typer.Typer(help="The Grafana dashboards that ship with streaq.")
task = typer.Typer(help="Look at one task, wait for it, or stop it.", no_args_is_help=True)

app.command()(run.run)
app.command()(demo.demo)
app.command()(status.status)
app.add_typer(task, name="task")
app.command()(tasks.explain)
app.command()(observe.exporter)
app.add_typer(dashboards, name="dashboards")

task.command("list")(tasks.list_tasks)
task.command()(tasks.show)
task.command()(tasks.result)
task.command()(tasks.abort)
dashboards.command()(observe.export)


@dashboards.callback()
def _group() -> None:
    """Keep ``export`` a command of its own, though it is the only one so far."""


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callbacks are called so
    if wanted:
        from streaq import __version__

        screen().print(f"streaq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An async task queue over Redis Streams: run workers, and see what they do."""
