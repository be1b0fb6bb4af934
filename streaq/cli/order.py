"""What the parent tells each worker process to do; it travels as one JSON argument."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Order:
    """What to run and how.

    :param path: ``module:worker``.
    :param burst: whether to stop when the queue is empty.
    :param otlp: whether sending traces was asked for by name; else the environment says.
    :param log_level: None when none was asked for.
    """

    path: str
    burst: bool = False
    otlp: bool = False
    log_format: str = "auto"
    log_level: str | None = None

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Order:
        """Back from JSON."""
        return cls(**json.loads(text))
