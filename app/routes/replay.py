"""POST /replay."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.accept import Accepted, Trace
from app.answers import problems
from app.payload import Payload
from app.posting import PostHeadersHere, post_job
from app.replay import FILES, accept_replay
from app.replay_schemas import replay_form_schema
from app.routes.generate import POST_PROBLEMS
from app.schemas import JobDocument
from app.services import ServicesHere, TenantHere
from workers.board import Idempotency

router = APIRouter(tags=["generate"])

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/ReplayBody"}},
        "multipart/form-data": {"schema": replay_form_schema()},
    },
}
_PROBLEMS = problems(*POST_PROBLEMS, "recipe_missing", "recipe_invalid", "upload_mismatch")


@router.post(
    "/replay",
    status_code=202,
    response_model=JobDocument,
    responses={200: {"model": JobDocument, "description": "Ended within `Prefer: wait`"}, **_PROBLEMS},
    openapi_extra={"requestBody": _BODY},
    summary="Draw a picture again and compare",
)
async def replay(request: Request, services: ServicesHere, tenant: TenantHere, headers: PostHeadersHere) -> Response:
    """Queues one job that draws a picture again from its recipe; the document's `replay` says whether they agree."""

    async def queue(payload: Payload, idempotency: Idempotency | None, trace: Trace) -> Accepted:
        return await accept_replay(services, tenant, payload, idempotency, trace)

    return await post_job(request, services, headers, queue, len(FILES))
