"""`python -m tools.dashboards [DIRECTORY]`: write the dashboards, each to its own file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tools.dashboards import cron, latency, tasks, workers
from tools.dashboards.theme import Json

SHIPPED = Path(__file__).parents[2] / "streaq" / "dashboards"
DASHBOARDS: dict[str, Callable[[], Json]] = {
    "queue-latency.json": latency.build,
    "tasks.json": tasks.build,
    "workers.json": workers.build,
    "cron.json": cron.build,
}


def render() -> dict[str, str]:
    """The text of every dashboard, by file name."""
    return {
        name: json.dumps(build(), indent=2, ensure_ascii=False) + "\n"
        for name, build in DASHBOARDS.items()
    }


def main(arguments: list[str]) -> None:
    """Write the dashboards into the directory that is named, or where the wheel takes them from."""
    directory = Path(arguments[0]) if arguments else SHIPPED
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in render().items():
        (directory / name).write_text(text, encoding="utf-8")
        print(directory / name)


if __name__ == "__main__":
    main(sys.argv[1:])
