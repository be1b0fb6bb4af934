"""Lanes: what the attempts of one task at one priority have in common, found out once."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

from streaq import hooks

if TYPE_CHECKING:
    from streaq.broker.exchange import Claimed
    from streaq.engine.catalog import Function
    from streaq.engine.settings import Settings


class Lane:
    """One function at one priority.

    :param name: what hooks know it by.
    :param context: what the context of each attempt is a copy of; None for the engine's own.
    """

    __slots__ = ("context", "function", "name")

    def __init__(self, function: Function, name: hooks.Lane, context: Context | None) -> None:
        self.function = function
        self.name = name
        self.context = context


class Lanes:
    """Every lane of one worker.

    :param functions: what it can run, by name.
    """

    def __init__(
        self, functions: Mapping[str, Function], dispatcher: hooks.Dispatcher, settings: Settings
    ) -> None:
        self._functions = functions
        self._hooks = dispatcher
        self._settings = settings
        self._known: dict[tuple[str, str], Lane] = {}

    def of(self, claimed: Claimed) -> Lane:
        """Where this task runs. Call it in a task of the engine's, for the first context."""
        return self._known.get((claimed.fn, claimed.priority)) or self._open(claimed)

    def _open(self, claimed: Claimed) -> Lane:
        settings, slot = self._settings, self._hooks.on_lane
        name = hooks.Lane(settings.queue, claimed.fn, claimed.priority, settings.worker_id)
        context = None
        if slot:
            context = copy_context()
            context.run(self._hooks.emit, slot, name)
        lane = Lane(self._functions[claimed.fn], name, context)
        self._known[claimed.fn, claimed.priority] = lane
        return lane
