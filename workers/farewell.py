"""The end of a worker that was told to end: everything is handed over at once, whatever the loop is busy with.

Owns the thread that hears SIGTERM and SIGINT and the order of what happens then. Waits for no call of the network: the
last step that was committed is saved, the jobs go back to the front of their queues, and the process ends.

    signal ─> what is in flight: saved ─> what is all but written: committed ─> the rest: handed back ─> exit 0

The loop is stopped by its lock. Where that is not to be had at once (it loads a model, or Redis is silent) the loop is
not waited for: whoever may end or take a job is decided in Redis (`workers.scripts`), and two threads of one worker
race for it like two workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import redis
import structlog

from workers.assembly import WorkerParts
from workers.held_jobs import HeldJobs

log = structlog.get_logger(__name__)

GRACE_S = 3.0
"""Seconds until the jobs are handed back, whatever could not be saved by then."""
_LONGEST_S = 4.8
"""Then the process ends, whatever it is about; others find its jobs when their leases end."""
_LOCK_S = 1.0
_WRITING_S = 1.0
"""In which pictures that are being written may be finished."""


class Farewell:
    """Listens from `listen` on. `lock`: held by the loop except in a call of the engine, and while it waits."""

    def __init__(self, parts: WorkerParts, jobs: HeldJobs, lock: threading.Lock) -> None:
        self._parts = parts
        self._jobs = jobs
        self._lock = lock
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="farewell", daemon=True)
        self.has_begun = False
        """The loop must not go on."""

    def listen(self) -> None:
        """Call from the main thread, with Python handlers for the signals installed."""
        # Python's own handlers run in the main thread, after the call that it is in; this one writes at once.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def wait(self) -> None:
        """Until the process has ended."""
        self._thread.join()

    def _run(self) -> None:
        while self._reader.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        self.has_begun = True
        last_moment = threading.Timer(_LONGEST_S, os._exit, (0,))  # Redis may hold each of the calls for seconds
        last_moment.daemon = True
        last_moment.start()
        self._parts.wake.set()
        try:
            self._hand_over(time.monotonic() + GRACE_S)
        except Exception:  # noqa: BLE001 (the boundary of the process: what was not handed back is found by others)
            log.exception("the hand-over failed")
        sys.stderr.flush()
        os._exit(0)

    def _hand_over(self, until: float) -> None:
        is_alone = self._lock.acquire(timeout=_LOCK_S)  # and never released
        self._parts.snapshots.save_now(self._jobs.all, until)
        if is_alone:
            with _unless_redis_is_away():
                self._jobs.finish_writing(time.monotonic() + _WRITING_S)
        with _unless_redis_is_away():
            self._jobs.hand_back(is_blamed=False)
        with _unless_redis_is_away():
            self._parts.heartbeat.stop(timeout_s=0.5)
        with _unless_redis_is_away():
            self._parts.rq.teardown()


@contextlib.contextmanager
def _unless_redis_is_away() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        log.warning("Redis does not answer; others find the jobs when their leases end", error=str(error))
