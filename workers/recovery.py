"""Looking after jobs that nobody holds.

Owns the periodic round that finds jobs of dead workers and queues them again, gives jobs that were ended with RQ's
tools their outcome, and drops what is empty or old. The list of jobs that have not ended (`costs:<model>`) is the
measure: each of them is in a queue, in a worker's hands, or found here.

RQ has such a clean-up too; ours decides in one atomic step per job, acts within a lease instead of a minute, and
burns no retries. Both may run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import redis
import structlog
from rq import Queue
from rq.registry import CanceledJobRegistry, FailedJobRegistry, FinishedJobRegistry

from workers import scripts
from workers.board import JobBoard
from workers.contract import JobRecord, is_queue_of, key
from workers.forecast import beat_time
from workers.jobkeys import intermediate_key, job_keys, lease_key, queue_key, read_record, text
from workers.redis_backoff import while_there_is_memory
from workers.settings import WorkerSettings
from workers.tidying import Tidying

log = structlog.get_logger(__name__)

FORGET_BEAT_S = 600.0
"""A worker that has been silent for so long leaves the `workers` hash."""
_STALE_LEASE_S = 60.0
"""An expired lease that nothing refers to any more is dropped after this."""


class Recovery:
    """The rounds of one worker over the queues of its models."""

    def __init__(
        self,
        client: redis.Redis,
        board: JobBoard,
        settings: WorkerSettings,
        models: Callable[[], Sequence[str]],
        tell_rq: Callable[[JobRecord], None],
    ) -> None:
        """`models` names those of this worker now; `tell_rq` finishes in RQ a job that has an outcome."""
        self._redis = client
        self._board = board
        self._models = models
        self._interval_s = settings.maintenance_interval_s
        self._age_s = settings.recovery_age_s
        self._tell_rq = tell_rq
        self._recover = client.register_script(scripts.RECOVER)
        self._forget = client.register_script(scripts.FORGET_QUEUE)
        self._tidying = Tidying(client)

    def run(self) -> int:
        """One round over each model nobody else has just looked after; returns how many jobs were queued again.

        The workers of a model share its rounds; each model has its own, since not every worker serves all of them.
        """
        recovered = 0
        with while_there_is_memory("a look for lost jobs"):
            recovered = sum(self._look_after(model) for model in self._models() if self._is_ours_now(model))
            self._tidying.run()
        self._forget_silent_workers()
        return recovered

    def _is_ours_now(self, model: str) -> bool:
        # A little less than the interval: whoever comes first after it makes the next round.
        return bool(self._redis.set(key("recovery", model), 1, nx=True, px=max(1, int(self._interval_s * 900))))

    def _look_after(self, model: str) -> int:
        names = self._queue_names(model)
        with self._redis.pipeline() as pipe:
            pipe.hkeys(key("costs", model))
            for name in names:
                pipe.lrange(queue_key(name), 0, -1)
            unfinished, *queues = pipe.execute()
        queued = {job_id for ids in queues for job_id in ids}
        astray = [text(job_id) for job_id in unfinished if job_id not in queued]
        recovered = self._find(model, astray)
        now = self._server_time()
        for name in names:
            self._tell_of_ended(name, now)
            self._board.fail_overdue(name, now)
            self._drop_strays(name)
            self._tidy(model, name, now)
        return recovered

    def _find(self, model: str, job_ids: Sequence[str]) -> int:
        """Look at each job that is in no queue; returns how many were queued again."""
        records = self._read(job_ids)
        for job_id in set(job_ids) - {record.id for record in records}:
            self._settle_unreadable(model, job_id)
        with self._redis.pipeline(transaction=False) as pipe:
            for record in records:
                args: list[str | float] = [record.id, record.queue, self._age_s]
                self._recover(keys=list(job_keys(record)), args=args, client=pipe)
            verdicts = [text(raw) for raw in pipe.execute()]
        for record, verdict in zip(records, verdicts, strict=True):
            if verdict == "recovered":
                log.warning(
                    "a job was left behind and is queued again",
                    job=record.id,
                    execution=record.execution,
                    request_id=record.submission.request_id,
                )
            elif verdict == "foreign":
                self._board.reconcile(record.id)
        return verdicts.count("recovered")

    def _settle_unreadable(self, model: str, job_id: str) -> None:
        """A job on the list of unfinished ones without a readable record: erased, damaged, or for a newer version to
        look after."""
        queue = self._redis.hget(key("job", job_id), "queue")
        if queue is None or not self._board.fail_unreadable(job_id, model, text(queue)):
            self._redis.hdel(key("costs", model), job_id)

    def _read(self, job_ids: Sequence[str]) -> list[JobRecord]:
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(key("job", job_id))
            records = [read_record(fields) for fields in pipe.execute()]
        return [record for record in records if record is not None]

    def _queue_names(self, model: str) -> list[str]:
        """Our own set, and what RQ knows besides: its tools may have filled a queue that we had forgotten."""
        prefix = Queue.redis_queue_namespace_prefix
        known = {text(raw) for raw in self._redis.smembers(key("queues", model))}
        of_rq = {text(raw).removeprefix(prefix) for raw in self._redis.smembers(Queue.redis_queues_keys)}
        strays = sorted(name for name in of_rq - known if is_queue_of(name, model))
        with self._redis.pipeline(transaction=False) as pipe:
            for name in strays:
                pipe.llen(queue_key(name))
            filled = [name for name, length in zip(strays, pipe.execute(), strict=True) if length]
        if filled:
            self._redis.sadd(key("queues", model), *filled)
        return sorted(known | set(filled))

    def _tell_of_ended(self, name: str, now: float) -> None:
        """Finish in RQ what its worker committed and then died: the lease ran out and the record has an outcome."""
        members = [text(raw) for raw in self._redis.zrangebyscore(lease_key(name), 0, now)]
        records = {record.id: record for record in self._read([member.split(":")[0] for member in members])}
        for member in members:
            record = records.get(member.split(":")[0])
            # Whoever removes the member does it; nobody else.
            if record and record.outcome and self._redis.zrem(lease_key(name), member):
                self._tell_rq(record)

    def _drop_strays(self, name: str) -> None:
        """Take ids without a record (erased meanwhile) out of the intermediate list."""
        ids = [text(raw) for raw in self._redis.lrange(intermediate_key(name), 0, -1)]
        for job_id in ids:
            if not self._board.is_known(job_id):
                self._redis.lrem(intermediate_key(name), 0, job_id)

    def _tidy(self, model: str, name: str, now: float) -> None:
        """Trim RQ's registries of a queue by age, and forget the queue when nothing is in it."""
        retention_s = self._board.retention_s
        oldest = {FinishedJobRegistry: now, FailedJobRegistry: now, CanceledJobRegistry: now - retention_s}
        with self._redis.pipeline(transaction=False) as pipe:
            for registry, limit in oldest.items():
                registry_key = registry.key_template.format(name)
                pipe.zremrangebyscore(registry_key, 0, limit)
                pipe.expire(registry_key, 2 * retention_s)  # a forgotten queue is not trimmed any more
            pipe.zremrangebyscore(lease_key(name), 0, now - _STALE_LEASE_S)
            pipe.execute()
        keys = [key("queues", model), queue_key(name), intermediate_key(name), lease_key(name)]
        self._forget(keys=keys, args=[name])

    def _server_time(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def _forget_silent_workers(self) -> None:
        oldest = time.time() - FORGET_BEAT_S
        for name, raw in self._redis.hgetall(key("workers")).items():
            beat_at = beat_time(raw)
            if beat_at is None or beat_at < oldest:
                self._redis.hdel(key("workers"), name)
