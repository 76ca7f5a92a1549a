"""Whether Redis is worth asking at the moment.

Owns the back-off of the loop while the server is away, so that steps go on between the tries, and what a refusal means.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import redis
import structlog

log = structlog.get_logger(__name__)

_REFUSES = re.compile(r"\b(LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY)\b")
"""Replies of a server that takes no writes for the moment: its memory or its disk is full, its replicas are missing, or
it is a replica itself. The client has no class of its own for most of them, and puts words in front in a pipeline."""
_IS_FULL = re.compile(r"\bOOM\b")
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0


def is_away(error: redis.RedisError) -> bool:
    """True when the server is not there or refuses everybody: the same call can succeed later."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError):
        return True
    return is_full(error) or (isinstance(error, redis.ResponseError) and bool(_REFUSES.search(str(error))))


def is_full(error: object) -> bool:
    """True when the server's memory is full: it takes nothing but what our scripts need to bring jobs to their ends."""
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return True
    return isinstance(error, redis.ResponseError) and bool(_IS_FULL.search(str(error)))


@contextlib.contextmanager
def while_there_is_memory(what: str) -> Iterator[None]:
    """Around what can be left out: a server whose memory is full refuses it, and work goes on without."""
    try:
        yield
    except redis.RedisError as error:
        if not is_full(error):
            raise
        log.warning("Redis has no memory left; left out", what=what)


class RedisBackoff:
    """The loop's view of the connection."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wait_s = 0.0
        self._ask_at = 0.0

    @property
    def is_up(self) -> bool:
        return self._wait_s == 0.0

    @property
    def is_due(self) -> bool:
        """True when it is time to ask: always while Redis is there."""
        return self._clock() >= self._ask_at

    def lost(self, error: redis.RedisError) -> None:
        """A call failed. Raises the error again when it is not the server's state that is at fault."""
        if not is_away(error):
            raise error
        if self.is_up:
            log.warning("Redis does not answer; steps go on without it", error=str(error))
        self._wait_s = min(_LONGEST_WAIT_S, max(_FIRST_WAIT_S, 2 * self._wait_s))
        self._ask_at = self._clock() + self._wait_s

    def found(self) -> bool:
        """A call succeeded; True when Redis was away before."""
        was_away = not self.is_up
        if was_away:
            log.info("Redis is back")
        self._wait_s = self._ask_at = 0.0
        return was_away
