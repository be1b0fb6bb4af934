"""This project: the same code as for streaq 7.2.0, because the API is the same, plus the telemetry
variants.

- `telemetry: off`: `Worker(telemetry=False)`, the figure that the speed bars are about.
- `telemetry: quiet`: `Worker()` as a user gets it, in a process that has neither set up logging nor
  an OpenTelemetry SDK: metrics, and log lines that nobody takes.
- `telemetry: default`: `Worker()` as a user gets it, tasks not silent: metrics, and a JSON line in
  a file for the start and the end of each task; no OpenTelemetry SDK set up.
- `telemetry: full`: the same, with the SDK as `streaq run --otlp` sets it up: it samples everything
  and exports every span in batches over OTLP/HTTP to a receiver on the same machine.
"""

from __future__ import annotations

import os

import _client as client
import _common as common
import streaq_peer

MODE = common.OPTIONS.get("telemetry", "off")


def export_traces() -> None:
    """Send every span to the receiver that the harness started, as `streaq run --otlp` does."""
    from streaq.telemetry.otlp import configure_otlp

    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = os.environ["BENCH_OTLP_URL"]
    configure_otlp()


def log_to_file() -> None:
    """Write the JSON lines of every task to a file, as a service's supervisor would."""
    from streaq.telemetry import configure_logging

    stream = (common.DIR / f"{os.getpid()}.log").open("a")
    configure_logging("json", stream=stream)


def build():
    if MODE in ("default", "full"):
        log_to_file()
    if MODE == "full":
        export_traces()
    return streaq_peer.build(telemetry=MODE != "off", silent=MODE == "off")


if __name__ == "__main__":
    packages = ["streaq", "redis", "hiredis", "uvloop", "trio"]
    client.main(streaq_peer.StreaqPeer(build), __doc__, packages)
