"""Predictions: created, waited for, read, listed, canceled, followed.

Owns the order in which a request becomes a job and what each answer holds. Its words are `inputs` and `documents`.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.sse import format_sse_event
from starlette.responses import JSONResponse, Response, StreamingResponse

from app.answers import preferred_wait_s
from app.dialect import picture_files, refuse_unsupported
from app.dialects.replicate.documents import (
    base_url_of,
    error_text,
    output_addresses,
    prediction_document,
    prediction_path,
    progress_bar,
)
from app.dialects.replicate.files import bytes_at
from app.dialects.replicate.inputs import PredictionBody, native_fields, read_prediction, remembered
from app.dialects.replicate.models import model_named, version_named
from app.errors import Problem, field_problem
from app.intake import idempotency_of, parsed, queue_job, read_body
from app.payload import Payload, read_payload
from app.services import Services, ServicesHere, TenantHere, note_job
from app.streams import KEEP_ALIVE, wait_for_end
from workers.board import Idempotency
from workers.contract import ENDED, JobView, ModelEntry

router = APIRouter()

NAME = "replicate"
PAGE = 100
"""Predictions on a page of the list."""
_MAX_DEPTH = 6
"""`input` is a level deeper than our own bodies."""
_BARE_WAIT = "wait=60"
"""What `Prefer: wait` without a number means there."""


@router.post("/v1/predictions")
async def create_by_version(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    sent = await _read(request, services)
    if sent.body.version is None:
        raise field_problem("field_invalid", "version", "`version` is missing.")
    owner, entry = version_named(await services.on_board(services.board.catalogue), sent.body.version)
    return await _create(request, services, sent, owner, entry)


@router.post("/v1/models/{owner}/{name}/predictions")
async def create_by_model(
    request: Request, services: ServicesHere, _tenant: TenantHere, owner: str, name: str
) -> Response:
    sent = await _read(request, services)
    if sent.body.version is not None:
        raise field_problem("field_unknown", "version", "The address names the model: `version` has no place here.")
    entry = model_named(await services.on_board(services.board.catalogue), name)
    return await _create(request, services, sent, owner, entry)


@router.get("/v1/predictions")
async def list_predictions(
    request: Request, services: ServicesHere, tenant: TenantHere, cursor: Annotated[str | None, Query()] = None
) -> Response:
    """Newest first, and only what came in this way."""
    try:
        views, older = await services.on_board(
            services.board.list_jobs, tenant, limit=PAGE, cursor=cursor, dialect=NAME
        )
    except ValueError as error:
        raise Problem("cursor_invalid") from error
    base_url = base_url_of(request)
    results = [prediction_document(view, base_url) for view in views]
    following = f"{base_url}/v1/predictions?cursor={older}" if older else None
    return JSONResponse({"next": following, "previous": None, "results": results})


@router.get("/v1/predictions/{job_id}")
async def read_prediction_as_it_is(
    request: Request, services: ServicesHere, tenant: TenantHere, job_id: str
) -> Response:
    view = await _own(request, services, tenant, job_id)
    return await _written(await _document(request, services, view))


@router.post("/v1/predictions/{job_id}/cancel")
async def cancel_prediction(request: Request, services: ServicesHere, tenant: TenantHere, job_id: str) -> Response:
    """One that has ended stays as it is."""
    view = await _own(request, services, tenant, job_id)
    canceled = await services.on_board(services.board.cancel, job_id)
    return await _written(await _document(request, services, canceled or view))


@router.get("/v1/predictions/{job_id}/stream")
async def stream_prediction(request: Request, services: ServicesHere, tenant: TenantHere, job_id: str) -> Response:
    view = await _own(request, services, tenant, job_id)
    services.check_streams(tenant)
    chunks = _counted_chunks(services, view, base_url_of(request))
    return StreamingResponse(chunks, headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")


# --- from a body to an answer ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """The body as it came and as it was read, and what its Idempotency-Key stands for."""

    fields: Mapping[str, Any]
    body: PredictionBody
    idempotency: Idempotency | None


async def _read(request: Request, services: Services) -> _Sent:
    if "cancel-after" in request.headers:
        refuse_unsupported({"Cancel-After": "Cancel-After is not read here: `deadline_s` in `input` is nearest to it."})
    body = await read_body(request)

    def read() -> _Sent:
        sent = read_payload(request.headers, body, _MAX_DEPTH)
        if sent.files:
            raise Problem("content_type_unsupported", "A prediction is JSON; files are uploaded before it.")
        said = Payload({"path": request.url.path, "body": sent.fields})  # the path names the model
        idempotency = idempotency_of(request.headers.get("idempotency-key"), said)
        return _Sent(sent.fields, read_prediction(sent), idempotency)

    return await parsed(services, body, read)


async def _create(request: Request, services: Services, sent: _Sent, owner: str, entry: ModelEntry) -> Response:
    wait_s = _wait_s(request, services)
    memo = {
        "model": f"{owner}/{entry.name}",
        "version": entry.digest,
        "input": remembered(sent.fields["input"]),
        # Clients make a file of an address only if it is `https:` or `data:`; one that waits wants files.
        "holds_files": wait_s is not None and request.url.scheme == "http",
        **{name: sent.fields[name] for name in ("webhook", "webhook_events_filter") if sent.fields.get(name)},
    }
    fields, files = await _with_files(services, request.state.tenant, native_fields(sent.body, entry))
    accepted = await queue_job(request, services, Payload(fields, files, memo), sent.idempotency, NAME)
    view, job_id = accepted.view, accepted.view.record.id
    headers = {"Location": prediction_path(job_id)}
    if not accepted.is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is not None:
        view = await wait_for_end(services.hub, view, functools.partial(services.view, job_id), wait_s)
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    document = await _document(request, services, view)
    if wait_s is not None and view.status not in ENDED:
        document["status"] = "starting"  # what a client takes for "ask again", however far the job is
    return await _written(document, 201, headers)


def _wait_s(request: Request, services: Services) -> float | None:
    preferences = [part.strip() for header in request.headers.getlist("prefer") for part in header.split(",")]
    with_number = [_BARE_WAIT if preference.lower() == "wait" else preference for preference in preferences]
    return preferred_wait_s(with_number, services.settings.max_wait_s)


async def _with_files(
    services: Services, tenant: str, fields: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The fields without those that are addresses of files here, and these files."""
    files = {}
    for ours, theirs in (("image", "image"), ("mask_image", "mask")):
        data = await bytes_at(services, tenant, theirs, fields.get(ours, ""))
        if data is not None:
            files[ours] = data
    controls = []
    for number, control in enumerate(fields.get("controls", ())):
        data = await bytes_at(services, tenant, f"controls/{number}/image", control["image"])
        if data is not None:  # no part of a form can be one
            control = {**control, "image": await anyio.to_thread.run_sync(_in_base64, data)}
        controls.append(control)
    others = {name: value for name, value in fields.items() if name not in files}
    return {**others, **({"controls": controls} if controls else {})}, files


