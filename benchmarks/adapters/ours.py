"""This project: the same code as for streaq 7.2.0, because the API is the same, plus the telemetry variants.

- `telemetry: off`: `Worker(telemetry=False)`, the figure that the speed bars are about.
- `telemetry: default`: `Worker()` as a user gets it: metrics on, logs to a file, no trace exporter set.
- `telemetry: full`: tasks not silent, logs to a file, metrics served, and every span exported in batches
  over OTLP/HTTP to a receiver on the same machine.
"""

from __future__ import annotations

import logging
import os

import _common as common
import streaq_peer

MODE = common.OPTIONS.get("telemetry", "off")


def export_traces() -> None:
    """Send every span to the receiver that the harness started."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=os.environ["BENCH_OTLP_URL"])
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def log_to_file() -> None:
    """Send log lines to a file, as a service would; a terminal would be measured otherwise."""
    handler = logging.FileHandler(common.DIR / f"{os.getpid()}.log")
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def build():
    if MODE != "off":
        log_to_file()
    if MODE == "full":
        export_traces()
    return streaq_peer.build(telemetry=MODE != "off", silent=MODE != "full")


if __name__ == "__main__":
    packages = ["streaq", "redis", "hiredis", "uvloop", "trio"]
    common.main(streaq_peer.StreaqPeer(build), __doc__, packages)
