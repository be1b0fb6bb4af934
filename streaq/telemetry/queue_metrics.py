"""The metrics of a whole queue, read from Redis by one script call per scrape at most.

What the broker must answer with is written down as protocols; this module never speaks to Redis
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Protocol


CACHE_S = 1.0
"""Seconds for which a snapshot is used again."""


