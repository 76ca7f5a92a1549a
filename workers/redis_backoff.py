"""Whether Redis is worth asking at the moment.

Owns the back-off of the loop while the server is away, so that steps go on between the tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
import structlog

log = structlog.get_logger(__name__)

AWAY = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.OutOfMemoryError, redis.ReadOnlyError)
"""What a client raises while the server is not there, or takes no writes for the moment: full, or a replica that is
being promoted. BusyLoadingError is a ConnectionError."""
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0


class RedisBackoff:
    """The loop's view of the connection."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wait_s = 0.0
        self._ask_at = 0.0
        self.up_since = clock()
        """Since when calls have succeeded."""

    @property
    def is_up(self) -> bool:
        return self._wait_s == 0.0

    @property
    def is_due(self) -> bool:
        """True when it is time to ask: always while Redis is there."""
        return self._clock() >= self._ask_at

    def lost(self, error: Exception) -> None:
        """A call failed."""
        if self.is_up:
            log.warning("Redis does not answer; steps go on without it", error=str(error))
        self._wait_s = min(_LONGEST_WAIT_S, max(_FIRST_WAIT_S, 2 * self._wait_s))
        self._ask_at = self._clock() + self._wait_s

    def found(self) -> bool:
        """A call succeeded; True when Redis was away before."""
        was_away = not self.is_up
        if was_away:
            log.info("Redis is back")
            self.up_since = self._clock()
        self._wait_s = self._ask_at = 0.0
        return was_away
