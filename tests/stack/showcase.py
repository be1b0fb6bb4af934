"""Makes the pictures of the docs: the shop of `examples/`, a while of business, one outage.

`python -m tests.stack.showcase [MINUTES] [DIRECTORY]` takes that long, and half a minute to draw.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.stack.plant import Plant, eventually
from tools.dashboards.ask import Window
from tools.dashboards.pictures import IMAGES, draw_all

PRODUCER = ("examples/load.py", "--metrics-port")
OUTAGE_S = 60.0


def main(arguments: list[str]) -> None:
    """Run, send the workers away in the middle, kill one later, and draw what was seen."""
    minutes = float(arguments[0]) if arguments else 20.0
    images = Path(arguments[1]) if len(arguments) > 1 else IMAGES
    pause = threading.Event()
    with (
        tempfile.TemporaryDirectory() as directory,
        Plant(Path(directory), "orders:worker", PRODUCER) as plant,
    ):
        pause.wait(minutes * 60 * 0.4)
        back = time.monotonic() + OUTAGE_S
        plant.send_the_workers_away(lambda: time.monotonic() > back, OUTAGE_S + 5)
        pause.wait(minutes * 60 * 0.2)
        plant.kill_a_worker()
        eventually(lambda: plant.window().range_s > minutes * 60, minutes * 60)
        window = Window(plant.started, time.time())
        for picture in draw_all(plant.prometheus, window, images):
            print(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