async def _own(request: Request, services: Services, tenant: str, job_id: str) -> JobView:
    """A prediction of this tenant. Raises Problem, also for a job that came in another way."""
    note_job(request, job_id)
    view = await services.owned_job(job_id, tenant)
    if view.record.submission.dialect != NAME:
        raise Problem("job_unknown", f"It is no prediction: GET /jobs/{job_id} has it.")
    return view


async def _document(request: Request, services: Services, view: JobView) -> dict[str, Any]:
    document = prediction_document(view, base_url_of(request))
    if view.record.submission.memo["holds_files"] and view.status == "succeeded":
        try:
            document["output"] = await _data_urls(services, view)
        except Problem as problem:
            if problem.code != "image_gone":
                raise
            document |= {"output": None, "data_removed": True}
    return document


async def _written(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The answer, written in a thread: there can be pictures in it."""
    return await anyio.to_thread.run_sync(JSONResponse, document, status, headers)


async def _data_urls(services: Services, view: JobView) -> list[str]:
    files = await picture_files(services, view)
    outcome = view.record.outcome
    assert outcome is not None, "a job without an outcome counts as a success. This is a bug."
    types = [picture.media_type for picture in outcome.pictures]

    def write() -> list[str]:
        return [f"data:{kind};base64,{_in_base64(file)}" for kind, file in zip(types, files, strict=True)]

    return await anyio.to_thread.run_sync(write)


def _in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- events ----------------------------------------------------------------------------------------------------------


async def _counted_chunks(services: Services, view: JobView, base_url: str) -> AsyncIterator[bytes]:
    with services.metrics.count_stream(view.record.submission.tenant):
        async for chunk in _chunks(services, view, base_url):
            yield chunk


async def _chunks(services: Services, view: JobView, base_url: str) -> AsyncIterator[bytes]:
    stream, count = services.stream_of(view), 0
    async for event in stream.events():
        if event is None:
            yield KEEP_ALIVE
            continue
        for name, data in await _told(services, stream.view, event.name, base_url):
            count += 1
            yield format_sse_event(event=name, data_str=data, id=str(count))


async def _told(services: Services, view: JobView, event: str, base_url: str) -> list[tuple[str, str]]:
    """Our event as names and data of theirs."""
    bar = progress_bar(view)
    if event == "progress" and bar:
        return [("logs", bar)]
    if event == "gone":
        return _failed(Problem("job_gone").detail)
    if event != "end":
        return []
    if view.status == "failed":
        return _failed(error_text(view) or "")
    if view.status == "canceled":
        return [("done", '{"reason": "canceled"}')]
    try:
        is_plain = base_url.startswith("http:")
        outputs = await _data_urls(services, view) if is_plain else output_addresses(view, base_url)
    except Problem as problem:  # too late for an answer that refuses
        return _failed(problem.detail)
    return [*(("output", address) for address in outputs or ()), ("done", "{}")]


def _failed(why: str) -> list[tuple[str, str]]:
    return [("error", why), ("done", '{"reason": "error"}')]
