"""GET /healthz, /readyz and /metrics: what machines ask."""

from __future__ import annotations

from fastapi import APIRouter
from redis.exceptions import RedisError
from starlette.responses import Response

from app.answers import document_answer, problems
from app.errors import Problem
from app.figures import BoardFigures
from app.metrics import CONTENT_TYPE, render
from app.schemas import HealthDocument, ReadyDocument
from app.services import Services, ServicesHere, TenantHere

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=HealthDocument, summary="Does the process answer?")
async def healthz() -> Response:
    """Always 200 while the process lives. Open to all."""
    return document_answer(HealthDocument(status="ok"))


@router.get(
    "/readyz",
    response_model=ReadyDocument,
    responses=problems("redis_unavailable", "no_worker", "not_ready"),
    summary="Can it draw?",
)
async def readyz(services: ServicesHere) -> Response:
    """200 when Redis answers, a worker's heart beats, and it has a model loaded and warmed up. Open to all.

    `warnings` tells what about Redis could lose accepted jobs.
    """
    beats = await services.on_board(services.board.beats)
    if not beats:
        raise Problem("no_worker", "No worker's heart beats.")
    working = [beat for beat in beats if beat.state == "running"]
    if not working:
        raise Problem("not_ready", f"The workers are {', '.join(sorted({beat.state for beat in beats}))}.")
    if not any(load.loaded and load.warmed for beat in working for load in beat.models.values()):
        raise Problem("not_ready", "No model is loaded and warmed up yet.")
    warnings = await services.on_board(services.board.misgivings)
    return document_answer(ReadyDocument(status="ready", warnings=warnings))


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text format"},
        **problems("key_required", "key_unknown", "origin_refused", "host_refused", "internal"),
    },
    summary="Figures for Prometheus",
)
async def metrics(services: ServicesHere, _tenant: TenantHere) -> Response:
    """HTTP, queue and worker figures. Answers without Redis too: then `denoised_redis_up` is 0."""
    return Response(render(services.metrics, await _figures(services)), media_type=CONTENT_TYPE)


async def _figures(services: Services) -> BoardFigures:
    board = services.board
    try:
        return BoardFigures(
            queues=await services.on_board(board.queue_depths),
            ended=await services.on_board(board.ended_counts),
            beats=await services.on_board(board.beats),
            webhooks_pending=await services.on_board(services.webhooks.pending),
        )
    except RedisError:
        return BoardFigures(is_redis_up=False)
