"""Makes the virtual environment of each peer, with uv where it is on the PATH and with venv and pip
elsewhere.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from benchmarks.entrants import ENVIRONMENTS, OURS, Environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENVS = HERE / ".venvs"


class SetupError(Exception):
    """An environment could not be made; the message says which and why."""


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return VENVS / name / "bin" / "python"


def ensure(name: str, *, upgrade: bool = False) -> Path:
    """Make the environment unless it is there with the same requirements; give its interpreter.

    With `upgrade`, the newest releases are installed. Raises SetupError when the installer fails.
    """
    environment = ENVIRONMENTS[name]
    stamp = VENVS / name / "requirements.sha256"
    wanted = _fingerprint(environment)
    if not upgrade and stamp.exists() and stamp.read_text() == wanted:
        return python_of(name)
    print(f"making the environment of {name} ...", file=sys.stderr, flush=True)
    _install(environment, upgrade=upgrade)
    stamp.write_text(wanted)
    return python_of(name)


def _fingerprint(environment: Environment) -> str:
    digest = hashlib.sha256("\n".join(environment.packages).encode())
    digest.update(sys.version.encode())
    if environment.name == OURS:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        digest.update(repr(sorted(project.items())).encode())
    return digest.hexdigest()


def _install(environment: Environment, *, upgrade: bool) -> None:
    target = VENVS / environment.name
    packages = [ROOT.as_posix() + p[1:] if p.startswith(".") else p for p in environment.packages]
    more = ["--upgrade"] if upgrade else []
    VENVS.mkdir(exist_ok=True)
    if shutil.which("uv"):
        if not python_of(environment.name).exists():
            _run(environment, ["uv", "venv", "-q", "-p", sys.executable, str(target)])
        python = str(python_of(environment.name))
        _run(environment, ["uv", "pip", "install", "-q", "-p", python, *more, *packages])
        return
    if not python_of(environment.name).exists():
        _run(environment, [sys.executable, "-m", "venv", str(target)])
    python = str(python_of(environment.name))
    _run(environment, [python, "-m", "pip", "install", "-q", *more, *packages])


def _run(environment: Environment, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"cannot set up the environment of {environment.name}: {last}")
