"""The examples do what their docstrings and the README say."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
import pytest

from streaq import TaskStatus, Worker
from streaq.hooks import Ending, Enqueue, Hook
from tests.support import running

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def orders(redis_url: str, queue: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``examples/orders.py``, with its worker on the test's queue."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("orders", "web"):
        sys.modules.pop(name, None)
    import orders  # pyright: ignore[reportMissingImports]

    orders.worker.queue_name = queue
    orders.worker.telemetry = False
    orders.worker.handle_signals = False
    yield orders
    for name in ("orders", "web"):
        sys.modules.pop(name, None)


class Made(Hook):
    """Remembers the ids of what is enqueued, by task, and which tasks ended well."""

    def __init__(self) -> None:
        self.ids: dict[str, list[str]] = {}
        self.finished: set[str] = set()

    def on_enqueued(self, e: Enqueue) -> None:
        self.ids.setdefault(e.task, []).append(e.task_id)

    def on_finish(self, e: Ending) -> None:
        self.finished.add(e.attempt.task)


async def test_the_shop_keeps_every_task_busy(orders: Any) -> None:
    made = Made()
    orders.worker.extra_hooks.append(made)
    worker: Worker[Any] = orders.worker
    async with worker, running(worker):
        with anyio.fail_after(30):
            await orders.shop(4, mailing=500)
            ended: dict[str, Counter[bool]] = {}
            for task, ids in made.ids.items():
                results = [await worker.result_by_id(task_id) for task_id in ids]
                ended[task] = Counter(result.success for result in results)
    crons = {name for name, task in worker.registry.items() if task.crontab}
    assert crons == {"count_stock"}
    assert set(ended) | crons == made.finished == set(worker.registry)
    assert ended["newsletter"] == {True: 500}
    for always in ("standard_label", "reminder", "thumbnail", "exchange_rate"):
        assert ended[always][False] == 0, always
    assert ended["import_row"][True] > 0
    assert ended["import_row"][False] > 0
    assert ended["express_label"][False] > 0
    assert ended["receipt"][True] == ended["charge"][True] > 0


async def test_an_order_is_charged_and_gets_a_receipt(orders: Any) -> None:
    async with orders.worker, running(orders.worker):
        orders.worker.context.bank.failures = 0.0
        task = await (orders.charge.enqueue(orders.Order(7, 1990)) | orders.receipt)
        result = await task.result(5)
    assert result.result == "order 7: 19.90 EUR, paid by bank/charges/7"


async def test_a_declined_card_fails_the_receipt_too(orders: Any) -> None:
    async with orders.worker, running(orders.worker):
        orders.worker.context.bank.failures = 1.0
        charge = orders.charge.enqueue(orders.Order(7, 1990))
        receipt = await (charge | orders.receipt)
        result, first = await receipt.result(5), await charge.result(5)
    assert not result.success
    assert charge.id in str(result.exception)
    assert str(first.exception) == "bank/charges/7: 503 Service Unavailable"


async def test_a_flaky_service_is_tried_again(orders: Any) -> None:
    async with orders.worker, running(orders.worker):
        rates = orders.worker.context.rates
        rates.failures = 1.0
        task = await orders.exchange_rate.enqueue("USD")
        while (await task.status()) is not TaskStatus.SCHEDULED:  # noqa: ASYNC110 - told by Redis
            await anyio.sleep(0.005)
        rates.failures = 0.0
        result = await task.result(5)
    assert result.result == "rates/EUR/USD"
    assert result.tries >= 2


async def test_the_web_app(orders: Any) -> None:
    import web  # pyright: ignore[reportMissingImports]

    app: Any = web.app
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://shop")
    async with app.router.lifespan_context(app), running(orders.worker), client:
        orders.worker.context.bank.failures = 0.0
        answer = await client.post("/orders", json={"number": 5, "cents": 250})
        assert answer.status_code == 202
        task_id = answer.json()["task_id"]
        await orders.worker.result_by_id(task_id, timeout=5)
        done = (await client.get(f"/orders/{task_id}")).json()
        assert done["status"] == "done"
        assert done["receipt"] == "order 5: 2.50 EUR, paid by bank/charges/5"
        orders.worker.context.bank.failures = 1.0
        answer = await client.post("/orders", json={"number": 6, "cents": 250})
        failed_id = answer.json()["task_id"]
        await orders.worker.result_by_id(failed_id, timeout=5)
        assert "failed" in (await client.get(f"/orders/{failed_id}")).json()["problem"]
        assert (await client.get("/orders/nothing")).status_code == 404
        assert (await client.post("/orders", json={"number": 0})).status_code == 422
        metrics = (await client.get("/metrics/")).text
        assert f'streaq_queue_workers{{queue="{orders.worker.queue_name}"}} 1.0' in metrics
