"""What workers tell each other about memory.

Owns the `ceilings` hash: who reads it when, and how a ceiling is written there. What a ceiling means, and which of two
counts, is `models.ceiling`'s. A worker writes whatever it knows better than the hash, so a write that another one
overtook, or a server that was emptied, is made good at the next look.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple

import redis
import structlog

from models.ceiling import CallKind, Ceiling, lower_of
from workers.contract import CEILING_TTL_S, key
from workers.jobkeys import text
from workers.protocols import Engine

log = structlog.get_logger(__name__)

LOOK_S = 0.2
"""Between two looks at what others learnt. What is learnt here is told at once."""


class Ceilings:
    """The exchange of one worker. `clock`: unix seconds, as the engine's."""

    def __init__(self, client: redis.Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = client
        self._clock = clock
        self._shared: dict[CallKind, Ceiling] = {}
        """At the last look."""
        self._look_at = 0.0

    def exchange(self, engine: Engine) -> None:
        """Take over what others learnt, when it is time to, and tell what this engine knows better.

        Raises what Redis raises; may be repeated.
        """
        if time.monotonic() < self._look_at and not self._news(engine):
            return
        self._shared = self._read()
        self._look_at = time.monotonic() + LOOK_S
        engine.learn(self._shared.values())
        news = self._news(engine)
        if news:
            log.info("telling others what memory suffices for", ceilings=len(news))
            self._write(news)

    def _news(self, engine: Engine) -> list[Ceiling]:
        return [
            ceiling
            for ceiling in engine.learnt()
            if (shared := self._shared.get(ceiling.kind)) != ceiling
            and (shared is None or lower_of(ceiling, shared) == ceiling)
        ]

    def _read(self) -> dict[CallKind, Ceiling]:
        fields = self._redis.hgetall(key("ceilings"))
        found = [(field, read_ceiling(field, value)) for field, value in fields.items()]
        oldest = self._clock() - CEILING_TTL_S
        old = [field for field, ceiling in found if ceiling and ceiling.since < oldest]
        if old:
            self._redis.hdel(key("ceilings"), *old)
        return {ceiling.kind: ceiling for _, ceiling in found if ceiling and ceiling.since >= oldest}

    def _write(self, ceilings: Sequence[Ceiling]) -> None:
        with self._redis.pipeline() as pipe:
            for ceiling in ceilings:
                pipe.hset(key("ceilings"), *ceiling_field(ceiling))
            pipe.expire(key("ceilings"), CEILING_TTL_S)
            pipe.execute()
        self._shared |= {ceiling.kind: ceiling for ceiling in ceilings}


def ceiling_field(ceiling: Ceiling) -> tuple[str, str]:
    """Name and value of a ceiling in the hash: JSON lists of the kind's fields, and of rows and since when."""
    return json.dumps(astuple(ceiling.kind)), json.dumps([ceiling.rows, ceiling.since])


def read_ceiling(field: bytes | str, value: bytes | str) -> Ceiling | None:
    """A ceiling as Redis returns it; None for what another version wrote."""
    try:
        model, shape, context_length, is_strict, device, dtype = json.loads(text(field))
        rows, since = json.loads(text(value))
        kind = CallKind(str(model), tuple(shape), int(context_length), bool(is_strict), str(device), str(dtype))
        return Ceiling(kind, int(rows), float(since))
    except (ValueError, TypeError):
        return None
