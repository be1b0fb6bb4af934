"""The cap on names for a whole page: a process caps what it counts in its own life, and a page adds
up many of them, beside and after one another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from streaq.telemetry.cells import Block
from streaq.telemetry.metrics import MAX_EXCEPTION_NAMES, MAX_TASK_NAMES, Capped
from streaq.telemetry.names import METRICS

_DEFAULTS = {"task": MAX_TASK_NAMES, "exception": MAX_EXCEPTION_NAMES}


_PLACES = {
    metric.name: [(i, what) for i, what in enumerate(metric.labels) if what in _DEFAULTS]
    for metric in METRICS
    if metric.scope == "process"
}
"""Where the names to cap are. Those that Redis tells are of the code's timetables: never many."""


class Fold:
    """Blocks with as many task and exception names for each queue as a page may have.

    The first names to come stay, and no other is ever shown: whichever processes end or begin, no
    series goes backwards.

    Example::

        fold = Fold()
        fold.allow(max_task_names=200, max_exception_names=100)
        sums.add(fold(store.blocks()))
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._most: dict[str, int] = {}
        self._capped: dict[tuple[str, str], Capped] = {}

    def allow(self, *, max_task_names: int, max_exception_names: int) -> None:
        """A worker has these caps; of several workers the highest are the page's."""
        asked = {"task": max_task_names, "exception": max_exception_names}
        with self._lock:
            self._most = {what: max(self._most.get(what, 0), most) for what, most in asked.items()}
            for (_, what), capped in self._capped.items():
                capped.allow(self._most[what])

    def __call__(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """The same numbers, with ``__other__`` for names that are too many."""
        for block in blocks:
            labels = block.labels
            for place, what in _PLACES.get(block.metric.name, ()):
                shown = self._shown(labels[0], what, labels[place])
                if shown != labels[place]:
                    labels = (*labels[:place], shown, *labels[place + 1 :])
            yield block if labels is block.labels else block._replace(labels=labels)

    def _shown(self, queue: str, what: str, name: str) -> str:
        with self._lock:
            capped = self._capped.get((queue, what))
            if capped is None:
                most = self._most.get(what, _DEFAULTS[what])
                capped = self._capped[queue, what] = Capped(most, what)
            return capped(name)
