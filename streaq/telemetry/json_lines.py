"""Fields as one line of JSON, by orjson where it is installed (the extra ``fast``): most of what a
line costs is its encoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Encode: TypeAlias = Callable[[Mapping[str, Any]], str]

encode_slowly: Encode = json.JSONEncoder(default=repr, ensure_ascii=False).encode


def make_encoder() -> Encode:
    """What writes fields as JSON; a value that JSON has nothing for is told by its ``repr``."""
    try:
        import orjson
    except ImportError:
        return encode_slowly
    dumps = orjson.dumps
    # Both say the same of a value, so that lines do not depend on what is installed.
    options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

    def encode(fields: Mapping[str, Any]) -> str:
        try:
            return dumps(fields, repr, options).decode()
        except TypeError:  # a whole number of more than 64 bits, a key that is no text
            return encode_slowly(fields)

    return encode
