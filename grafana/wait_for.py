# ruff: noqa: INP001, S310, T201 - a script in a container, asked for addresses of our own
"""Waits until every address answers 200, for services that have no shell to check themselves in."""

from __future__ import annotations

import sys
import time
from http import HTTPStatus
from urllib.error import URLError
from urllib.request import urlopen

PATIENCE_S = 120.0


def answers(url: str) -> bool:
    """Whether ``url`` answers with success now."""
    try:
        with urlopen(url, timeout=3) as answer:
            return answer.status == HTTPStatus.OK
    except (URLError, OSError):
        return False


def main(urls: list[str]) -> int:
    """Ask every second until all answer; 1 when one of them does not in two minutes."""
    end = time.monotonic() + PATIENCE_S
    missing = urls
    while missing := [url for url in missing if not answers(url)]:
        if time.monotonic() > end:
            print("no answer from", *missing, file=sys.stderr)
            return 1
        time.sleep(1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
