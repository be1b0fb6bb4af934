"""Registering functions: what the decorators keep of a signature, and what they refuse."""

from __future__ import annotations

from datetime import timedelta

from typing_extensions import assert_type

from streaq import Worker
from streaq.task import AsyncRegisteredTask, SyncRegisteredTask

worker = Worker()


# -- with and without options, async and sync


@worker.task
async def plain(n: int) -> str:
    return str(n)


@worker.task()
async def called(n: int) -> str:
    return str(n)


@worker.task(
    expire=timedelta(hours=1),
    max_tries=None,
    name="renamed",
    retry_timeouts=True,
    silent=True,
    timeout=2.5,
    ttl=0,
    unique=True,
)
async def with_options(n: int, *, flag: bool = False) -> str:
    return f"{n}{flag}"


@worker.task
def plain_sync(n: int) -> str:
    return str(n)


@worker.task(timeout=3, max_tries=1)
def sync_with_options(n: int) -> str:
    return str(n)


right: list[AsyncRegisteredTask[[int], str]] = [plain, called]
right_sync: list[SyncRegisteredTask[[int], str]] = [plain_sync, sync_with_options]
assert_type(plain.fn_name, str)

takes_text: AsyncRegisteredTask[[str], str] = plain  # error
takes_nothing: AsyncRegisteredTask[[], str] = called  # error
gives_a_number: AsyncRegisteredTask[[int], int] = called  # error
is_async: AsyncRegisteredTask[[int], str] = plain_sync  # error
is_sync: SyncRegisteredTask[[int], str] = plain  # error


# -- running locally keeps the signature too


async def run_locally() -> None:
    assert_type(await plain(3), str)
    assert_type(await with_options(3, flag=True), str)
    assert_type(plain_sync(3), str)
    assert_type(sync_with_options(3), str)

    await plain("3")  # error
    await plain()  # error
    await with_options(3, True)  # error
    plain_sync("3")  # error
    await plain_sync(3)  # error


# -- cron jobs


@worker.cron("30 9 * * mon-fri")
async def cron_job() -> int:
    return 1


@worker.cron(
    "0 30 9 * * *",
    max_schedule_drift=timedelta(minutes=5),
    max_tries=1,
    name="daily",
    retry_timeouts=True,
    silent=True,
    timeout=60,
    ttl=None,
    unique=False,
)
def sync_cron_job() -> None: ...


assert_type(cron_job, AsyncRegisteredTask[[], int])
assert_type(sync_cron_job, SyncRegisteredTask[[], None])


@worker.cron("@hourly")  # error
async def cron_job_with_an_argument(n: int) -> None: ...


@worker.cron("@hourly")  # error
def sync_cron_job_with_an_argument(n: int) -> None: ...


@worker.cron()  # error
async def cron_job_without_a_crontab() -> None: ...


@worker.cron(5)  # error
async def cron_job_with_a_number_for_a_crontab() -> None: ...


# -- options of the wrong type


@worker.task(timeout="3")  # error
async def timeout_as_text() -> None: ...


@worker.task(max_tries="many")  # error
async def tries_as_text() -> None: ...


@worker.task(retries=3)  # error
async def unknown_option() -> None: ...


@worker.task(3)  # error
async def positional_option() -> None: ...


@worker.cron("@hourly", max_schedule_drift="long")  # error
async def drift_as_text() -> None: ...


worker.task(3)  # error
