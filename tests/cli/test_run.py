"""``streaq run`` with real processes: the parent, its workers, and every way for them to end."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from streaq.cli.parent import FIRST_DELAY_S, LONGEST_DELAY_S, SETTLED_S, Slot
from streaq.task import TaskStatus
from tests.cli.support import HERE, LIMIT_S, Process, eventually, is_alive, process

pytestmark = pytest.mark.timeout(120)

STARTED = '"event":"worker.started"'
STOPPED = '"event":"worker.stopped"'


def ask(worker: Any, what: Callable[[], Awaitable[Any]]) -> Any:
    """Run ``what`` with the worker connected."""

    async def main() -> Any:
        async with worker:
            return await what()

    return anyio.run(main)


def enqueue(worker: Any, *tasks: Any) -> None:
    async def run() -> None:
        await worker.enqueue_many(tasks)

    ask(worker, run)


def results(worker: Any, *tasks: Any) -> list[Any]:
    async def run() -> list[Any]:
        return [await task.result(LIMIT_S) for task in tasks]

    return ask(worker, run)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(child) for child in text.split()]


def pids_in(notes: Path, word: str) -> list[int]:
    lines = notes.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(word)]


# ----------------------------------------------------------------------- work, and its end


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_burst_drains_the_queue_and_ends(shop: Any, notes: Path, backend: str) -> None:
    tasks = [shop.whoami.enqueue() for _ in range(50)]
    enqueue(shop.worker, *tasks)
    with process("run", "shop:worker", "--burst", "--workers", "2", TEST_BACKEND=backend) as run:
        said = run.end()
    assert said.status == 0, said.err
    assert all(result.success for result in results(shop.worker, *tasks))
    assert len(pids_in(notes, "whoami")) == 50
    assert said.err.count(STARTED) == said.err.count(STOPPED) == 2
    assert os.getpid() not in pids_in(notes, "whoami")


@pytest.mark.parametrize("verbose", [[], ["--verbose"]], ids=["usual", "verbose"])
def test_verbose_shows_debug_lines(shop: Any, verbose: list[str]) -> None:
    enqueue(shop.worker, shop.murmur.enqueue())
    with process("run", "shop:worker", "--burst", *verbose) as run:
        said = run.end()
    assert said.status == 0, said.err
    assert ("quiet words" in said.err) is bool(verbose)
    assert STOPPED in said.err


OWN_LOGGING = """
import logging, sys
handler = logging.StreamHandler(sys.stderr)
handler.setLevel({handler!r})
logging.basicConfig(level="WARNING", format="mine %(levelname)s %(message)s", handlers=[handler])
logging.getLogger("streaq").setLevel("ERROR")
from shop import worker
"""


@pytest.mark.parametrize(
    ("handler", "args", "said", "unsaid"),
    [
        ("NOTSET", [], [], ["quiet words", "task.finished", "the level is"]),
        (
            "NOTSET",
            ["-v"],
            ["mine DEBUG quiet words", "task.finished", "handlers are kept; the level is debug"],
            [STARTED],
        ),
        ("NOTSET", ["--log-level", "info"], ["mine INFO", "task.finished"], ["quiet words"]),
        ("NOTSET", ["--log-level", "error"], [], ["task.finished"]),
        (
            "WARNING",
            ["-v"],
            ["handlers write nothing below warning; --log-format console or json replaces them"],
            ["quiet words"],
        ),
        ("WARNING", ["-v", "--log-format", "json"], [STARTED, "quiet words"], ["mine"]),
    ],
)
def test_an_explicit_level_works_with_the_applications_own_logging(
    shop: Any, tmp_path: Path, handler: str, args: list[str], said: list[str], unsaid: list[str]
) -> None:
    (tmp_path / "made_up.py").write_text(OWN_LOGGING.format(handler=handler))
    enqueue(shop.worker, shop.murmur.enqueue())
    with process("run", "made_up:worker", "-b", *args, cwd=tmp_path, PYTHONPATH=str(HERE)) as run:
        ended = run.end()
    assert ended.status == 0
    assert [part for part in said if part not in ended.err] == []
    assert [part for part in unsaid if part in ended.err] == []


@pytest.mark.parametrize(
    ("number", "backend"),
    [(signal.SIGINT, "asyncio"), (signal.SIGTERM, "asyncio"), (signal.SIGTERM, "trio")],
)
def test_a_signal_lets_tasks_finish(
    shop: Any, notes: Path, tmp_path: Path, number: signal.Signals, backend: str
) -> None:
    task = shop.wait_for.enqueue(str(tmp_path / "go"))
    enqueue(shop.worker, task)
    with process("run", "shop:worker", TEST_BACKEND=backend) as run:
        eventually(lambda: bool(pids_in(notes, "started")), "the task starts")
        run.signal(number)
        run.wait_for_line(f"received {number.name}: worker")
        (tmp_path / "go").touch()
        said = run.end()
    assert said.status == 0
    assert f'"reason":"{number.name}"' in said.err
    (result,) = results(shop.worker, task)
    assert (result.success, result.tries) == (True, 1)


def test_a_second_signal_hands_tasks_back(shop: Any, notes: Path) -> None:
    task = shop.wait_for.enqueue("/nowhere")
    enqueue(shop.worker, task)
    with process("run", "shop:worker") as run:
        eventually(lambda: bool(pids_in(notes, "started")), "the task starts")
        run.signal(signal.SIGTERM)
        run.wait_for_line("received SIGTERM: worker")
        run.signal(signal.SIGTERM)
        assert run.end().status == 0

    async def look() -> Any:
        status, info = await task.status(), await task.info()
        await task.abort()
        return status, info

    status, info = ask(shop.worker, look)
    assert status is TaskStatus.QUEUED
    assert info.tries == 0, "a deploy never burns a try"


def test_a_third_signal_kills(shop: Any, notes: Path) -> None:
    task = shop.stuck.enqueue()
    enqueue(shop.worker, task)
    with process("run", "shop:worker", TEST_GRACE="600") as run:
        eventually(lambda: bool(pids_in(notes, "started")), "the task starts")
        (worker_pid,) = children_of(run.popen.pid)
        os.kill(worker_pid, signal.SIGSTOP)  # so that nothing but the last of them ends it
        for does in ("stopping", "cutting the grace period of", "killing"):
            run.signal(signal.SIGTERM)
            run.wait_for_line(f"received SIGTERM: {does} 1 worker")
        assert run.end().status == 0
    assert not is_alive(worker_pid)
    # Whoever takes the task over finds that it is not wanted any more.
    with process("run", "shop:worker") as run:

        async def stop() -> None:
            await task.abort(timeout=0)
            await task.result(LIMIT_S)

        ask(shop.worker, stop)
        run.signal(signal.SIGTERM)
        assert run.end().status == 0


def test_a_signal_before_the_workers_are_up_is_quiet(environment: dict[str, str]) -> None:
    with process("run", "shop:worker", "--workers", "2") as run:
        eventually(lambda: len(children_of(run.popen.pid)) == 2, "it starts its workers")
        run.signal(signal.SIGINT)
        said = run.end()
    assert said.status == 0
    assert "Traceback" not in said.err


# ------------------------------------------------------------------------------- accidents


def test_a_worker_that_dies_is_started_again(shop: Any, notes: Path) -> None:
    task = shop.die_once.enqueue()
    enqueue(shop.worker, task)
    with process("run", "shop:worker") as run:
        run.wait_for_line(STARTED, times=2)
        (result,) = results(shop.worker, task)
        run.signal(signal.SIGTERM)
        said = run.end()
    assert (result.success, result.tries) == (True, 2)
    first, second = pids_in(notes, "die")
    assert f"worker process {first} was killed by SIGKILL (out of memory?)" in said.err
    assert result.result == second != first


def test_a_worker_that_is_stopped_by_itself_is_replaced(environment: dict[str, str]) -> None:
    with process("run", "shop:worker", "--workers", "2") as run:
        run.wait_for_line(STARTED, times=2)
        first = children_of(run.popen.pid)
        os.kill(first[0], signal.SIGTERM)
        run.wait_for_line(f"worker process {first[0]} ")
        run.wait_for_line(STARTED, times=3)
        now = children_of(run.popen.pid)
        assert first[0] not in now
        assert first[1] in now
        run.signal(signal.SIGTERM)
        assert run.end().status == 0


def test_workers_do_not_outlive_a_killed_parent(environment: dict[str, str]) -> None:
    with process("run", "shop:worker", "--workers", "2") as run:
        run.wait_for_line(STARTED, times=2)
        workers = children_of(run.popen.pid)
        run.signal(signal.SIGKILL)
        run.wait_for_line(STOPPED, times=2)
        eventually(lambda: not any(is_alive(pid) for pid in workers), "the workers end")


def test_what_can_not_work_ends_at_once(environment: dict[str, str]) -> None:
    with process("run", "shop:worker", "--workers", "3", TEST_URL="redis://127.0.0.1:1") as run:
        said = run.end()
    assert said.status == 1
    assert said.err.startswith("error: redis://127.0.0.1:1: no Redis server answers")
    assert said.err.count("\n") == 0


def test_a_module_that_raises_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "made_up.py").write_text("raise RuntimeError('not today')\n")
    with process("run", "made_up:worker", cwd=tmp_path) as run:
        said = run.end()
    assert said.status == 1
    assert said.err == (
        f"error: Importing made_up failed at {tmp_path}/made_up.py:1: RuntimeError: not today"
    )


def test_restarts_wait_longer_each_time() -> None:
    slot = Slot()
    waits = [slot.restart_later(lived_s=0.1) for _ in range(9)]
    assert waits[:3] == [FIRST_DELAY_S, FIRST_DELAY_S * 2, FIRST_DELAY_S * 4]
    assert waits[-1] == LONGEST_DELAY_S
    assert slot.restart_later(lived_s=SETTLED_S) == FIRST_DELAY_S


# -------------------------------------------------------------- reload, metrics, embedded


def test_reload_starts_afresh_when_a_file_changes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    module = tmp_path / "made_up.py"
    text = (HERE / "shop.py").read_text(encoding="utf-8")
    module.write_text(text)
    with process("run", "made_up:worker", "--reload", cwd=tmp_path) as run:
        run.wait_for_line(STARTED)
        module.write_text(f"{text}\n\n@worker.task\nasync def brand_new() -> None: ...\n")
        run.wait_for_line("brand_new")
        module.write_text("def broken(:\n")
        run.wait_for_line("made_up.py:1: SyntaxError")
        run.wait_for_line("waiting for files to change")
        module.write_text(text)
        run.wait_for_line(STARTED, times=3)
        run.signal(signal.SIGINT)
        assert run.end().status == 0


def test_reload_waits_for_a_broken_module_to_be_mended(
    environment: dict[str, str], tmp_path: Path
) -> None:
    module = tmp_path / "made_up.py"
    module.write_text("import made_up_missing\n")
    with process("run", "made_up:worker", "--reload", cwd=tmp_path) as run:
        run.wait_for_line("waiting for files to change")
        module.write_text((HERE / "shop.py").read_text(encoding="utf-8"))
        run.wait_for_line(STARTED)
        run.signal(signal.SIGTERM)
        assert run.end().status == 0


def test_a_mended_module_is_watched_like_any_other(shop: Any, tmp_path: Path) -> None:
    """The parent, too, must get to know the queue whose module was broken when it began."""
    module = tmp_path / "made_up.py"
    counter = "import prometheus_client\nprometheus_client.Counter('made_up', 'x')\n"
    module.write_text(f"{counter}import made_up_missing\n")
    args = ("run", "made_up:worker", "--reload", "--metrics-port", "0")
    with process(*args, cwd=tmp_path) as run:
        run.wait_for_line("waiting for files to change")
        module.write_text(f"{counter}broken(\n")
        run.wait_for_line("waiting for files to change", times=2)
        module.write_text((HERE / "shop.py").read_text(encoding="utf-8") + counter)
        run.wait_for_line(STARTED)
        url = serving(run)
        workers = f'streaq_queue_workers{{queue="{shop.worker.queue_name}"}} 1.0'
        eventually(lambda: workers in fetch(url), workers)
        run.signal(signal.SIGTERM)
        assert run.end().status == 0


def serving(run: Process) -> str:
    """Where the metrics are, as it said last."""
    line = next(line for line in reversed(run.lines) if "serving http" in line)
    return line.split("serving ")[1].split('"')[0]


def test_one_endpoint_for_all_workers(shop: Any) -> None:
    tasks = [shop.add.enqueue(i, 1) for i in range(40)]
    with process("run", "shop:worker", "--workers", "2", "--metrics-port", "0") as run:
        run.wait_for_line("serving http://127.0.0.1:")
        run.wait_for_line(STARTED, times=2)
        url = serving(run)
        enqueue(shop.worker, *tasks)
        results(shop.worker, *tasks)
        wanted = (
            f'streaq_tasks_finished_total{{priority="normal",queue="{shop.worker.queue_name}",'
            f'status="success",task="add"}} 40.0'
        )
        eventually(lambda: wanted in fetch(url), wanted)
        assert fetch(url.replace("/metrics", "/livez")) == "ok\n"
        assert fetch(url.replace("/metrics", "/readyz")) == "ok\n"
        assert f'streaq_queue_workers{{queue="{shop.worker.queue_name}"}} 2.0' in fetch(url)
        run.signal(signal.SIGTERM)
        assert run.end().status == 0


@pytest.mark.parametrize("args", [[], ["--otlp"]])
def test_spans_go_where_the_environment_says(shop: Any, args: list[str]) -> None:
    enqueue(shop.worker, shop.add.enqueue(1, 2))
    with process("run", "shop:worker", "-b", *args, OTEL_TRACES_EXPORTER="console") as run:
        said = run.end()
    assert said.status == 0, said.err
    assert '"name": "process add"' in said.out
    assert '"service.name": "streaq"' in said.out


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "streaq can send to otlp, console or none."),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "it is a whole number, 1 or more."),
    ],
)
def test_a_wrong_otel_variable_is_one_line(shop: Any, name: str, value: str, why: str) -> None:
    """An error when traces were asked for; else a warning, and the worker works."""
    with process("run", "shop:worker", "--otlp", **{name: value}) as run:
        said = run.end()
    assert said.status == 1
    assert said.err == f"error: {name}={value!r}: {why}"
    task = shop.add.enqueue(1, 2)
    enqueue(shop.worker, task)
    with process(
        "run", "shop:worker", "-b", **{"OTEL_TRACES_EXPORTER": "otlp", name: value}
    ) as run:
        said = run.end()
    assert said.status == 0
    assert said.err.count(f"{name}={value!r}: {why} No traces are sent that way.") == 1
    assert results(shop.worker, task)[0].result == 3


def test_sending_traces_without_the_extra(shop: Any, tmp_path: Path) -> None:
    """Asked for by name it is an error; by a variable meant for others too it is not."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['opentelemetry.exporter'] = None\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with process("run", "shop:worker", "--otlp", **env) as run:
        said = run.end()
    assert said.status == 1
    assert said.err == ("error: Sending OTLP needs the 'otlp' extra: pip install 'streaq[otlp]'.")
    with process("run", "shop:worker", "--burst", **env) as run:
        said = run.end()
    assert said.status == 0
    assert "needs the 'otlp' extra" in said.err


