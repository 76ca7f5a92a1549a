"""GET /models; POST /models/{name}/load and /unload."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from starlette.responses import Response

from app.answers import Prefer, document_answer, preferred_wait_s, problems
from app.documents import model_document, model_fault_documents, model_state_document
from app.errors import Problem
from app.schemas import ModelListDocument, ModelStateDocument
from app.services import Services, ServicesHere, TenantHere

router = APIRouter(tags=["models"])

_ASK_S = 0.2
"""Between two looks at the workers' beats while a client waits."""
_COMMON = ("key_required", "key_unknown", "origin_refused", "host_refused", "redis_unavailable")
_ASKED = {
    200: {"model": ModelStateDocument, "description": "Done on every worker of the model, within `Prefer: wait`"},
    **problems(*_COMMON, "operator_required", "model_absent", "model_unusable", "no_worker"),
}
Name = Annotated[str, Path(description="A model of GET /models.")]


@router.get("/models", response_model=ModelListDocument, responses=problems(*_COMMON), summary="List models")
async def list_models(services: ServicesHere, tenant: TenantHere) -> Response:
    """What each model can draw: tasks, sizes, samplers with their step limits, defaults. Empty before any worker."""
    catalogue = await services.on_board(services.board.catalogue)
    beats = await services.on_board(services.board.beats)
    models = tuple(model_document(catalogue[name], beats) for name in sorted(catalogue))
    faults = model_fault_documents(beats) if services.is_operator(tenant) else ()
    return document_answer(ModelListDocument(models=models, faults=faults))


@router.post(
    "/models/{name:path}/load",
    status_code=202,
    response_model=ModelStateDocument,
    responses=_ASKED,
    summary="Load a model into memory",
)
async def load_model(services: ServicesHere, tenant: TenantHere, name: Name, prefer: Prefer = None) -> Response:
    """For operators. Every worker of the model loads its weights and warms up, so that no job waits for that."""
    return await _ask(services, tenant, name, "load", prefer)


@router.post(
    "/models/{name:path}/unload",
    status_code=202,
    response_model=ModelStateDocument,
    responses=_ASKED,
    summary="Take a model out of memory",
)
async def unload_model(services: ServicesHere, tenant: TenantHere, name: Name, prefer: Prefer = None) -> Response:
    """For operators. Every worker forgets its weights, after the jobs that it has begun; the next job loads them
    again."""
    return await _ask(services, tenant, name, "unload", prefer)


async def _ask(
    services: Services, tenant: str, name: str, action: Literal["load", "unload"], prefer: list[str] | None
) -> Response:
    if not services.is_operator(tenant):
        raise Problem("operator_required")
    beats = await services.on_board(services.board.beats)
    if not beats:
        raise Problem("no_worker")
    if not any(name in beat.models or name in beat.faults for beat in beats):
        raise Problem("model_absent", f"There is no {name[:80]!r}.")
    wish = await services.on_board(services.board.wish, name, action)
    end = time.monotonic() + (preferred_wait_s(prefer or [], services.settings.max_wait_s) or 0.0)
    while True:
        state = model_state_document(name, wish, await services.on_board(services.board.beats))
        if not state.workers:
            raise Problem("no_worker", "The workers of this model ended meanwhile.")
        if all(worker.done for worker in state.workers):
            break
        if time.monotonic() >= end:
            return document_answer(state, 202)
        await asyncio.sleep(_ASK_S)
    if action == "load" and not state.loaded:
        reasons = dict.fromkeys(worker.error.detail for worker in state.workers if worker.error)
        raise Problem("model_unusable", " ".join(reasons))
    return document_answer(state)
