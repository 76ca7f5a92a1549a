"""POST /generate."""

from __future__ import annotations

import functools
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import WithJsonSchema
from starlette.responses import Response

from app.accept import Accepted
from app.answers import Prefer, document_answer, preferred_wait_s, problems
from app.documents import job_document, job_path
from app.intake import idempotency_of, parsed, queue_job, read_body
from app.payload import Payload, read_payload
from app.schemas import (
    IMAGE_TO_IMAGE_EXAMPLE,
    INPAINTING_EXAMPLE,
    TEXT_TO_IMAGE_EXAMPLE,
    UPSCALE_EXAMPLE,
    JobDocument,
    form_schema,
)
from app.services import Services, ServicesHere, TenantHere
from app.streams import wait_for_end
from workers.board import Idempotency
from workers.contract import ENDED

router = APIRouter(tags=["generate"])

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
    _tenant: TenantHere,
    prefer: Prefer = None,
    idempotency_key: Annotated[
        str | None,
        Header(description="Repeats with the same key and body get the same job."),
        WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"}),
    ] = None,
) -> Response:
    """Queues one job for one or more pictures and answers with its document; `Location` is where it is found."""
    body = await read_body(request)

    def read() -> tuple[Payload, Idempotency | None]:
        payload = read_payload(request.headers, body)
        return payload, idempotency_of(idempotency_key, payload)

    payload, idempotency = await parsed(services, body, read)
    accepted = await queue_job(request, services, payload, idempotency)
    return await _answer(services, accepted, preferred_wait_s(prefer or [], services.settings.max_wait_s))


async def _answer(services: Services, accepted: Accepted, wait_s: float | None) -> Response:
    view = accepted.view
    job_id = view.record.id
    headers = {"Location": job_path(job_id)}
    if not accepted.is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is None:
        return document_answer(job_document(view), 202, headers)
    view = await wait_for_end(services.hub, view, functools.partial(services.view, job_id), wait_s)
    headers["Preference-Applied"] = f"wait={wait_s:g}"
    return document_answer(job_document(view), 200 if view.status in ENDED else 202, headers)
