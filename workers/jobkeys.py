"""Where one job lies in Redis, and how its record is written there.

Owns the list of keys that the scripts work on (RQ's and ours) and the encoding of the record. Decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import structlog
from rq import Queue
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.registry import CanceledJobRegistry, StartedJobRegistry

from workers.contract import (
    FIRST_VERSION,
    JobRecord,
    Outcome,
    Progress,
    Submission,
    is_newer,
    key,
    needed_version,
    queue_name,
)

log = structlog.get_logger(__name__)

SERIALIZER = "json"
"""RQ's name for it. Nothing from Redis is ever unpickled."""
_FOR_SCRIPTS = frozenset({"tenant", "companions", "deadline"})
"""Fields of the hash that are no part of the record."""
_UNREADABLE = (ValueError, RecursionError)
"""What reading raises, ValidationError and UnicodeDecodeError among them."""
_VERSION = re.compile(rb"[0-9]{1,9}")
JOB_FUNCTION = "workers.worker.draw"
"""What RQ calls the job. A name only: our worker never imports it."""


class JobKeys(NamedTuple):
    """KEYS of every script about one job; the same order as in `workers.scripts`."""

    rq_job: str
    record: str
    queue: str
    intermediate: str
    lease: str
    canceled: str
    progress: str
    preview: str
    costs: str
    tenant_index: str
    gone: str
    events: str
    queues: str
    doorbell: str
    suspects: str
    ended: str
    urgent: str
    webhook: str
    webhooks: str


def job_keys(record: JobRecord) -> JobKeys:
    """The keys of a job; its model, tenant and priority say where."""
    return keys_of(record.id, record.submission.request.model, record.submission.tenant, record.queue)


def keys_of(job_id: str, model: str, tenant: str, queue: str) -> JobKeys:
    """The keys of a job whose record may be unreadable. `queue`: the name of its RQ queue."""
    return JobKeys(
        rq_job=Job.key_for(job_id),
        record=key("job", job_id),
        queue=queue_key(queue),
        intermediate=intermediate_key(queue),
        lease=lease_key(queue),
        canceled=CanceledJobRegistry.key_template.format(queue),
        progress=key("progress", job_id),
        preview=key("preview", job_id),
        costs=key("costs", model),
        tenant_index=key("jobs", tenant),
        gone=key("gone", job_id),
        events=key("events"),
        queues=key("queues", model),
        doorbell=key("doorbell", model),
        suspects=key("suspects", model),
        ended=key("ended", model),
        urgent=key("urgent", queue),
        webhook=key("webhook", job_id),
        webhooks=key("webhooks"),
    )


def queue_key(name: str) -> str:
    """RQ's list of the queued job ids."""
    return f"{Queue.redis_queue_namespace_prefix}{name}"


def intermediate_key(name: str) -> str:
    """RQ's list of job ids that a worker popped and has not started."""
    return IntermediateQueue.get_intermediate_queue_key(queue_key(name))


def lease_key(name: str) -> str:
    """RQ's StartedJobRegistry: `<job>:<execution>` by the time its lease ends."""
    return StartedJobRegistry.key_template.format(name)


def idempotency_key(tenant: str, idempotency: str) -> str:
    """The client's key is hashed: it may hold anything."""
    return key("idempotency", tenant, hashlib.sha256(idempotency.encode()).hexdigest())


def new_record(job_id: str, submission: Submission, created_at: float, cost: float) -> JobRecord:
    request = submission.request
    return JobRecord(
        id=job_id,
        submission=submission,
        created_at=created_at,
        queue=queue_name(request.model, submission.priority, submission.tenant),
        cost=cost,
        contract_version=needed_version(submission),
    )


def text(raw: Any) -> str:
    """A string that Redis returned: our clients get bytes, which the client's types do not know."""
    return raw.decode() if isinstance(raw, bytes) else str(raw)


def record_fields(record: JobRecord, companions: Iterable[str] = ()) -> dict[Any, Any]:
    """The hash of a new record. `tenant` is repeated outside the submission for the scripts.

    `companions`: keys of strings that end with the job's id and expire when its record does.
    """
    urgent = {} if record.submission.deadline_s is None else {"deadline": repr(record.deadline)}
    return urgent | {
        "id": record.id,
        "tenant": record.submission.tenant,
        "submission": record.submission.model_dump_json(),
        "created_at": repr(record.created_at),
        "queue": record.queue,
        "cost": repr(record.cost),
        "contract_version": str(record.contract_version),
        "companions": "\n".join(companions),
    }


def read_record(fields: Mapping[Any, Any]) -> JobRecord | None:
    """The record in a hash as Redis returns it; None for an empty one, and for one that this version cannot read."""
    if b"submission" not in fields:
        return None
    try:
        return _parse_record(fields)
    except _UNREADABLE as error:
        if not needs_newer(fields.get(b"contract_version")):
            job = fields.get(b"id", b"").decode(errors="replace")
            log.error("a record cannot be read", job=job, error=str(error))
        return None


def needs_newer(version: Any) -> bool:
    """Whether a record's `contract_version`, as Redis returns it, is one that is not ours to draw or to judge."""
    written = _VERSION.fullmatch(version or b"")
    return is_newer(int(written[0]) if written else FIRST_VERSION)


def _parse_record(fields: Mapping[Any, Any]) -> JobRecord:
    given = {text(name): text(value) for name, value in fields.items()}
    values: dict[str, Any] = {name: value for name, value in given.items() if name not in _FOR_SCRIPTS}
    values["submission"] = Submission.read(given["submission"])
    if "warnings" in given:
        values["warnings"] = json.loads(given["warnings"])
    if "outcome" in given:
        values["outcome"] = Outcome.read(given["outcome"])
    return JobRecord.model_validate(values, extra="ignore")


def read_progress(fields: Mapping[Any, Any]) -> Progress | None:
    """The progress in a hash as Redis returns it; None for an empty one, and for one that says nothing readable."""
    if not fields:
        return None
    try:
        return Progress.model_validate({text(name): text(value) for name, value in fields.items()}, extra="ignore")
    except _UNREADABLE as error:
        log.error("progress cannot be read", error=str(error))
        return None
