"""Draws every dashboard, with Grafana's own components, from the data of a running Prometheus.

`python -m tools.dashboards.pictures http://127.0.0.1:9090 [MINUTES] [DIRECTORY]`
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.dashboards import web_tools
from tools.dashboards.__main__ import DASHBOARDS
from tools.dashboards.ask import Prometheus, Window, panels, seconds
from tools.dashboards.theme import Json

IMAGES = web_tools.ROOT / "docs" / "images"
WIDTH = 1600
ROW = 38
HEADER = 92
CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=8000",
)


def answers(dashboard: Json, prometheus: Prometheus, window: Window) -> dict[str, list[Json]]:
    """What Prometheus says to every query of every panel, by panel id."""
    return {
        str(panel["id"]): [
            {"target": target, "series": prometheus.target(panel, target, window)}
            for target in panel["targets"]
        ]
        for panel in panels(dashboard)
    }


def draw(
    dashboard: Json, prometheus: Prometheus, window: Window, picture: Path, *, fold: bool = False
) -> None:
    """Write ``dashboard`` as it looks over ``window`` to the PNG file ``picture``: all of it, or
    only what is above the fold.

    Raises:
        RuntimeError: a component failed, with what the browser said.
    """
    job = {
        "dashboard": dashboard,
        "answers": answers(dashboard, prometheus, window),
        "steps": {
            str(panel["id"]): window.step(seconds(panel.get("interval")))
            for panel in panels(dashboard)
        },
        "from": window.start * 1000,
        "to": window.end * 1000,
        "width": WIDTH,
    }
    page = web_tools.WORKSHOP / f"{picture.stem}.html"
    data = json.dumps(job).replace("</", "<\\/")
    page.write_text(
        "<!doctype html><meta charset=utf-8><style>body { margin: 0 }</style>"
        "<link rel=stylesheet href=main.css>"
        f"<div id=root></div><script>window.job = {data}</script><script src=main.js></script>",
        encoding="utf-8",
    )
    _screenshot(page, picture, _rows(dashboard, fold=fold) * ROW + HEADER)


def _rows(dashboard: Json, *, fold: bool) -> int:
    """The height of the dashboard, or of its part above the first heading, in Grafana's rows."""
    if fold:
        return min(p["gridPos"]["y"] for p in dashboard["panels"] if p["type"] == "row")
    return max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])


def bundle() -> None:
    """Put the components and what they need into one script."""
    web_tools.workshop()
    loaders = [f"--loader:.{kind}=dataurl" for kind in ("woff", "woff2", "ttf", "svg", "png")]
    options = ["--bundle", "--outfile=main.js", "--jsx=automatic", "--log-level=error"]
    define = '--define:process.env.NODE_ENV="production"'
    web_tools.run([web_tools.tool("esbuild"), "main.tsx", *options, *loaders, define])


def draw_all(prometheus: Prometheus, window: Window, directory: Path) -> list[Path]:
    """Draw every dashboard into ``directory``; returns the pictures."""
    bundle()
    pictures = [directory / f"{Path(name).stem}.png" for name in DASHBOARDS]
    for picture, build in zip(pictures, DASHBOARDS.values(), strict=True):
        draw(build(), prometheus, window, picture)
    return pictures


def _screenshot(page: Path, picture: Path, height: int) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *CHROMIUM,
                f"--user-data-dir={profile}",
                f"--window-size={WIDTH},{height}",
                f"--screenshot={picture.resolve()}",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    failed = done.returncode or any("Uncaught" in line or "Error" in line for line in said)
    if failed or not picture.exists():
        raise RuntimeError(f"{page.name} was not drawn:\n" + "\n".join(said or [done.stderr]))


def main(arguments: list[str]) -> None:
    """Draw the last minutes of the Prometheus that is named."""
    minutes = float(arguments[1]) if len(arguments) > 1 else 30.0
    directory = Path(arguments[2]) if len(arguments) > 2 else IMAGES
    now = time.time()
    window = Window(now - minutes * 60, now)
    for picture in draw_all(Prometheus(arguments[0]), window, directory):
        print(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
