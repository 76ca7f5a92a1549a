"""What a tenant has chosen to hold for its later requests, such as the model that a dialect draws with.

Owns these choices in Redis: a name and a text each, forgotten when the tenant has not asked for them for a month. Knows
nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from workers.contract import key
from workers.jobkeys import text

CHOICE_TTL_S = 30 * 24 * 3600
"""Since the last use."""


class Choices:
    """The choices of all tenants of one Redis. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def of(self, tenant: str) -> dict[str, str]:
        """Name -> what this tenant has chosen last."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(key("choices", tenant))
            pipe.expire(key("choices", tenant), CHOICE_TTL_S)
            chosen, _ = pipe.execute()
        return {text(name): text(value) for name, value in chosen.items()}

    def keep(self, tenant: str, chosen: Mapping[str, str]) -> None:
        """Holds these from now on; others stay."""
        mapping: dict[Any, Any] = dict(chosen)
        with self._redis.pipeline() as pipe:
            pipe.hset(key("choices", tenant), mapping=mapping)
            pipe.expire(key("choices", tenant), CHOICE_TTL_S)
            pipe.execute()
