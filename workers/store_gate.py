"""Whether this worker may take jobs, as far as its store goes.

Owns what follows once a store has refused a job for longer than the worker is patient. The job goes back to its queue,
where a worker with a sound store may find it; this one takes no others until a file has got through, or it would draw
the same pictures over and over for a disk that stays full. Knows no jobs and no Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog

log = structlog.get_logger(__name__)

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
"""Between two tries."""


class StoreGate:
    """Open until it is shut; the loop's thread owns it. `try_store` writes something and removes it again."""

    def __init__(self, try_store: Callable[[], Future[None]], clock: Callable[[], float] = time.monotonic) -> None:
        self._try_store = try_store
        self._clock = clock
        self._trial: Future[None] | None = None
        self._wait_s = _FIRST_WAIT_S
        self._try_at = 0.0
        self.is_open = True

    def shut(self) -> None:
        """The store has refused for too long."""
        if self.is_open:
            log.error("the store refuses for too long; no more jobs are taken until it does not")
            self.is_open, self._wait_s = False, _FIRST_WAIT_S
            self._try_at = self._clock() + self._wait_s

    def keep_up(self) -> None:
        """Try the store when it is time to; open when it took the file."""
        if self.is_open:
            return
        if self._trial is None:
            if self._clock() >= self._try_at:
                self._trial = self._try_store()
        elif self._trial.done():
            error, self._trial = self._trial.exception(), None
            if error is None:
                log.info("the store takes files again")
                self.is_open = True
            else:
                self._wait_s = min(_LONGEST_WAIT_S, 2 * self._wait_s)
                self._try_at = self._clock() + self._wait_s
