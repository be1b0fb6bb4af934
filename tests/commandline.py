"""What the command `streaq` has against arguments, without running it: for commands that stand in
docs, containers and Kubernetes files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from streaq.cli.app import app


def problem_with(arguments: Sequence[str]) -> str | None:
    """What it would complain of; None when it would run."""
    # Typer has a copy of Click in itself, or did not have it yet: only what both can do is used.
    command: Any = typer.main.get_command(app)
    name, rest, context = "streaq", list(arguments), None
    try:
        while hasattr(command, "resolve_command"):
            context = command.make_context(name, rest, parent=context)
            rest = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, rest)
        command.make_context(name, rest, parent=context)
    except typer.Exit:
        return None  # --help
    except Exception as e:
        if hasattr(e, "format_message"):
            return str(e.format_message()) or None  # a group alone shows its help
        raise
    return None
