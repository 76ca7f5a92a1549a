"""Holding a job: who may work on it and who may end it.

Owns the calls of the scripts that decide it, and what they answer. All of them may be repeated after a lost answer.
Knows nothing of engines or RQ's worker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import redis
from redis.client import Pipeline
from redis.commands.core import Script
from rq.executions import ExecutionRegistry
from rq.utils import now

from workers import scripts
from workers.contract import JobRecord, Outcome, key
from workers.held_job import Lease
from workers.jobkeys import keys_of, needs_newer, read_record, text
from workers.redis_backoff import is_full

Verdict = Literal["held", "ended", "lost"]
"""held: ours; ended: the job has an outcome; lost: somebody else may have it."""
Claim = Literal["claimed", "taken", "ended", "untold", "gone"]
"""taken: not queued (a second entry of the same job, or ended with RQ's tools); untold: it has an outcome that RQ does
not know of, and telling it is ours; gone: it has no record."""


class Leases:
    """The leases of one worker. `lease_s`: seconds that one lasts without a heartbeat. Thread-safe."""

    def __init__(self, client: redis.Redis, lease_s: float, retention_s: int) -> None:
        self.lease_s = lease_s
        self._redis = client
        self._retention_s = retention_s
        self._claim = client.register_script(scripts.CLAIM)
        self._renew = client.register_script(scripts.RENEW)
        self._progress = client.register_script(scripts.PROGRESS)
        self._preview = client.register_script(scripts.PREVIEW)
        self._commit = client.register_script(scripts.COMMIT)
        self._hand_back = client.register_script(scripts.HAND_BACK)
        self._put_back = client.register_script(scripts.PUT_BACK)

    def read(self, job_id: str) -> JobRecord | None:
        return read_record(self._redis.hgetall(key("job", job_id)))

    def needs_newer(self, job_id: str) -> bool:
        """Only workers of a newer version may draw this job, or fail it."""
        return needs_newer(self._redis.hget(key("job", job_id), "contract_version"))

    def claim(self, lease: Lease) -> Claim:
        """Make a popped job ours, or take it out of RQ's intermediate list."""
        return _call(self._claim, lease, self.lease_s)  # type: ignore[return-value]

    def put_back(self, job_id: str, model: str, queue: str) -> None:
        """A popped job that was not claimed goes back to the front of its queue; its record need not be readable."""
        self._put_back(keys=list(keys_of(job_id, model, "", queue)), args=[job_id])

    def renew(self, leases: Sequence[Lease], pipe: Pipeline) -> list[Verdict]:
        """One heartbeat of all held jobs, in one round trip; answers in the same order.

        RQ's execution record is written beside it, whole, so that its tools see the job even if it had expired.
        `pipe` may hold commands already; the pipeline must not be a transaction.
        """
        ttl = self.execution_ttl
        before = len(pipe)
        for lease in leases:
            lease.execution.last_heartbeat = now()
            lease.execution.save(ttl=ttl, pipeline=pipe)  # 2 commands
            ExecutionRegistry(lease.job_id, self._redis).add(lease.execution, ttl=ttl, pipeline=pipe)  # 2 commands
            _queue(self._renew, pipe, lease, self.lease_s)
        answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            # RQ's record may be refused for want of memory; ours never is.
            if isinstance(answer, Exception) and not is_full(answer):
                raise answer
        answers = answers[before:]
        return [text(answer) for answer in answers[4::5]]  # type: ignore[misc]

    @property
    def execution_ttl(self) -> int:
        """Whole seconds that RQ's record of an execution outlives its last heartbeat."""
        return max(1, round(self.lease_s))

    def write_progress(
        self, lease: Lease, step: int, steps: int, eta_s: float | None, warnings: tuple[str, ...], pipe: Pipeline
    ) -> None:
        """Adds one call to `pipe`, answering a Verdict. Empty `warnings` leave those of before."""
        eta = "" if eta_s is None else f"{eta_s:.3f}"
        told = json.dumps(warnings) if warnings else ""
        _queue(self._progress, pipe, lease, step, steps, eta, told)

    def write_preview(self, lease: Lease, picture: bytes) -> Verdict:
        """Show a preview: WebP bytes."""
        return _call(self._preview, lease, picture)  # type: ignore[return-value]

    def commit(self, lease: Lease, outcome: Outcome, steps: int) -> Literal["committed", "ended", "lost"]:
        """The commit point: this outcome or none. `steps`: UNet evaluations done, when it succeeded."""
        done = str(steps) if outcome.status == "succeeded" else ""
        written = outcome.model_dump_json()
        return _call(self._commit, lease, self.lease_s, written, self._retention_s, done)  # type: ignore[return-value]

    def hand_back(self, lease: Lease, queue: str, *, is_blamed: bool) -> Literal["queued", "ended", "lost"]:
        """Give a held job back to the front of its queue. Blamed: the next claim counts it as a death."""
        return _call(self._hand_back, lease, queue, "1" if is_blamed else "0")  # type: ignore[return-value]


Argument = str | bytes | int | float


def _call(script: Script, lease: Lease, *args: Argument) -> str:
    return text(script(keys=list(lease.keys), args=[lease.job_id, lease.execution.id, *args]))


def _queue(script: Script, pipe: Pipeline, lease: Lease, *args: Argument) -> None:
    script(keys=list(lease.keys), args=[lease.job_id, lease.execution.id, *args], client=pipe)
