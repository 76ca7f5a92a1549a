"""JobView and ModelEntry -> the documents that clients see.

Owns the translation, nothing else: no Redis, no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from app.schemas import (
    MAX_PROMPT_CHARACTERS,
    UNDERSTOOD,
    AliasDocument,
    AnyUnderstood,
    ImageDocument,
    JobDocument,
    LimitsDocument,
    LinksDocument,
    ModelDocument,
    ModelFaultDocument,
    ModelOnWorkerDocument,
    ModelStateDocument,
    ProgressDocument,
    WebhookDocument,
)
from workers.contract import ENDED, JobView, ModelEntry, Submission, Timings, Wish, WorkerBeat


def job_path(job_id: str) -> str:
    return f"/jobs/{job_id}"


def job_document(view: JobView) -> JobDocument:
    """The job as its owner sees it."""
    record, outcome = view.record, view.record.outcome
    path = job_path(record.id)
    progress = view.progress
    return JobDocument(
        id=record.id,
        task=record.submission.request.task,
        status=view.status,
        queue_position=view.queue_position,
        progress=ProgressDocument(step=progress.step, steps=progress.steps) if progress else None,
        eta_s=round(view.eta_s, 3) if view.eta_s is not None and view.status not in ENDED else None,
        warnings=(*record.warnings, *((_NEEDS_NEWER,) if view.needs_newer_worker else ())),
        images=tuple(
            ImageDocument(
                url=f"{path}/images/{index}",
                seed=picture.seed,
                width=picture.width,
                height=picture.height,
                sha256=picture.sha256,
            )
            for index, picture in enumerate(outcome.pictures if outcome else ())
        ),
        reproducibility=outcome.reproducibility if outcome else None,
        replay=outcome.replay if outcome else None,
        resumed_from_step=outcome.resumed_from_step if outcome else None,
        error=outcome.error if outcome else None,
        timings=outcome.timings if outcome else Timings(),
        created_at=moment(record.created_at),
        started_at=moment(record.started_at) if record.started_at is not None else None,
        ended_at=moment(outcome.ended_at) if outcome else None,
        request=understood(record.submission),
        webhook=_webhook_document(view),
        links=LinksDocument(self=path, events=f"{path}/events"),
    )


def _webhook_document(view: JobView) -> WebhookDocument | None:
    webhook, state = view.record.submission.webhook, view.webhook
    if webhook is None or state is None:
        return None
    is_retried = state.end is None and state.failures > 0 and state.next_at is not None
    return WebhookDocument(
        url=webhook.url,
        events=webhook.events,
        state=state.end or "active",
        failed_attempts=state.failures,
        last_attempt_at=moment(state.last_at) if state.last_at is not None else None,
        last_status=state.last_status,
        last_error=state.last_error,
        next_attempt_at=moment(state.next_at) if is_retried and state.next_at is not None else None,
    )


def understood(submission: Submission) -> AnyUnderstood:
    """The request as it can be sent again."""
    return UNDERSTOOD.validate_python(
        {
            **submission.request.model_dump(),
            **submission.delivery.model_dump(),
            "priority": submission.priority,
            "deadline_s": submission.deadline_s,
        }
    )


def model_document(entry: ModelEntry, beats: Sequence[WorkerBeat]) -> ModelDocument:
    """The model as clients see it; `beats` are those of living workers."""
    loads = [beat.models[entry.name] for beat in beats if entry.name in beat.models]
    return ModelDocument(
        name=entry.name,
        tasks=entry.tasks,
        loaded=any(load.loaded and load.warmed for load in loads),
        defaults=entry.defaults,
        limits=LimitsDocument(
            size_multiple=entry.size_multiple,
            min_size=entry.min_size,
            max_size=entry.max_size,
            max_pixels=entry.max_pixels,
            max_images=entry.max_images,
            token_limit=entry.token_limit,
            window_tokens=entry.window_tokens,
            max_clip_skip=entry.max_clip_skip,
            loras=entry.loras,
            upscalers=entry.upscalers,
            controlnets=entry.controlnets,
            upscale_factor=entry.upscale_factor,
            max_noise_level=entry.max_noise_level,
            max_prompt_characters=MAX_PROMPT_CHARACTERS,
        ),
        samplers=entry.samplers,
        sampler_aliases={
            alias: AliasDocument(sampler=sampler, noise_schedule=schedule)
            for alias, (sampler, schedule) in sorted(entry.sampler_aliases.items())
        },
        prediction_type=entry.prediction_type,
        device=entry.device,
        dtype=entry.dtype,
        digest=entry.digest,
    )


def model_state_document(name: str, wish: Wish, beats: Sequence[WorkerBeat]) -> ModelStateDocument:
    """How far the workers of a model are with what an operator asked for."""
    workers = tuple(
        ModelOnWorkerDocument(
            worker=beat.name,
            loaded=name in beat.models and beat.models[name].loaded,
            done=beat.wishes.get(name) == wish.id,
            error=beat.faults.get(name),
        )
        for beat in beats
        if name in beat.models or name in beat.faults
    )
    return ModelStateDocument(name=name, loaded=any(worker.loaded for worker in workers), workers=workers)


def model_fault_documents(beats: Sequence[WorkerBeat]) -> tuple[ModelFaultDocument, ...]:
    return tuple(
        ModelFaultDocument(model=name, worker=beat.name, error=fault)
        for beat in beats
        for name, fault in sorted(beat.faults.items())
    )


_NEEDS_NEWER = (
    "The job waits: it asks for something that only a newer version of the workers that run now can draw. "
    "Wait until they are upgraded, or cancel it and send it without what is new."
)


def moment(unix_s: float) -> datetime:
    """UTC, to the millisecond."""
    return datetime.fromtimestamp(round(unix_s, 3), UTC)
