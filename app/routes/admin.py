"""GET /admin/queues and /admin/workers: what operators look at."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from app.answers import document_answer, problems
from app.errors import Problem
from app.operator_view import QueueListDocument, WorkerListDocument, queue_list_document, worker_list_document
from app.services import ServicesHere, TenantHere

router = APIRouter(tags=["admin"])

_PROBLEMS = problems(
    *("key_required", "key_unknown", "origin_refused", "operator_required", "host_refused", "redis_unavailable"),
    "internal",
)


async def require_operator(services: ServicesHere, tenant: TenantHere) -> str:
    """The tenant, who may look after the server. Raises Problem for any other."""
    if not services.is_operator(tenant):
        raise Problem("operator_required")
    return tenant


Operator = Annotated[str, Depends(require_operator)]


@router.get("/admin/queues", response_model=QueueListDocument, responses=_PROBLEMS, summary="Look at all queues")
async def list_queues(services: ServicesHere, _operator: Operator) -> Response:
    """For operators. Every queue that has jobs, by model, priority and tenant, with the time until it is drawn."""
    is_suspended, queues = await services.on_board(services.overview.queues)
    return document_answer(queue_list_document(is_suspended, queues))


@router.get("/admin/workers", response_model=WorkerListDocument, responses=_PROBLEMS, summary="Look at all workers")
async def list_workers(services: ServicesHere, _operator: Operator) -> Response:
    """For operators. Every worker of the last minutes, with its models, the jobs in its hands, and what it counted."""
    return document_answer(worker_list_document(await services.on_board(services.overview.workers)))
