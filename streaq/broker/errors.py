"""What a call of the broker may raise, so that other rooms need not import redis-py for a name."""

from __future__ import annotations

from redis.exceptions import RedisError, ResponseError

__all__ = ["RedisError", "ResponseError"]
