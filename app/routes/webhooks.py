"""GET /webhooks/secret."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.answers import document_answer, problems
from app.schemas import WebhookSecretDocument
from app.services import ServicesHere, TenantHere

router = APIRouter(tags=["webhooks"])


@router.get(
    "/webhooks/secret",
    response_model=WebhookSecretDocument,
    responses=problems(
        *("key_required", "key_unknown", "origin_refused", "host_refused", "redis_unavailable", "internal")
    ),
    summary="What your webhooks are signed with",
)
async def read_secret(services: ServicesHere, tenant: TenantHere) -> Response:
    """The secret that tells your receivers a webhook of this server from one of anybody else."""
    return document_answer(WebhookSecretDocument(secret=await services.on_board(services.secrets.of, tenant)))
