"""How the command line says things: moments, counts, and what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

from streaq.types import StreaqError
from streaq.utils import DAY_MS, say_ms
from streaq.wire import visible

if TYPE_CHECKING:
    from rich.console import Console

GOOD, BAD, WARN, DIM = "green", "red", "yellow", "dim"
"""The same colours for the same things in every command."""

UNBOUNDED = 240

STATE_STYLES = {
    "success": GOOD,
    "done": GOOD,
    "failed": BAD,
    "aborted": BAD,
    "lost": BAD,
    "running": "cyan",
    "retried": WARN,
    "returned": WARN,
    "queued": "blue",
    "scheduled": "magenta",
    "blocked": "magenta",
}


def screen() -> Console:
    """Where answers go. A pipe or a file gets lines as long as they are."""
    from rich.console import Console  # worker processes complain too, and have no use for it

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBOUNDED
    return console


def complain(problem: str) -> None:
    """One line on stderr about what is wrong."""
    red, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    sys.stderr.write(f"{red}error:{plain} {visible(' '.join(problem.split()))}\n")


def streaq_error(error: BaseException) -> StreaqError | None:
    """The StreaqError that this is, or all that there is in this group; None if it is neither."""
    if isinstance(error, StreaqError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    inner = cast("Sequence[BaseException]", error.exceptions)
    return streaq_error(inner[0]) if len(inner) == 1 else None


def moment(ms: int, now_ms: int) -> str:
    """A moment by the clock on the wall here; with its date unless it is near."""
    at = datetime.fromtimestamp(ms / 1000).astimezone()
    far = abs(ms - now_ms) > DAY_MS // 2
    return f"{at:%Y-%m-%d %H:%M:%S}" if far else f"{at:%H:%M:%S}"


def relative(ms: int, now_ms: int) -> str:
    """A moment as seen from now: ``in 3 s``, ``2 min ago``."""
    if ms > now_ms:
        return f"in {say_ms(ms - now_ms)}"
    return f"{say_ms(now_ms - ms)} ago"


def plural(n: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
