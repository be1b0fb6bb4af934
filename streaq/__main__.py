"""``python -m streaq`` is the command line."""

from __future__ import annotations

from streaq.cli import main

if __name__ == "__main__":
    main()
