"""What operators are shown of queues and workers.

Owns these documents and how they are made of what the overview reads. No prompt and no picture is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from app.documents import moment
from app.schemas import Document, ProgressDocument
from workers.contract import JobError, JobView, ModelLoad, Priority
from workers.overview import QueueState, WorkerState


class QueueDocument(Document):
    """Waiting jobs of one model, priority and tenant."""

    model: str
    priority: Priority
    tenant: str
    queued: int
    oldest_job: str = Field(description="The first to start.")
    oldest_wait_s: float
    predicted_s: float | None = Field(
        description="Seconds until all of them are drawn; null while no worker has measured its speed."
    )


class QueueListDocument(Document):
    """Every queue that has jobs, the longest wait first."""

    suspended: bool = Field(description="`rq suspend` holds all workers back.")
    queues: tuple[QueueDocument, ...]


class HeldJobDocument(Document):
    """A running job in a worker's hands."""

    id: str
    tenant: str
    model: str
    execution: str | None = Field(description="As in the worker's log.")
    request_id: str | None = Field(description="Of its POST, as in the logs.")
    started_at: datetime | None
    progress: ProgressDocument | None
    eta_s: float | None
    deaths: int = Field(description="Workers that died on it without getting any further.")


class WorkerDocument(Document):
    """A worker, what it has in memory and in its hands."""

    name: str
    host: str
    pid: int
    state: Literal["loading", "running", "draining", "silent"] = Field(
        description="`silent`: it has not beaten for so long that its jobs go to others."
    )
    started_at: datetime
    beat_age_s: float = Field(description="Seconds since its last heartbeat.")
    models: dict[str, ModelLoad]
    faults: dict[str, JobError] = Field(description="Models that it could not load, and why.")
    jobs: tuple[HeldJobDocument, ...]
    counters: dict[str, float] = Field(description="What it has counted since it started; of a model after a colon.")


class WorkerListDocument(Document):
    """Every worker that has beaten within the last minutes, by name."""

    workers: tuple[WorkerDocument, ...]


def queue_list_document(is_suspended: bool, queues: Sequence[QueueState]) -> QueueListDocument:
    return QueueListDocument(
        suspended=is_suspended,
        queues=tuple(
            QueueDocument(
                model=queue.model,
                priority=queue.priority,
                tenant=queue.tenant,
                queued=queue.queued,
                oldest_job=queue.oldest_job,
                oldest_wait_s=round(queue.oldest_wait_s, 3),
                predicted_s=None if queue.predicted_s is None else round(queue.predicted_s, 3),
            )
            for queue in queues
        ),
    )


def worker_list_document(workers: Sequence[WorkerState]) -> WorkerListDocument:
    return WorkerListDocument(workers=tuple(map(_worker_document, workers)))


def _worker_document(worker: WorkerState) -> WorkerDocument:
    beat = worker.beat
    return WorkerDocument(
        name=beat.name,
        host=beat.host,
        pid=beat.pid,
        state="silent" if worker.is_silent else beat.state,
        started_at=moment(beat.started_at),
        beat_age_s=round(worker.beat_age_s, 3),
        models=beat.models,
        faults=beat.faults,
        jobs=tuple(map(_held_document, worker.jobs)),
        # Without the buckets of histograms, which are for programs: GET /metrics.
        counters={name: count for name, count in sorted(beat.counters.items()) if "<=" not in name},
    )


def _held_document(view: JobView) -> HeldJobDocument:
    record, progress = view.record, view.progress
    return HeldJobDocument(
        id=record.id,
        tenant=record.submission.tenant,
        model=record.submission.request.model,
        execution=record.execution,
        request_id=record.submission.request_id,
        started_at=None if record.started_at is None else moment(record.started_at),
        progress=ProgressDocument(step=progress.step, steps=progress.steps) if progress else None,
        eta_s=None if view.eta_s is None else round(view.eta_s, 3),
        deaths=record.deaths,
    )
