"""``streaq exporter`` and ``streaq dashboards``: what monitoring needs beside the workers."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streaq.cli.load import load_worker
from streaq.cli.options import MetricsHost, WorkerPath
from streaq.cli.words import complain, plural, screen
from streaq.types import StreaqError
from streaq.wire import one_line

if TYPE_CHECKING:
    from streaq.worker import Worker


def exporter(
    path: WorkerPath,
    *,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free port and tells which.")
    ] = 9101,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Serve the metrics of a queue alone, without working on it.

    For depths and ages when no worker lives, or for one place to scrape them from.
    """
    from streaq.telemetry.serve import serve_queue_only

    worker = load_worker(path)
    with _held_back({signal.SIGINT, signal.SIGTERM}) as stop:
        _look_first(worker)
        server = serve_queue_only(worker, host=metrics_host, port=metrics_port)
        try:
            screen().print(f"serving {server.url}/metrics", markup=False)
            signal.sigwait(stop)
        finally:
            server.close()


def _look_first(worker: Worker[Any]) -> None:
    """Say at once when there is nothing to show yet; a server that is away is waited for.

    :raises StreaqError: for what waiting does not mend, such as a missing extra.
    """
    from streaq.telemetry.serve import SnapshotCall

    try:
        SnapshotCall(worker.connector, worker.queue_name)()
    except StreaqError:
        raise
    except Exception as e:  # noqa: BLE001 - whatever redis-py raises
        where = worker.connector.safe_url
        complain(f"{where}: no metrics until the queue can be read; now it cannot: {one_line(e)}")


@contextmanager
def _held_back(numbers: set[signal.Signals]) -> Generator[set[signal.Signals]]:
    """Signals that are waited for instead of acted on, also by the threads that start meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield numbers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="Where to; made if need be.")
    ],
) -> None:
    """Write the Grafana dashboards into a directory."""
    from streaq import dashboards

    paths = dashboards.export(directory)
    out = screen()
    for path in paths:
        out.print(str(path), markup=False, soft_wrap=True)
    out.print(f"[dim]{plural(len(paths), 'dashboard')}[/]")
