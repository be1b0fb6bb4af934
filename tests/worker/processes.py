"""A worker in a process of its own, for signals and sudden death."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SCRIPT = """
import json, logging, sys, anyio
from streaq import Worker

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
worker = Worker(telemetry=False, **json.loads(sys.argv[1]))

@worker.task(name="slow")
async def slow(seconds: float) -> str:
    print("started", flush=True)
    await anyio.sleep(seconds)
    return "finished"

worker.run_sync()
print("left in good order", worker.counters)
"""


@contextmanager
def worker_process(
    redis_url: str, queue_name: str, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Runs ``slow(seconds)`` tasks, and is killed at the end of the block if it still lives."""
    options |= {"redis_url": redis_url, "queue_name": queue_name}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    """What it prints next, without the end of the line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
