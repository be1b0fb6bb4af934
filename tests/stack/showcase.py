"""Makes the pictures of the docs: the shop of `examples/`, a while of business, one outage.

`python -m tests.stack.showcase [MINUTES] [DIRECTORY]` takes that long, and half a minute to draw.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.stack.plant import Plant, eventually
from tools.dashboards.__main__ import DASHBOARDS
from tools.dashboards.pictures import IMAGES, bundle, draw, draw_all

PRODUCER = ("examples/load.py", "--metrics-port")
KILL_AT, OUTAGE_AT = 0.05, 0.53
"""Parts of the whole time. The first tasks are reclaimed one lease, a minute, after the kill."""
OUTAGE_S = 60.0
LATE = "queue-late.png"
"""The front page at the end of the outage, above the fold."""


def main(arguments: list[str]) -> None:
    """Run, kill a worker, send all of them away for a while, and draw what was seen."""
    minutes = float(arguments[0]) if arguments else 20.0
    images = Path(arguments[1]) if len(arguments) > 1 else IMAGES
    pause = threading.Event()
    bundle()
    with (
        tempfile.TemporaryDirectory() as directory,
        Plant(Path(directory), "orders:worker", PRODUCER, "orders") as plant,
    ):
        pause.wait(minutes * 60 * KILL_AT)
        plant.kill_a_worker()
        eventually(lambda: plant.window().range_s > minutes * 60 * OUTAGE_AT, minutes * 60)
        plant.send_the_workers_away(_outage(plant, images / LATE), OUTAGE_S * 2)
        eventually(lambda: plant.window().range_s > minutes * 60, minutes * 60)
        for picture in (images / LATE, *draw_all(plant.prometheus, plant.window(), images)):
            print(picture)


def _outage(plant: Plant, picture: Path) -> Callable[[], bool]:
    """Whether the outage has lasted long enough; its picture is drawn then."""
    end = time.monotonic() + OUTAGE_S

    def over() -> bool:
        if time.monotonic() < end:
            return False
        front_page = DASHBOARDS["queue-latency.json"]()
        draw(front_page, plant.prometheus, plant.window(), picture, fold=True)
        return True

    return over


if __name__ == "__main__":
    main(sys.argv[1:])
