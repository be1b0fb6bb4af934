"""Traces, metrics and logs of tasks, as hooks of the queue.

``Worker(telemetry=True)``, the default, loads this when the worker is entered; ``import streaq``
alone does not. Settings are in ``Telemetry``; ``streaq.telemetry.names`` lists everything that is
emitted. The names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streaq.telemetry.environment import load_sdk

if TYPE_CHECKING:
    from streaq.telemetry.asgi import metrics_app
    from streaq.telemetry.config import Telemetry, hooks_for
    from streaq.telemetry.context import TaskContextFilter
    from streaq.telemetry.late import install
    from streaq.telemetry.logging_setup import configure_logging

__all__ = [
    "TaskContextFilter",
    "Telemetry",
    "configure_logging",
    "hooks_for",
    "install",
    "metrics_app",
]

load_sdk()

_HOME = {
    "TaskContextFilter": "context",
    "Telemetry": "config",
    "configure_logging": "logging_setup",
    "hooks_for": "config",
    "install": "late",
    "metrics_app": "asgi",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
