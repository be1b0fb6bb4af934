"""``streaq run``: worker processes, and the parent that looks after them."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from streaq.cli.load import load_worker
from streaq.cli.options import (
    LogFormat,
    LogFormatOption,
    LogLevel,
    LogLevelOption,
    MetricsHost,
    WorkerPath,
)
from streaq.cli.order import Order
from streaq.cli.parent import Parent, is_supported
from streaq.types import StreaqError
from streaq.worker import Worker

logger = logging.getLogger("streaq.run")


def run(
    path: WorkerPath,
    *,
    workers: Annotated[
        int, typer.Option("--workers", "-n", min=1, help="Worker processes to run.")
    ] = 1,
    burst: Annotated[
        bool, typer.Option("--burst", "-b", help="Stop when the queue is empty.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", "-r", help="Start afresh when a Python file changes.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="The same as --log-level debug.")
    ] = False,
    otlp: Annotated[
        bool,
        typer.Option("--otlp", help="Send traces, as the OTEL_* variables say where."),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            show_default="not served",
            help="Serve /metrics, /livez and /readyz here, for all workers at once.",
        ),
    ] = None,
    metrics_host: MetricsHost = "127.0.0.1",
    log_format: LogFormatOption = LogFormat.AUTO,
    log_level: LogLevelOption = None,
) -> None:
    """Run workers until a signal.

    The first SIGINT or SIGTERM lets running tasks finish within the worker's grace_period, the
    second hands them back at once, the third kills. A worker that dies is started again.
    """
    if not is_supported():
        raise StreaqError("streaq run needs a POSIX system; call worker.run_sync() instead.")
    level = LogLevel.DEBUG if verbose else log_level
    order = Order(path, burst, otlp, log_format.value, level.value if level else None)
    serve_at = None if metrics_port is None else (metrics_host, metrics_port)
    status = _supervise(order, workers, reload=reload, serve_at=serve_at)
    if status is None:
        _begin_anew()
    sys.exit(status)


def _supervise(
    order: Order, workers: int, *, reload: bool, serve_at: tuple[str, int] | None
) -> int | None:
    """Have a parent run the workers, with everything around it that was asked for.

    :returns: the exit status; None when all is to begin anew.
    """
    if reload:
        _check_watchfiles()
    worker = _load_if_possible(order.path) if reload else load_worker(order.path)
    _set_up_logging(order)
    if worker is not None:
        keep_embedded(worker)
    with ExitStack() as stack:
        fleet = None
        if serve_at is not None:
            from streaq.telemetry.fleet import Fleet

            fleet = Fleet(worker, expected=0 if order.burst else workers)
            server = fleet.serve(host=serve_at[0], port=serve_at[1])
            stack.callback(server.close)
            logger.info("serving %s/metrics", server.url)
        parent = Parent(order, workers, fleet=fleet, reload=reload, renew=worker is None)
        if reload:
            stack.enter_context(_watching(parent))
        status = parent.run()
    return None if parent.is_outdated else status


def _begin_anew() -> NoReturn:
    """Be the same process with nothing imported, to get to know the worker and its queue.

    What a failed import leaves behind, in ``sys.modules`` or a metrics registry, spoils the next.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell, indeed


def _set_up_logging(order: Order) -> None:
    """As ordered; and say what became of a level that met the application's own handlers."""
    from streaq.telemetry import configure_logging

    own = list(logging.getLogger().handlers) if order.log_format == LogFormat.AUTO else []
    configure_logging(order.log_format, order.log_level)  # pyright: ignore[reportArgumentType]
    if not own or order.log_level is None:
        return
    logger.info("the application's log handlers are kept; the level is %s", order.log_level)
    deaf = min(handler.level for handler in own)
    if deaf > logging.getLogger().level:
        logger.warning(
            "the application's log handlers write nothing below %s; --log-format console or json "
            "replaces them",
            logging.getLevelName(deaf).lower(),
        )


def keep_embedded(worker: Worker[Any]) -> None:
    """Start an ``embedded://`` server here, so that all children share it and it outlives each."""
    if worker.connector.safe_url.startswith("embedded://"):
        worker.connector.open_sync().close()


def _load_if_possible(path: str) -> Worker[Any] | None:
    """With --reload a module with a mistake in it is waited for, not given up."""
    try:
        return load_worker(path)
    except StreaqError as e:
        if not isinstance(e.__cause__, Exception):
            raise
        return None


def _check_watchfiles() -> None:
    try:
        import watchfiles  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise StreaqError(
            "--reload needs the extra of that name: pip install 'streaq[reload]'"
        ) from None


@contextmanager
def _watching(parent: Parent) -> Generator[None]:
    """Tell the parent of every change to Python files below the current directory."""
    from watchfiles import PythonFilter, watch

    stop = threading.Event()

    def follow() -> None:
        for _ in watch(Path.cwd(), watch_filter=PythonFilter(), stop_event=stop):
            parent.changed()

    thread = threading.Thread(target=follow, name="streaq-reload", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
