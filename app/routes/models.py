"""GET /models."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.answers import document_answer, problems
from app.documents import model_document
from app.schemas import ModelListDocument
from app.services import ServicesHere, TenantHere

router = APIRouter(tags=["models"])


@router.get(
    "/models",
    response_model=ModelListDocument,
    responses=problems("key_required", "key_unknown", "origin_refused", "host_refused", "redis_unavailable"),
    summary="List models",
)
async def list_models(services: ServicesHere, _tenant: TenantHere) -> Response:
    """What each model can draw: tasks, sizes, samplers with their step limits, defaults. Empty before any worker."""
    catalogue = await services.on_board(services.board.catalogue)
    beats = await services.on_board(services.board.beats)
    models = tuple(model_document(catalogue[name], beats) for name in sorted(catalogue))
    return document_answer(ModelListDocument(models=models))
