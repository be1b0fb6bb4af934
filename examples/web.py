"""A web shop that takes orders, and leaves the rest to the workers of ``orders.py``.

Each line in a terminal of its own::

    streaq run orders:worker
    uvicorn web:app
    curl -X POST localhost:8000/orders -H 'content-type: application/json' \\
         -d '{"number": 1, "cents": 1990}'
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from orders import Order, charge, receipt, worker
from pydantic import BaseModel, PositiveInt

from streaq import TaskStatus
from streaq.telemetry import metrics_app


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with worker:
        yield


class Basket(BaseModel):
    number: PositiveInt
    cents: PositiveInt


class Progress(BaseModel):
    task_id: str
    status: str
    receipt: str | None = None
    problem: str | None = None


app = FastAPI(lifespan=lifespan)
app.mount("/metrics", metrics_app(worker))


@app.post("/orders", status_code=202)
async def buy(basket: Basket) -> Progress:
    order = Order(basket.number, basket.cents)
    task = await (charge.enqueue(order).start(priority="high") | receipt)
    return Progress(task_id=task.id, status="accepted")


@app.get("/orders/{task_id}")
async def look(task_id: str) -> Progress:
    status = await worker.status_by_id(task_id)
    if status is TaskStatus.NOT_FOUND:
        raise HTTPException(404, "no such order, or it is too long ago")
    progress = Progress(task_id=task_id, status=status.value)
    if status is TaskStatus.DONE:
        result = await worker.result_by_id(task_id, timeout=1)
        if result.success:
            progress.receipt = result.result
        else:
            progress.problem = str(result.exception)
    return progress
