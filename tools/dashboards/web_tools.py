"""The npm side: installs Grafana's packages into a git-ignored folder and runs what needs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "web"
WORKSHOP = ROOT / "build" / "web"
"""Sources and `node_modules` meet here; nothing in it is committed."""


def workshop() -> Path:
    """The folder with the sources copied in and the packages installed; made when it is missing."""
    WORKSHOP.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCES / "package.json").read_text(encoding="utf-8")
    marker = WORKSHOP / "installed.json"
    for source in SOURCES.iterdir():
        shutil.copy(source, WORKSHOP / source.name)
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        # --legacy-peer-deps: one package under @grafana/ui has not heard of React 19 yet.
        quiet = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        run(["npm", "install", "--legacy-peer-deps", "--loglevel=error", *quiet])
        marker.write_text(wanted, encoding="utf-8")
    return WORKSHOP


def run(command: list[str], given: str = "") -> str:
    """Run a command in the workshop and return what it printed; raises with it when it fails."""
    done = subprocess.run(
        command, cwd=WORKSHOP, input=given, capture_output=True, text=True, check=False, timeout=400
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def tool(name: str) -> str:
    """The path of a program that npm installed."""
    return os.fspath(WORKSHOP / "node_modules" / ".bin" / name)
