"""POST /generate."""

from __future__ import annotations

import re
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Header, Request
from pydantic import WithJsonSchema
from starlette.datastructures import Headers
from starlette.responses import Response

from app.accept import Accepted, Trace, accept
from app.answers import Prefer, document_answer, preferred_wait_s, problems
from app.documents import job_document, job_path
from app.errors import Problem
from app.payload import Payload, read_payload
from app.schemas import (
    IMAGE_TO_IMAGE_EXAMPLE,
    INPAINTING_EXAMPLE,
    TEXT_TO_IMAGE_EXAMPLE,
    UPSCALE_EXAMPLE,
    JobDocument,
    form_schema,
)
from app.services import Services, ServicesHere, TenantHere, note_job
from app.streams import wait_for_end
from workers.board import Idempotency
from workers.contract import ENDED, JobView

router = APIRouter(tags=["generate"])

LARGE_BODY_BYTES = 2**20
"""A body from this size on takes milliseconds to parse and hash: too long for the event loop."""
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/GenerateBody"},
            "examples": {
                "text-to-image": {"summary": "A picture from a prompt", "value": TEXT_TO_IMAGE_EXAMPLE},
                "image-to-image": {"summary": "A picture from a picture", "value": IMAGE_TO_IMAGE_EXAMPLE},
                "inpainting": {"summary": "A part of a picture drawn anew", "value": INPAINTING_EXAMPLE},
                "upscale": {"summary": "A picture enlarged", "value": UPSCALE_EXAMPLE},
            },
        },
        "multipart/form-data": {"schema": form_schema()},
    },
}
_PROBLEMS = problems(
    *("json_invalid", "json_too_deep", "multipart_invalid", "body_incomplete", "idempotency_key_invalid"),
    *(
        "key_required",
        "key_unknown",
        "origin_refused",
        "priority_refused",
        "body_timeout",
        "body_too_large",
        "content_type_unsupported",
    ),
    *("host_refused", "field_invalid", "field_unknown", "prompt_empty", "prompt_too_long", "size_invalid"),
    *("steps_out_of_range", "num_images_out_of_range", "model_unknown", "task_unavailable", "sampler_unknown"),
    *("noise_schedule_unknown", "image_not_base64", "image_format_unsupported", "image_broken", "image_too_large"),
    *("image_animated", "image_mode_unsupported", "upload_unknown", "idempotency_conflict", "queue_full"),
    *("mask_missing", "mask_empty", "mask_size_mismatch", "clip_skip_out_of_range", "noise_level_out_of_range"),
    *("lora_unknown", "control_unknown", "upscaler_unknown", "webhook_refused"),
    *("redis_unavailable", "no_worker", "store_unavailable", "store_full", "durability_unconfirmed", "internal"),
)


@router.post(
    "/generate",
    status_code=202,
    response_model=JobDocument,
    responses={200: {"model": JobDocument, "description": "Ended within `Prefer: wait`"}, **_PROBLEMS},
    openapi_extra={"requestBody": _BODY},
    summary="Queue a job",
)
async def generate(
    request: Request,
    services: ServicesHere,
    tenant: TenantHere,
    prefer: Prefer = None,
    idempotency_key: Annotated[
        str | None,
        Header(description="Repeats with the same key and body get the same job."),
        WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"}),
    ] = None,
    traceparent: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Queues one job for one or more pictures and answers with its document; `Location` is where it is found."""
    payload, idempotency = await _understand(services, request.headers, await _read_body(request), idempotency_key)
    parent = traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None
    trace = Trace(request.state.request_id, parent, base_url=str(request.base_url))
    accepted = await accept(services, tenant, payload, idempotency, trace)
    note_job(request, accepted.view.record.id)
    _tell(services, accepted)
    return await _answer(services, accepted, preferred_wait_s(prefer or [], services.settings.max_wait_s))


def _tell(services: Services, accepted: Accepted) -> None:
    """The line that has the job and its request beside each other; the answer may come much later."""
    record = accepted.view.record
    services.log.info(
        "accepted" if accepted.is_new else "accepted before",
        job=record.id,
        tenant=record.submission.tenant,
        model=record.submission.request.model,
        task=record.submission.request.task,
        priority=record.submission.priority,
    )


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body.extend(chunk)
    return bytes(body)


async def _understand(
    services: Services, headers: Headers, body: bytes, key: str | None
) -> tuple[Payload, Idempotency | None]:
    """The body parsed and, if need be, hashed; a large one in a thread, so that other requests go on meanwhile."""

    def read() -> tuple[Payload, Idempotency | None]:
        payload = read_payload(headers, body)
        return payload, _idempotency(key, payload)

    if len(body) < LARGE_BODY_BYTES:
        return read()
    return await anyio.to_thread.run_sync(read, limiter=services.decoders)


def _idempotency(key: str | None, payload: Payload) -> Idempotency | None:
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise Problem("idempotency_key_invalid")
    return Idempotency(key=key, body_digest=payload.digest)


async def _answer(services: Services, accepted: Accepted, wait_s: float | None) -> Response:
    view = accepted.view
    job_id = view.record.id
    headers = {"Location": job_path(job_id)}
    if not accepted.is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is None:
        return document_answer(job_document(view), 202, headers)

    async def read() -> JobView | None:
        return await services.on_board(services.board.get, job_id)

    view = await wait_for_end(services.hub, view, read, wait_s)
    headers["Preference-Applied"] = f"wait={wait_s:g}"
    return document_answer(job_document(view), 200 if view.status in ENDED else 202, headers)
