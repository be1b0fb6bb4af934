"""The command line: ``streaq run``, ``status``, ``task``, ``explain``, ``demo`` and friends.

``streaq --help`` lists them. Everything a person can put right (a wrong path, Redis out of reach,
a missing extra) is told in one line on stderr, with a non-zero exit and no traceback.
"""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its status."""
    from streaq.cli.app import app
    from streaq.cli.words import complain, streaq_error

    status: Any = 0
    try:
        status = app(prog_name="streaq", standalone_mode=False)
    except Exception as e:
        problem, wrong_usage = streaq_error(e), getattr(e, "format_message", None)
        if problem is not None:
            complain(str(problem))
        elif wrong_usage is None:
            raise
        elif type(e).__name__ != "NoArgsIsHelpError":  # of which the help is shown by now
            complain(_advised(wrong_usage(), e))
        status = getattr(e, "exit_code", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _advised(problem: str, error: Any) -> str:
    """What typer says of wrong usage, and where to find the right one."""
    context = getattr(error, "ctx", None)
    command = "streaq" if context is None else context.command_path
    problem = problem.strip().rstrip(".")
    link = "" if problem.endswith("?") else ";"
    return f"{problem}{link} '{command} --help' tells what there is."


__all__ = ["main"]
