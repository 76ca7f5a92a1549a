"""GET /jobs, GET and DELETE /jobs/{id}, GET /jobs/{id}/images/{n}, GET /jobs/{id}/events."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO

import anyio
from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from app.answers import document_answer, problems
from app.documents import job_document
from app.errors import Problem
from app.schemas import JobDocument, JobListDocument
from app.services import Services, ServicesHere, TenantHere, note_job
from app.streams import END_ID
from workers.contract import ENDED, JobView, Picture, Status

router = APIRouter(tags=["jobs"])

CHUNK_BYTES = 64 * 1024
JobId = Annotated[str, Path(description="The job's `id`.")]
_COMMON = ("key_required", "key_unknown", "origin_refused", "host_refused", "redis_unavailable", "internal")
_JOB = (*_COMMON, "job_unknown", "job_gone", "not_ready")


@router.get(
    "/jobs",
    response_model=JobListDocument,
    responses=problems(*_COMMON, "field_invalid", "cursor_invalid"),
    summary="List your jobs",
)
async def list_jobs(
    services: ServicesHere,
    tenant: TenantHere,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on a page.")] = 20,
    cursor: Annotated[
        str | None,
        Query(description="`next_cursor` of the page before.", json_schema_extra={"pattern": "^[0-9a-f]{44}$"}),
    ] = None,
    status: Annotated[Status | None, Query(description="Only jobs of this status.")] = None,
) -> Response:
    """Your own jobs, newest first."""
    try:
        views, next_cursor = await services.on_board(
            services.board.list_jobs, tenant, limit=limit, cursor=cursor, status=status
        )
    except ValueError as error:
        raise Problem("cursor_invalid") from error
    jobs = tuple(job_document(view) for view in views)
    return document_answer(JobListDocument(jobs=jobs, next_cursor=next_cursor))


@router.get("/jobs/{job_id}", response_model=JobDocument, responses=problems(*_JOB), summary="Read a job")
async def read_job(request: Request, services: ServicesHere, tenant: TenantHere, job_id: JobId) -> Response:
    """The job's document as it is now."""
    note_job(request, job_id)
    return document_answer(job_document(await services.owned_job(job_id, tenant)))


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=JobDocument,
    responses=problems(*_JOB),
    summary="Cancel a job, never erase it",
)
async def cancel_job(request: Request, services: ServicesHere, tenant: TenantHere, job_id: JobId) -> Response:
    """Cancels a queued or running job; one that has ended stays as it is. Answers with the document either way, so it
    may be repeated."""
    note_job(request, job_id)
    await services.owned_job(job_id, tenant)
    view = await services.on_board(services.board.cancel, job_id)
    if view is None:
        raise Problem("job_gone")
    return document_answer(job_document(view))


@router.delete(
    "/jobs/{job_id}",
    response_model=JobDocument,
    responses={204: {"description": "It had ended; pictures, uploads and document are erased"}, **problems(*_JOB)},
    summary="Cancel or erase a job",
)
async def delete_job(request: Request, services: ServicesHere, tenant: TenantHere, job_id: JobId) -> Response:
    """Cancels a queued or running job and answers with its document; erases one that has ended."""
    note_job(request, job_id)
    view = await services.owned_job(job_id, tenant)
    if view.status not in ENDED:
        canceled = await services.on_board(services.board.cancel, job_id)
        if canceled is None:
            raise Problem("job_gone")
        return document_answer(job_document(canceled))
    await services.on_store(services.store.erase, job_id)
    await services.on_board(services.board.erase, job_id)
    await services.on_board(services.room.give_back, job_id)
    return Response(status_code=204)


@router.get(
    "/jobs/{job_id}/images/{index}",
    response_class=Response,
    responses={
        200: {"content": {name: {} for name in ("image/png", "image/jpeg", "image/webp")}, "description": "The file"},
        304: {"description": "`If-None-Match` names this very file"},
        **problems(*_JOB, "image_unknown", "image_not_ready", "image_gone", "store_unavailable"),
    },
    summary="Fetch a picture",
)
async def read_image(
    request: Request,
    services: ServicesHere,
    tenant: TenantHere,
    job_id: JobId,
    index: Annotated[str, Path(description="Number of the picture; the first is 0.")],
    if_none_match: Annotated[str | None, Header(description="An ETag from before.")] = None,
) -> Response:
    """One picture of a job, as the file it is."""
    note_job(request, job_id)
    view = await services.owned_job(job_id, tenant)
    picture = _picture_of(view, index)
    extension = picture.media_type.partition("/")[2]
    headers = {
        "ETag": f'"{picture.sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'inline; filename="denoised-{job_id[:12]}-{job_id[12:20]}-{index}.{extension}"',
    }
    if _matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return await _file_answer(services, job_id, picture, headers)


def _picture_of(view: JobView, index: str) -> Picture:
    if not index.isascii() or not index.isdecimal() or len(index) > 6:
        raise Problem("image_unknown")
    number = int(index)
    if number >= view.record.submission.request.num_images:
        raise Problem("image_unknown", f"It asked for {view.record.submission.request.num_images}.")
    if view.record.outcome is None:
        raise Problem("image_not_ready", f"The job is {view.status}.")
    if number >= len(view.record.outcome.pictures):
        raise Problem("image_unknown", f"The job {view.status} and has none.")
    return view.record.outcome.pictures[number]


def _matches(if_none_match: str | None, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given or "*" in given


async def _file_answer(services: Services, job_id: str, picture: Picture, headers: dict[str, str]) -> Response:
    """Streams a local file that is already open, so that erasing it meanwhile cuts nobody short."""

    def open_file() -> BinaryIO | bytes:
        path = services.store.path(job_id, picture.file)
        return services.store.get(job_id, picture.file) if path is None else path.open("rb")

    try:
        content = await services.on_store(open_file)
    except FileNotFoundError as error:
        raise Problem("image_gone") from error
    if isinstance(content, bytes):
        return Response(content, headers=headers, media_type=picture.media_type)
    headers["Content-Length"] = str(os.fstat(content.fileno()).st_size)
    return StreamingResponse(_chunks(content), headers=headers, media_type=picture.media_type)


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    async with anyio.wrap_file(file) as stream:
        while chunk := await stream.read(CHUNK_BYTES):
            yield chunk


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "Events `status`, `progress`, `preview`, and last `end` with the final document",
        },
        204: {"description": "`Last-Event-ID` says that the client has seen the end"},
        **problems(*_JOB, "streams_full"),
    },
    summary="Follow a job",
)
async def read_events(
    request: Request,
    services: ServicesHere,
    tenant: TenantHere,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(description="What browsers send when they come back.")] = None,
) -> Response:
    """The job's state now, then each change, until it has ended."""
    note_job(request, job_id)
    view = await services.owned_job(job_id, tenant)
    if last_event_id == END_ID and view.status in ENDED:
        return Response(status_code=204)
    services.check_streams(tenant)
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_counted_chunks(services, view), headers=headers, media_type="text/event-stream")


async def _counted_chunks(services: Services, view: JobView) -> AsyncIterator[bytes]:
    with services.metrics.count_stream(view.record.submission.tenant):
        async for chunk in services.stream_of(view).chunks():
            yield chunk
