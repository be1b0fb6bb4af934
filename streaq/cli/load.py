"""From ``module:worker`` on the command line to the Worker object, or one line saying why not."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from streaq.types import StreaqError
from streaq.wire import one_line
from streaq.worker import Worker

_NOT_THEIRS = (
    str(Path(__file__).parents[1]),
    "<",
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)
"""Where code lies that the user did not write."""


def load_worker(path: str) -> Worker[Any]:
    """Import the worker that a path names; the current directory is looked in first.

    :param path: ``module.submodule:variable``.

    :raises StreaqError: saying which part of the path is wrong, or on which line the module failed.

    Example::

        worker = load_worker("shop.tasks:worker")
    """
    module_name, colon, name = path.strip().partition(":")
    if not colon or not module_name or not name:
        raise StreaqError(_not_a_path(path))
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import(module_name)
    return _worker_in(module, name)


def _import(name: str) -> ModuleType:
    _check_there(name)
    try:
        return import_module(name)
    except Exception as e:
        raise StreaqError(f"Importing {name} failed at {_place(e)}: {_what(e)}") from e


def _place(error: Exception) -> str:
    """The line of the user's own code that the error came from or through."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _what(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg}"
    return str(error) if isinstance(error, StreaqError) else one_line(error)


def _check_there(name: str) -> None:
    """Look for the module before importing it, so as to tell a typo from an error inside."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        part = ".".join(parts[:i])
        try:
            found = find_spec(part)
        except (ImportError, ValueError):
            found = None
        except Exception:  # noqa: BLE001 - a parent package that fails is told by the import itself
            return
        if found is None:
            raise StreaqError(
                f"There is no module {part!r} in {Path.cwd()} or among the installed packages."
            )


def _worker_in(module: ModuleType, name: str) -> Worker[Any]:
    try:
        found: object = module
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise StreaqError(f"{module.__name__} has no {name!r}; {_hint(module)}") from None
    if not isinstance(found, Worker):
        raise StreaqError(
            f"{module.__name__}:{name} is of type {type(found).__name__}, and not a streaq Worker; "
            f"{_hint(module)}"
        )
    return cast("Worker[Any]", found)


def _hint(module: ModuleType) -> str:
    workers = [name for name, value in vars(module).items() if isinstance(value, Worker)]
    if not workers:
        return "there is no worker in that module."
    return f"did you mean {' or '.join(f'{module.__name__}:{name}' for name in workers)}?"


def _not_a_path(path: str) -> str:
    stem = path.strip().removesuffix(".py").replace("/", ".").strip(":.")
    example = f"{stem}:worker" if stem else "module:worker"
    return f"{path!r} is not of the form module:variable; try {example}"
