"""POST /generate."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.accept import read_order
from app.answers import problems
from app.posting import PostHeadersHere, post_job
from app.schemas import (
    IMAGE_TO_IMAGE_EXAMPLE,
    INPAINTING_EXAMPLE,
    TEXT_TO_IMAGE_EXAMPLE,
    UPSCALE_EXAMPLE,
    JobDocument,
    form_schema,
)
from app.services import ServicesHere, TenantHere

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
POST_PROBLEMS = (
    *("json_invalid", "json_too_deep", "multipart_invalid", "body_incomplete", "idempotency_key_invalid"),
    *("key_required", "key_unknown", "origin_refused", "priority_refused", "body_timeout", "body_too_large"),
    *("content_type_unsupported", "host_refused", "field_invalid", "field_unknown", "prompt_empty", "prompt_too_long"),
    *("size_invalid", "steps_out_of_range", "num_images_out_of_range", "model_unknown", "task_unavailable"),
    *("sampler_unknown", "noise_schedule_unknown", "image_not_base64", "image_format_unsupported", "image_broken"),
    *("image_too_large", "image_animated", "image_mode_unsupported", "upload_unknown", "idempotency_conflict"),
    *("queue_full", "mask_missing", "mask_empty", "mask_size_mismatch", "clip_skip_out_of_range"),
    *("noise_level_out_of_range", "lora_unknown", "control_unknown", "upscaler_unknown", "webhook_refused"),
    *("redis_unavailable", "no_worker", "not_ready", "store_unavailable", "store_full", "durability_unconfirmed"),
    "internal",
)
"""What a job can be refused for."""


@router.post(
    "/generate",
    status_code=202,
    response_model=JobDocument,
    responses={200: {"model": JobDocument, "description": "Ended within `Prefer: wait`"}, **problems(*POST_PROBLEMS)},
    openapi_extra={"requestBody": _BODY},
    summary="Queue a job",
)
async def generate(request: Request, services: ServicesHere, tenant: TenantHere, headers: PostHeadersHere) -> Response:
    """Queues one job for one or more pictures and answers with its document; `Location` is where it is found."""
    return await post_job(request, services, headers, functools.partial(read_order, services, tenant))
