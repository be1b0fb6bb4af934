"""Customers without an end: keeps the shop of ``orders.py`` busy, and serves metrics as it does.

It is the producer of ``docker-compose.yml``. Against a Redis of yours::

    streaq run orders:worker --metrics-port 9100
    python load.py --metrics-port 9101
"""

from __future__ import annotations

import argparse
import math

import anyio
from orders import shop, worker

from streaq.telemetry import configure_logging
from streaq.telemetry.otlp import configure_otlp, is_wanted
from streaq.telemetry.serve import serve_worker


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--metrics-host", default="127.0.0.1")
    parser.add_argument("--metrics-port", type=int, default=9101)
    parser.add_argument("--customers", type=int, default=1, help="who buy, ten times a second")
    return parser.parse_args()


async def keep_busy(customers: int) -> None:
    async with worker:
        await shop(seconds=math.inf, customers=customers)


def main() -> None:
    chosen = options()
    configure_logging()
    otlp = configure_otlp() if is_wanted() else None
    server = serve_worker(worker, host=chosen.metrics_host, port=chosen.metrics_port)
    try:
        anyio.run(keep_busy, chosen.customers)
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
        if otlp:
            otlp.shutdown()


if __name__ == "__main__":
    main()
