"""Pipelines and fail-overs: each task must take what the one before it gives."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from streaq import Worker
from streaq.task import Task, TaskResult

worker = Worker()


@worker.task(timeout=5)
async def fetch(url: str) -> int:
    return len(url)


@worker.task
async def double(val: int) -> int:
    return val * 2


@worker.task
async def is_even(val: int) -> bool:
    return val % 2 == 0


@worker.task
def sync_shout(val: int) -> str:
    return str(val)


@worker.task
async def store(val: int, *, to: str = "disk") -> None: ...


@worker.task
async def must_store(val: int, *, place: str) -> None: ...


@worker.task
async def tuplify(val: int) -> tuple[int, int]:
    return (val, val)


@worker.task
async def untuple(first: int, second: int, *, third: int = 0) -> int:
    return first + second + third


@worker.task
def sync_untuple(first: int, second: int) -> float:
    return first / second


@worker.task
async def fetch_from_mirror(url: str) -> int:
    return len(url)


@worker.task
async def measure(val: object) -> bool:
    return bool(val)


@worker.task
async def nothing() -> None: ...


async def plain_function(val: int) -> int:
    return val


async def result_of(task: Task[..., bool]) -> bool:
    return (await task.result(3)).result


async def right_pipelines() -> None:
    task = await (fetch.enqueue("https://tastyware.dev") | double | is_even)
    assert_type(await task.result(3), TaskResult[bool])
    assert_type((await task.result(3)).result, bool)
    assert_type(await result_of(task), bool)

    spelled = await fetch.enqueue("https://tastyware.dev").then(double).then(is_even)
    assert_type((await spelled.result(3)).result, bool)

    mixed = await (fetch.enqueue("x") | sync_shout)
    assert_type((await mixed.result()).result, str)

    await fetch.enqueue("x").then(store)
    await fetch.enqueue("x").then(store, to="tape")
    await fetch.enqueue("x").then(must_store, place="tape")
    await (fetch.enqueue("x") | double).start(delay=3)
    await (fetch.enqueue("x") | store)


async def right_by_subtype() -> None:
    await (is_even.enqueue(3) | double)
    await (is_even.enqueue(3) | measure | double)
    await is_even.enqueue(3).then(measure).then(store)


async def right_tuples() -> None:
    task = await (tuplify.enqueue(3) | untuple)
    assert_type((await task.result()).result, int)
    with_keyword = await tuplify.enqueue(3).then(untuple, third=3)
    assert_type((await with_keyword.result()).result, int)
    to_sync = await tuplify.enqueue(3).then(sync_untuple)
    assert_type((await to_sync.result()).result, float)


async def wrong_pipelines() -> None:
    fetch.enqueue(3) | double  # error
    fetch.enqueue("x") | fetch  # error
    fetch.enqueue("x") | double | fetch  # error
    fetch.enqueue("x") | is_even | fetch  # error
    fetch.enqueue("x") | nothing  # error
    fetch.enqueue("x") | untuple  # error
    fetch.enqueue("x") | plain_function  # error
    fetch.enqueue("x") | 3  # error
    fetch.enqueue("x").then(fetch)  # error
    fetch.enqueue("x").then(store, to=3)  # error
    fetch.enqueue("x").then(store, at="tape")  # error
    fetch.enqueue("x").then(must_store)  # error
    fetch.enqueue("x").then(double).then(fetch)  # error
    fetch.enqueue("x").then()  # error
    tuplify.enqueue(3) | fetch  # error
    tuplify.enqueue(3) | double  # error
    await result_of(fetch.enqueue("x") | double)  # error


async def right_fail_overs() -> None:
    task = await (fetch.enqueue("x") ^ fetch_from_mirror)
    assert_type((await task.result(3)).result, int)
    spelled = await fetch.enqueue("x").otherwise(fetch_from_mirror)
    assert_type((await spelled.result(3)).result, int)
    same_arguments: Task[[str], int] = spelled
    print(same_arguments)
    chained = await ((fetch.enqueue("x") ^ fetch_from_mirror) | double | is_even)
    assert_type((await chained.result(3)).result, bool)


async def wrong_fail_overs() -> None:
    fetch.enqueue("x") ^ double  # error
    fetch.enqueue("x") ^ nothing  # error
    fetch.enqueue("x") ^ plain_function  # error
    double.enqueue(1) ^ is_even  # error
    double.enqueue(1) ^ sync_shout  # error
    double.enqueue(1).otherwise(fetch)  # error
    double.enqueue(1).otherwise(is_even)  # error
    double.enqueue("x") ^ double  # error


async def map_recipe(data: list[Any], *, to: str) -> list[Any]:
    task = worker.registry[to]
    results = [await task.enqueue(d).start() for d in data]
    return [(await r.result(3)).result for r in results]
