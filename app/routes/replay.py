"""POST /replay."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.answers import problems
from app.posting import PostHeadersHere, post_job
from app.replay import FILES, read_replay
from app.replay_schemas import replay_form_schema
from app.routes.generate import POST_PROBLEMS
from app.schemas import JobDocument
from app.services import ServicesHere, TenantHere

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
    order = functools.partial(read_replay, services, tenant)
    return await post_job(request, services, headers, order, len(FILES))
