"""Traces, metrics and logs of tasks, as hooks of the queue.

Nothing here is imported by ``import streaq``: a worker loads it when it is told to emit.
"""

from __future__ import annotations
