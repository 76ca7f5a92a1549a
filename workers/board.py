"""The board of jobs: what an API process reads and writes in Redis.

Owns submitting, looking up, listing, canceling and erasing jobs, and what is known of the workers. Synchronous and
thread-safe; knows no HTTP, no files, no torch. Changes that others could race for are scripts (`workers.scripts`) or
one transaction.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import redis
from pydantic import ValidationError
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.command import send_command
from rq.exceptions import NoSuchJobError
from rq.job import Job, Retry

from models.errors import DeadlineExceeded
from workers import scripts
from workers.connection import misgivings
from workers.contract import (
    ENDED,
    EVENT_STREAM_LENGTH,
    PRIORITIES,
    RETENTION_S,
    WISH_TTL_S,
    JobError,
    JobRecord,
    JobView,
    ModelEntry,
    Outcome,
    Priority,
    Status,
    Submission,
    Timings,
    Wish,
    WorkerBeat,
    created_at_of,
    key,
    new_job_id,
    predict_cost,
    queue_name,
)
from workers.forecast import Forecast, oldest_wait_s
from workers.jobkeys import (
    JOB_FUNCTION,
    SERIALIZER,
    idempotency_key,
    job_keys,
    keys_of,
    needs_newer,
    new_record,
    queue_key,
    record_fields,
    text,
)
from workers.turns import Lookout
from workers.views import older_ids, read_views
from workers.webhooks import LOOK_S, new_webhook

DURABLE_WITHIN_S = 4.0
"""A server that syncs once a second answers in one; below the client's own timeout."""
_RETRIES = 1000
"""RQ's own clean-up queues an abandoned job again while it has retries left; how often it may die is our decision."""
_FOREIGN_ENDINGS = {
    None: ("canceled", None),  # the RQ job was deleted
    "canceled": ("canceled", None),
    "stopped": ("canceled", None),
    "failed": ("failed", "The job was failed by a tool of the queue, outside of this server."),
    "finished": ("failed", "The job was finished by a tool of the queue, outside of this server."),
}


@dataclass(frozen=True)
class Idempotency:
    """A client's Idempotency-Key and the digest of the body it came with."""

    key: str
    body_digest: str


class IdempotencyConflict(Exception):
    """The key was used before with another body."""


class NotDurable(Exception):
    """The server did not say in time that its log is on disk."""


@dataclass(frozen=True)
class QueueDepth:
    """Queued jobs of one (model, priority), for metrics."""

    queued: int
    oldest_wait_s: float
    """Of the job that has waited longest; 0 when there is none."""


@dataclass(frozen=True)
class EndedCounts:
    """Ended jobs of one model by status, and the failed ones by their code, for metrics."""

    by_status: dict[str, int]
    by_code: dict[str, int]


