"""What the checks of the stack need: programs that are there, and dashboards as they ship."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def need(program: str) -> str:
    """The path of ``program``; without it the test is skipped, or fails where CI must have it."""
    found = shutil.which(program)
    if found is None:
        message = f"{program} is not installed; .ci/run says which packages have it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def dashboards() -> dict[str, dict[str, Any]]:
    """Every shipped dashboard, by file name."""
    shipped = sorted((ROOT / "streaq" / "dashboards").glob("*.json"))
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in shipped}
