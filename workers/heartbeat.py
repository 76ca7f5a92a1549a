"""The heartbeat: leases renewed and the worker's status published, whatever the loop is busy with.

Owns the thread that beats. It renews what the loop holds, writes RQ's and our own sign of life, and tells the loop what
became of its leases. One step on a slow device, or the loading of a model, may take longer than a lease; so beating
cannot be the loop's own task. But a loop that has not ticked for `stall_s` counts as hung, and then the beating stops
so that others take its jobs.
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import Protocol

import redis
import structlog
from redis.client import Pipeline

from workers import scripts
from workers.contract import WorkerBeat, key
from workers.held_job import Lease
from workers.lease import Leases, Verdict

log = structlog.get_logger(__name__)

_RETRY_S = 0.5
"""Between tries while Redis is away."""


class SignOfLife(Protocol):
    """Who is alive."""

    def beat(self, pipe: Pipeline) -> None:
        """Adds to `pipe` what tells RQ's tools that this worker lives."""


class Heartbeat:
    """Beats every `beat_s` seconds from its own thread between `start` and `stop`."""

    def __init__(self, client: redis.Redis, leases: Leases, sign: SignOfLife, beat_s: float, stall_s: float) -> None:
        self._redis = client
        self._leases = leases
        self._publish = client.register_script(scripts.BEAT)
        self._sign = sign
        self._beat_s = beat_s
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._kept: dict[str, Lease] = {}
        self._status: WorkerBeat | None = None
        self._ticked_at = time.monotonic()
        self._verdicts: SimpleQueue[tuple[Lease, Verdict]] = SimpleQueue()
        self._wake = threading.Event()
        self._is_stopping = False
        self._is_silent = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    # --- the loop's side ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """No beat after this; takes the worker's status back."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._status:
            self._redis.hdel(key("workers"), self._status.name)

    def ticked(self) -> None:
        """The loop is alive."""
        self._ticked_at = time.monotonic()

    def keep(self, lease: Lease) -> None:
        with self._lock:
            self._kept[lease.job_id] = lease

    def drop(self, lease: Lease) -> None:
        """Stop renewing this lease; a newer one of the same job stays."""
        with self._lock:
            if self._kept.get(lease.job_id) is lease:
                del self._kept[lease.job_id]

    def publish(self, status: WorkerBeat) -> None:
        """What the next beats publish; their time is filled in."""
        self._status = status

    def tell(self) -> None:
        """Publish the status at once: forecasts live on it, and the next beat may be seconds away. Raises what Redis
        raises."""
        if self._status:
            self._publish(keys=[key("workers")], args=[self._status.name, self._status.model_dump_json()])

    def hurry(self) -> None:
        """Beat now, and not when it is time."""
        self._wake.set()

    def verdicts(self) -> list[tuple[Lease, Verdict]]:
        """Leases that are not ours any more, since the last call."""
        found: list[tuple[Lease, Verdict]] = []
        while True:
            try:
                found.append(self._verdicts.get_nowait())
            except Empty:
                return found

    # --- the thread's side --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = 0.0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._is_stopping:
                return
            try:
                self._beat()
                pause = self._beat_s
            except redis.RedisError as error:
                log.warning("no heartbeat: Redis does not answer", error=str(error))
                pause = min(_RETRY_S, self._beat_s)

    def _beat(self) -> None:
        if time.monotonic() - self._ticked_at > self._stall_s:
            if not self._is_silent:
                log.error("the loop hangs; its jobs are left to others", stall_s=self._stall_s)
            self._is_silent = True
            return
        self._is_silent = False
        with self._lock:
            leases = list(self._kept.values())
        with self._redis.pipeline(transaction=False) as pipe:
            self._sign.beat(pipe)
            if self._status:
                status = self._status.model_copy(update={"beat_at": time.time()})
                self._publish(keys=[key("workers")], args=[status.name, status.model_dump_json()], client=pipe)
            verdicts = self._leases.renew(leases, pipe)
        for lease, verdict in zip(leases, verdicts, strict=True):
            if verdict != "held":
                self.drop(lease)
                self._verdicts.put((lease, verdict))