def test_held_back_signals_are_not_inherited(environment: dict[str, str]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with process("run", "shop:worker") as run:
            run.wait_for_line(STARTED)
            (worker_pid,) = children_of(run.popen.pid)
            run.signal(signal.SIGKILL)
            eventually(lambda: not is_alive(worker_pid), "the worker ends")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_workers_share_the_parents_embedded_server(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAQ_EMBEDDED_URL", raising=False)
    (tmp_path / "made_up.py").write_text(
        "import os\n"
        "from contextlib import asynccontextmanager\n"
        "from pathlib import Path\n"
        "from streaq import Worker\n"
        "@asynccontextmanager\n"
        "async def lifespan():\n"
        "    info = await worker.redis.info('server')\n"
        "    with Path('servers').open('a') as file:\n"
        "        file.write(info['run_id'] + '\\n')\n"
        "    yield\n"
        "worker = Worker('embedded://', lifespan=lifespan)\n"
    )
    with process("run", "made_up:worker", "--workers", "2", cwd=tmp_path) as run:
        run.wait_for_line(STARTED, times=2)
        run.signal(signal.SIGTERM)
        assert run.end().status == 0
    servers = (tmp_path / "servers").read_text().split()
    assert len(servers) == 2
    assert len(set(servers)) == 1
