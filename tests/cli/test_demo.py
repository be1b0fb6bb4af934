"""``streaq demo``: it ends by itself, and its numbers add up."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from rich.text import Text

from streaq.cli.demo.tally import Row, Tally, percentile
from streaq.cli.demo.view import Pace, picture, plain_line, verdict
from streaq.cli.demo.workload import example_folder
from streaq.hooks import Enqueue
from streaq.wire import Record
from tests.cli.support import Here, Process, process

pytestmark = pytest.mark.timeout(120)


def enqueued(task: str, task_id: str, priority: str = "normal") -> Enqueue:
    return Enqueue("q", task, task_id, priority, "immediate", 0, (), {}, silent=False)


def result(task: str, task_id: str, **changes: Any) -> Record:
    base = Record(
        status="success", reason="ok", fn=task, task_id=task_id, created_ms=1000,
        enqueued_ms=1000, started_ms=1010, finished_ms=1030, tries=1, worker_id="w",
        priority="normal", due_ms=1005, trace="", text="", ledger=[], value=b"",
    )  # fmt: skip
    return base._replace(**changes)


def row_of(tally: Tally, task: str) -> Row:
    return next(row for row in tally.rows() if row.task == task)


# -------------------------------------------------------------------------------- numbers


def test_what_was_enqueued_and_ended_adds_up() -> None:
    tally = Tally(())
    for i in range(3):
        tally.on_enqueued(enqueued("a", f"{i}"))
    tally.on_result(result("a", "0"))
    tally.on_result(result("a", "1", status="failed", reason="error"))
    assert not tally.adds_up()
    assert tally.outstanding == {"2"}
    tally.on_result(result("a", "2", status="aborted", started_ms=0))
    assert tally.adds_up()
    row = row_of(tally, "a")
    assert (row.enqueued, row.succeeded, row.failed) == (3, 1, 2)
    assert list(row.waits_ms) == [5, 5]
    assert list(row.runs_ms) == [20, 20]


def test_retries_are_counted_from_the_ledger() -> None:
    tally = Tally(())
    tally.on_enqueued(enqueued("a", "1"))
    ledger = [{"outcome": "retried"}, {"outcome": "lost"}, {"outcome": "retried"}]
    tally.on_result(result("a", "1", ledger=ledger))
    assert row_of(tally, "a").retried == 2


def test_a_result_may_come_before_its_producer_hears_of_the_enqueue() -> None:
    tally = Tally(())
    tally.on_result(result("a", "1"))
    assert not tally.adds_up()
    tally.on_enqueued(enqueued("a", "1"))
    assert tally.adds_up()


def test_a_second_result_does_not_add_up() -> None:
    tally = Tally(())
    tally.on_enqueued(enqueued("a", "1"))
    tally.on_result(result("a", "1"))
    tally.on_result(result("a", "1"))
    assert not tally.adds_up()
    tally.on_result(result("a", "1"))
    assert tally.surprises == 1


def test_cron_jobs_count_when_they_end() -> None:
    tally = Tally(["tick"])
    tally.on_result(result("tick", "1"))
    assert (tally.enqueued, tally.ended) == (1, 1)
    assert tally.adds_up()


def test_skipped_fail_overs_are_told_apart() -> None:
    tally = Tally(())
    tally.on_enqueued(enqueued("b", "1"))
    tally.on_result(result("b", "1", reason="skipped", started_ms=0))
    row = row_of(tally, "b")
    assert (row.succeeded, row.skipped, len(row.waits_ms)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("samples", "p50", "p95"),
    [([], None, None), ([7], 7, 7), ([1, 2], 1, 2), (range(1, 101), 50, 95), ([3, 1, 2], 2, 3)],
)
def test_percentiles(samples: Any, p50: float | None, p95: float | None) -> None:
    assert (percentile(samples, 0.5), percentile(samples, 0.95)) == (p50, p95)


# -------------------------------------------------------------------------------- picture


def drawn(thing: Any) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(thing)
    return console.export_text()


def test_the_table_fits_into_eighty_columns() -> None:
    tally = Tally(())
    for i in range(12_345):
        tally.on_enqueued(enqueued("standard_label", f"{i}", "normal"))
    tally.on_result(result("standard_label", "0", started_ms=9_000, finished_ms=90_000))
    text = drawn(picture(tally, Pace(), Text("x"), ["high", "normal", "low"]))
    assert "…" not in text
    assert re.search(r"normal standard_label +12,345 +1 +0 +0 +7,995 +7,995 +81 s +81 s", text)


def test_rows_are_in_the_order_of_priorities() -> None:
    tally = Tally(())
    for priority in ("low", "high", "normal"):
        tally.on_enqueued(enqueued(f"task_{priority}", priority, priority))
    text = drawn(picture(tally, Pace(), Text("x"), ["high", "normal", "low"]))
    assert text.index("task_high") < text.index("task_normal") < text.index("task_low")


def test_a_missing_result_is_told() -> None:
    tally = Tally(())
    tally.on_enqueued(enqueued("a", "1"))
    assert "1 without a result" in verdict(tally, Pace()).plain


def test_the_pace_is_drawn_beat_by_beat() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    for i, ended in enumerate([0, 100, 400]):
        now[0] = i * 1.0
        pace.note(ended)
    assert pace.line().plain.startswith("▃█")
    assert pace.line().plain.endswith("   300 tasks/s")
    assert plain_line(Tally(()), pace) == "  2.0 s  0 of 0 tasks done"


# ------------------------------------------------------------------------------ whole runs


def numbers(text: str) -> list[list[int]]:
    """The counts of each row: enqueued, succeeded, failed, retried."""
    found = re.findall(
        r"^(?:\w+)? +(\w+) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) ", text, re.MULTILINE
    )
    return [[int(n.replace(",", "")) for n in row[1:]] for row in found]


def test_the_demo_runs_ends_and_adds_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "STREAQ_EMBEDDED_URL"):
        monkeypatch.delenv(name, raising=False)
    with process("demo", "--seconds", "4", cwd=tmp_path) as run:
        said = run.end()
    assert said.status == 0, said.err
    assert said.err == ""
    rows = numbers(said.out)
    assert len(rows) == 10, said.out
    assert all(n == ok + failed for n, ok, failed, _ in rows)
    total = re.search(
        r"^([\d,]+) enqueued = ([\d,]+) succeeded \+ ([\d,]+) failed$", said.out, re.MULTILINE
    )
    assert total is not None
    sums = [int(n.replace(",", "")) for n in total.groups()]
    assert sums == [sum(row[i] for row in rows) for i in range(3)]
    assert sums[0] > 3000
    assert sum(row[3] for row in rows) > 0, "some were tried again"


def test_on_a_terminal_the_picture_is_redrawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REDIS_URL", "STREAQ_EMBEDDED_URL"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "streaq", "demo", "--seconds", "3"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "40"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path, env=env) as run:
        os.close(theirs)
        said = b""
        while chunk := _read(ours):
            said += chunk
        assert run.wait(60) == 0
    os.close(ours)
    text = said.decode()
    assert text.count("tasks/s") > 3
    assert "each of them has exactly one result" in text


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Process]:
    """A demo without end that has done tasks."""
    for name in ("REDIS_URL", "STREAQ_EMBEDDED_URL"):
        monkeypatch.delenv(name, raising=False)
    with process("demo", "--seconds", "0", cwd=tmp_path) as run:
        assert run.popen.stdout is not None
        while "tasks done" not in run.popen.stdout.readline():
            pass
        yield run


def test_it_can_be_interrupted(at_work: Process) -> None:
    workers = psutil.Process(at_work.popen.pid).children(recursive=True)
    at_work.signal(signal.SIGINT)
    said = at_work.end()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert said.status == 130
    assert said.err == ""
    assert said.out.endswith("stopped\n")
    assert workers
    assert not alive


def test_nothing_outlives_a_demo_that_is_killed(at_work: Process) -> None:
    started = psutil.Process(at_work.popen.pid).children(recursive=True)
    at_work.signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=40)
    for left in alive:
        left.kill()
    assert len(started) >= 3, "the server, the parent of the workers, a worker"
    assert not alive


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # how a pseudo-terminal says that nobody is left at the other end
        return b""


def test_a_queue_in_use_is_left_alone(
    cli: Here, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("orders", None)
    import anyio

    from streaq import Worker

    other: Worker[None] = Worker(redis_url, queue_name="orders", telemetry=False)
    task = other.enqueue_unsafe("charge", 1)

    async def publish() -> None:
        async with other:
            await task

    async def withdraw() -> None:
        async with other:
            await task.abort()

    anyio.run(publish)
    said = cli("demo", "--seconds", "1")
    anyio.run(withdraw)
    sys.modules.pop("orders", None)
    assert said.status == 1
    assert "Queue 'orders' at unix://" in said.err
    assert "is in use (1 task waiting, 0 workers)" in said.err


def test_a_worker_that_can_not_start_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Here
) -> None:
    """The worker process finds another ``orders`` first."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orders.py").write_text("raise RuntimeError('closed on Sundays')\n")
    sys.modules.pop("orders", None)
    monkeypatch.syspath_prepend(str(example_folder()))
    said = cli("demo", "--seconds", "1")
    sys.modules.pop("orders", None)
    assert said.status == 1
    assert "RuntimeError: closed on Sundays" in said.err
    assert said.err.startswith("error: the worker process ended (status 1): error: Importing")