class JobBoard:
    """All jobs of one Redis. `retention_s`: how long ended ones are kept; `job_timeout_s`: how long one may run."""

    def __init__(self, redis: redis.Redis, *, retention_s: int = RETENTION_S, job_timeout_s: int = 3600) -> None:
        self._redis = redis
        self.retention_s = retention_s
        self._job_timeout_s = job_timeout_s
        self._end = redis.register_script(scripts.END)
        self._erase = redis.register_script(scripts.ERASE)
        self._forecast = Forecast(redis)

    # --- submit -------------------------------------------------------------------------------------------------------

    def submit(
        self,
        submission: Submission,
        entry: ModelEntry,
        job_id: str | None = None,
        idempotency: Idempotency | None = None,
        uploads: tuple[str, ...] = (),
    ) -> tuple[JobView, bool]:
        """Queue a job in one transaction; returns its view and whether it is new.

        `job_id`: the id under which uploads (their digests in `uploads`) are in the store already. With an
        idempotency key that was seen, the earlier job is returned and nothing is written; raises IdempotencyConflict
        when it came with another body.
        """
        created_at = time.time()
        record = new_record(job_id or new_job_id(), submission, created_at, predict_cost(submission.request, entry))
        earlier = None
        with self._redis.pipeline() as pipe:
            while True:
                pipe.watch(job_keys(record).record)
                if pipe.exists(job_keys(record).record):
                    break  # our transaction went through and only its answer was lost
                if idempotency:
                    pipe.watch(idempotency_key(submission.tenant, idempotency.key))
                    earlier = self._earlier(submission.tenant, idempotency)
                    if earlier:
                        break
                pipe.multi()
                self._write_submission(pipe, record, idempotency, uploads)
                try:
                    pipe.execute()
                    break
                except WatchError:
                    continue
        view = self.get(earlier or record.id)
        if view is None:  # erased in the same moment
            view = JobView(record=record, status="queued")
        if earlier is None and view.status == "queued" and view.eta_s is not None:
            self._redis.set(key("promise", record.id), f"{view.eta_s:.3f}", ex=self.retention_s)
        return view, earlier is None

    def confirm_durable(self, tenant: str) -> None:
        """Waits until everything written so far is on the server's disk (WAITAOF: Redis 7.2 and later, appendonly yes).

        Raises NotDurable when that is not so within DURABLE_WITHIN_S; the jobs are queued all the same.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            # WAITAOF counts from the last write of its own connection, which is not the one that submitted.
            pipe.expire(key("jobs", tenant), scripts.INDEX_TTL_S + self.retention_s)
            pipe.execute_command("WAITAOF", 1, 0, int(DURABLE_WITHIN_S * 1000))
            _, (synced, _) = pipe.execute()
        if not synced:
            raise NotDurable

    def find_idempotent(self, tenant: str, idempotency: Idempotency) -> JobView | None:
        """The job of an earlier request with this key. Raises IdempotencyConflict when its body was another one."""
        earlier = self._earlier(tenant, idempotency)
        return self.get(earlier) if earlier else None

    def _earlier(self, tenant: str, idempotency: Idempotency) -> str | None:
        stored = self._redis.get(idempotency_key(tenant, idempotency.key))
        if stored is None:
            return None
        digest, job_id = text(stored).split(" ")
        if not self._redis.exists(key("job", job_id)):
            return None  # erased or expired: the key is free again
        if digest != idempotency.body_digest:
            raise IdempotencyConflict(idempotency.key)
        return job_id

    def _write_submission(
        self, pipe: Pipeline, record: JobRecord, idempotency: Idempotency | None, uploads: Iterable[str]
    ) -> None:
        keys, tenant = job_keys(record), record.submission.tenant
        companions = {key("upload", tenant, digest): record.id for digest in uploads}
        if idempotency:
            companions[idempotency_key(tenant, idempotency.key)] = f"{idempotency.body_digest} {record.id}"
        pipe.hset(keys.record, mapping=record_fields(record, companions))
        pipe.zadd(keys.tenant_index, {record.id: created_at_of(record.id) or record.created_at})
        pipe.expire(keys.tenant_index, scripts.INDEX_TTL_S + self.retention_s)
        for companion, value in companions.items():
            pipe.set(companion, value)  # expires with the job: the outcome sets when
        pipe.hset(keys.costs, record.id, repr(record.cost))
        pipe.sadd(keys.queues, record.queue)
        if record.submission.deadline_s is not None:
            pipe.zadd(keys.urgent, {record.id: record.deadline})
            pipe.expire(keys.urgent, scripts.INDEX_TTL_S)
        if record.submission.webhook is not None:
            pipe.hset(keys.webhook, mapping=new_webhook(record.submission.webhook))
            pipe.zadd(keys.webhooks, {record.id: record.created_at + LOOK_S})
        self._enqueue(pipe, record)
        pipe.lpush(keys.doorbell, record.id)
        pipe.ltrim(keys.doorbell, 0, scripts.DOORBELL_LENGTH - 1)
        pipe.expire(keys.doorbell, scripts.DOORBELL_TTL_S)
        pipe.xadd(keys.events, {"job": record.id, "kind": "status"}, maxlen=EVENT_STREAM_LENGTH)

    def _enqueue(self, pipe: Pipeline, record: JobRecord) -> None:
        queue = Queue(record.queue, connection=self._redis, serializer=SERIALIZER)
        request = record.submission.request
        job = queue.create_job(
            JOB_FUNCTION,
            kwargs={"job": record.id},
            job_id=record.id,
            timeout=self._job_timeout_s,
            result_ttl=self.retention_s,
            failure_ttl=self.retention_s,
            retry=Retry(max=_RETRIES, enqueue_at_front=True),
            description=f"{request.task} with {request.model}",  # dashboards show it to others: no prompt
        )
        queue.enqueue_job(job, pipeline=pipe)

    # --- look up ------------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> JobView | None:
        """Everything known of a job, or None when it is unknown, erased or expired.

        A job that was ended with RQ's own tools (deleted, canceled, stopped, failed) gets its outcome here.
        """
        view = self._view(job_id)
        # Running means that RQ says so, too; anything else that has no outcome may have been ended behind our back.
        if view and view.status == "queued" and self._reconcile(view.record):
            view = self._view(job_id)
        return self._forecast.add_places([view])[0] if view else None

    def gone_tenant(self, job_id: str) -> str | None:
        """Tenant of an erased or expired job whose id is still known."""
        if created_at_of(job_id) is None:
            return None
        tenant = self._redis.get(key("gone", job_id))
        return text(tenant) if tenant else None

    def list_jobs(
        self,
        tenant: str,
        *,
        limit: int,
        cursor: str | None = None,
        status: Status | None = None,
        dialect: str | None = None,
    ) -> tuple[list[JobView], str | None]:
        """A page of the tenant's jobs, newest first, and the cursor of the next page (None after the last).

        `cursor`: what the page before returned; ValueError for anything else. `dialect`: only jobs that came in by it.
        """
        index = key("jobs", tenant)
        found: list[JobView] = []
        while len(found) <= limit:
            ids = older_ids(self._redis, index, cursor, limit + 1)
            for job_id, view in zip(ids, read_views(self._redis, ids), strict=True):
                if view is None:
                    if not self.is_known(job_id):  # expired; what another version wrote stays
                        self._redis.zrem(index, job_id)
                elif status in (None, view.status) and dialect in (None, view.record.submission.dialect):
                    found.append(view)
            if len(ids) <= limit:
                break
            cursor = ids[-1]
        page = self._forecast.add_places(found[:limit])
        return page, page[-1].record.id if len(found) > limit else None

    def unended(self, tenant: str) -> list[JobView]:
        """The tenant's jobs that wait or run, oldest first."""
        ids = [job_id for model in self._models() for job_id in self._unended(model)]
        ages = self._redis.zmscore(key("jobs", tenant), ids) if ids else []
        own = sorted(job_id for job_id, age in zip(ids, ages, strict=True) if age is not None)  # ids sort by time
        views = [view for view in read_views(self._redis, own) if view is not None and view.status not in ENDED]
        return self._forecast.add_places(views)

    def preview(self, job_id: str) -> bytes | None:
        """The newest preview of a running job: WebP bytes."""
        raw = self._redis.get(key("preview", job_id))
        return raw if isinstance(raw, bytes) else None

    def upload_holder(self, tenant: str, digest: str) -> str | None:
        """Id of a job of this tenant whose folder in the store holds this upload."""
        holder = self._redis.get(key("upload", tenant, digest))
        if holder is None or not self._redis.exists(key("job", text(holder))):
            return None
        return text(holder)

    def is_known(self, job_id: str) -> bool:
        """True while the job has a record: its files must stay."""
        return bool(self._redis.exists(key("job", job_id)))

    def is_beyond_us(self, job_id: str, tenant: str) -> bool:
        """A job of this tenant that only processes of a newer version can read."""
        owner, version = self._redis.hmget(key("job", job_id), "tenant", "contract_version")
        return owner is not None and text(owner) == tenant and needs_newer(version)

    def _view(self, job_id: str) -> JobView | None:
        return read_views(self._redis, [job_id])[0] if created_at_of(job_id) is not None else None

    # --- ends ---------------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> JobView | None:
        """End a queued or running job as canceled, at once; an ended one stays as it is. None for an unknown job.

        The outcome is written before the worker knows: it drops the job within one step.
        """
        view = self._view(job_id)
        if view is None:
            return None
        if view.record.outcome is None:
            worker_name = self._redis.hget(Job.key_for(job_id), "worker_name") if view.status == "running" else None
            self._end_from_outside(view.record, _canceled(view.record), "canceled")
            if worker_name:
                send_command(self._redis, text(worker_name), "stop-job", job_id=job_id)
        return self._view(job_id)

    def erase(self, job_id: str) -> None:
        """Forget an ended job; its id is remembered as gone. Its files are the caller's to erase (`Store.erase`).

        Raises ValueError while the job has not ended.
        """
        view = self._view(job_id)
        if view is None:
            return
        if view.record.outcome is None:
            raise ValueError("a job that has not ended cannot be erased; cancel it first")
        self._erase(keys=list(job_keys(view.record)), args=[job_id, 2 * self.retention_s])
        self._erase_rq_job(job_id)

    def reconcile(self, job_id: str) -> bool:
        """Write the outcome of a job that was ended with RQ's own tools. True when it is ended now."""
        view = self._view(job_id)
        return view is not None and (view.record.outcome is not None or self._reconcile(view.record))

    def fail_unreadable(self, job_id: str, model: str, queue: str) -> bool:
        """End as failed a job whose record cannot be read, though it needs no newer version than this one.

        False when there is no record at all.
        """
        tenant, version = self._redis.hmget(key("job", job_id), "tenant", "contract_version")
        if tenant is None:
            return False
        if needs_newer(version):
            return True
        error = JobError(code="internal", detail="The job's record in the queue is damaged; send it again.")
        outcome = Outcome(status="failed", error=error, ended_at=time.time())
        keys = keys_of(job_id, model, text(tenant), queue)
        self._end(keys=list(keys), args=[job_id, outcome.model_dump_json(), self.retention_s, "canceled"])
        return True

    def fail_overdue(self, queue: str, now: float) -> int:
        """End the jobs of a queue whose deadline has passed while they waited; returns how many."""
        failed = 0
        for job_id in map(text, self._redis.zrangebyscore(key("urgent", queue), 0, now)):
            view = self._view(job_id)
            if view is None or view.record.outcome is not None:
                self._redis.zrem(key("urgent", queue), job_id)
            elif view.status == "queued":
                error = JobError(code=DeadlineExceeded.code, detail="Its deadline passed while it waited in the queue.")
                outcome = _canceled(view.record).model_copy(update={"status": "failed", "error": error})
                self._end_from_outside(view.record, outcome, "canceled")
                failed += 1
        return failed

    def _reconcile(self, record: JobRecord) -> bool:
        raw = self._redis.hget(Job.key_for(record.id), "status")
        rq_status = text(raw) if raw else None
        if rq_status not in _FOREIGN_ENDINGS:
            return False
        status, detail = _FOREIGN_ENDINGS[rq_status]
        error = JobError(code="internal", detail=detail) if detail else None
        outcome = _canceled(record).model_copy(update={"status": status, "error": error})
        self._end_from_outside(record, outcome, "")
        return True

    def _end_from_outside(self, record: JobRecord, outcome: Outcome, rq_status: str) -> None:
        self._end(keys=list(job_keys(record)), args=[record.id, outcome.model_dump_json(), self.retention_s, rq_status])

    def _erase_rq_job(self, job_id: str) -> None:
        try:
            job = Job.fetch(job_id, connection=self._redis, serializer=SERIALIZER)
        except NoSuchJobError:
            return
        with self._redis.pipeline() as pipe:
            for registry in (job.finished_job_registry, job.failed_job_registry):
                pipe.zrem(registry.key, job_id)
            pipe.zrem(Queue(job.origin, connection=self._redis).canceled_job_registry.key, job_id)
            pipe.delete(job.key, f"rq:results:{job_id}", f"rq:executions:{job_id}")
            pipe.execute()

    # --- queues and workers -------------------------------------------------------------------------------------------

    def catalogue(self) -> dict[str, ModelEntry]:
        """The models that live workers serve, by name; while no worker lives, every model that one has ever published.

        A job for a model that nobody serves any more would wait for ever beside workers that serve others; without any
        worker it waits for the next one. What cannot be read is left out: it cannot be validated against.
        """
        served = {name for beat in self.beats() for name in beat.models}
        found: dict[str, ModelEntry] = {}
        for raw_name, raw in sorted(self._redis.hgetall(key("catalogue")).items()):
            name = text(raw_name)
            if not served or name in served:
                with contextlib.suppress(ValidationError):
                    found[name] = ModelEntry.read(raw)
        return found

    def misgivings(self) -> tuple[str, ...]:
        """What about the Redis server could lose accepted jobs, a sentence each."""
        return misgivings(self._redis)

    def beats(self) -> list[WorkerBeat]:
        """The newest beat of each live worker, by name."""
        return self._forecast.beats()

    def wish(self, model: str, action: Literal["load", "unload"]) -> Wish:
        """Ask every worker of a model to load or to forget its weights; their beats tell when that is done."""
        wish = Wish(id=secrets.token_hex(8), action=action)
        with self._redis.pipeline() as pipe:
            pipe.hset(key("wishes"), model, wish.model_dump_json())
            pipe.expire(key("wishes"), WISH_TTL_S)
            pipe.execute()
        return wish

    def wishes(self) -> dict[str, Wish]:
        """The last wish about each model."""
        found: dict[str, Wish] = {}
        for name, raw in self._redis.hgetall(key("wishes")).items():
            with contextlib.suppress(ValidationError):
                found[text(name)] = Wish.read(raw)
        return found

    def has_unended(self, model: str) -> bool:
        """Some job that needs this model was accepted and has not ended: drawn by it, or enlarged by it afterwards."""
        if self._redis.hlen(key("costs", model)):
            return True
        ids = (job_id for other in self._redis.hkeys(key("catalogue")) for job_id in self._unended(text(other)))
        while some := list(itertools.islice(ids, 500)):
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in some:
                    pipe.hget(key("job", job_id), "submission")
                submissions = [raw for raw in pipe.execute() if raw is not None]
            if any(json.loads(raw)["request"].get("upscaler") == model for raw in submissions):
                return True
        return False

    def _unended(self, model: str) -> list[str]:
        return [text(job_id) for job_id in self._redis.hkeys(key("costs", model))]

    def queued_count(self, tenant: str) -> int:
        """Jobs of a tenant that wait, over all models and priorities."""
        names = [name for queues in self._tenant_queues(tenant).values() for name in queues]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(queue_key(name))
            return sum(pipe.execute())

    def retry_after_s(self, tenant: str, model: str) -> int:
        """Whole seconds until one more job of this tenant fits the queue: when its next job should start.

        From measured speeds; UNKNOWN_RETRY_S when no worker has measured one. A tenant has one limit over all
        models, so the first to start in any of them counts; `model` is looked at even when it is not in the catalogue.
        """
        queues = self._tenant_queues(tenant, model)
        return self._forecast.retry_after_s({name: of for of, names in queues.items() for name in names})

    def queue_depths(self) -> dict[tuple[str, Priority], QueueDepth]:
        """(model, priority) -> queued jobs and the longest wait, of every model in the catalogue."""
        models = self._models()
        _, waiting = Lookout(self._redis).look(models)
        depths: dict[tuple[str, Priority], QueueDepth] = {}
        for model in models:
            for rank, priority in enumerate(PRIORITIES):
                queues = [queue for queue in waiting if queue.model == model and queue.priority == rank]
                wait_s = oldest_wait_s(queue.first for queue in queues)
                depths[model, priority] = QueueDepth(sum(queue.length for queue in queues), wait_s)
        return depths

    def ended_counts(self) -> dict[str, EndedCounts]:
        """Model -> how many of its jobs have ended since the beginning, of every model in the catalogue."""
        models = self._models()
        with self._redis.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hgetall(key("ended", model))
            answers = pipe.execute()
        return {model: _ended_counts(fields) for model, fields in zip(models, answers, strict=True)}

    def _models(self) -> list[str]:
        return sorted(text(raw) for raw in self._redis.hkeys(key("catalogue")))

    def _tenant_queues(self, tenant: str, *models: str) -> dict[str, list[str]]:
        """Model -> names of all queues that this tenant can have."""
        return {
            model: [queue_name(model, priority, tenant) for priority in PRIORITIES]
            for model in dict.fromkeys((*self._models(), *models))
        }


def _ended_counts(fields: Mapping[bytes, bytes]) -> EndedCounts:
    counts = {text(name): int(count) for name, count in fields.items()}
    return EndedCounts(
        by_status={status: counts.get(status, 0) for status in sorted(ENDED)},
        by_code={name.removeprefix("code:"): count for name, count in counts.items() if name.startswith("code:")},
    )


def _canceled(record: JobRecord) -> Outcome:
    """Ended from outside, now. `started_at` is Redis's time and may differ from ours."""
    now = time.time()
    queued_s = max(0.0, (record.started_at or now) - record.created_at)
    timings = Timings(queued_s=queued_s, total_s=max(queued_s, now - record.created_at))
    return Outcome(status="canceled", timings=timings, ended_at=now)
