"""The command line: ``streaq run``, ``status``, ``task``, ``explain``, ``demo`` and friends.

``streaq --help`` lists them. Everything a person can put right (a wrong path, Redis out of reach,
a missing extra) is told in one line on stderr, with a non-zero exit and no traceback.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its status."""
    from streaq.cli.app import app
    from streaq.cli.words import complain, streaq_error

    try:
        app(prog_name="streaq")
    except Exception as e:
        problem = streaq_error(e)
        if problem is None:
            raise
        complain(str(problem))
        sys.exit(1)


__all__ = ["main"]
