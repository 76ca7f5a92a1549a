"""How a job is posted: the body is read, an Idempotency-Key is honoured, and the answer is its document.

Owns what every route that queues a job has in common. Knows neither what bodies mean nor which route it serves.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema
from starlette.datastructures import Headers
from starlette.responses import Response

from app.accept import Accepted, Trace
from app.answers import Prefer, document_answer, preferred_wait_s
from app.documents import job_document, job_path
from app.errors import Problem
from app.payload import MAX_FORM_FILES, Payload, read_payload
from app.services import Services, note_job
from app.streams import wait_for_end
from workers.board import Idempotency
from workers.contract import ENDED, JobView

LARGE_BODY_BYTES = 2**20
"""A body from this size on takes milliseconds to parse and hash: too long for the event loop."""
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Accept = Callable[[Payload, Idempotency | None, Trace], Awaitable[Accepted]]
"""Checks a payload and queues it, or raises Problem."""


@dataclass(frozen=True)
class PostHeaders:
    """The headers that say how a job is posted."""

    prefer: tuple[str, ...]
    idempotency_key: str | None
    traceparent: str | None


def _post_headers(
    prefer: Prefer = None,
    idempotency_key: Annotated[
        str | None,
        Header(description="Repeats with the same key and body get the same job."),
        WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"}),
    ] = None,
    traceparent: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> PostHeaders:
    parent = traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None
    return PostHeaders(tuple(prefer or ()), idempotency_key, parent)


PostHeadersHere = Annotated[PostHeaders, Depends(_post_headers)]


async def post_job(
    request: Request, services: Services, headers: PostHeaders, accept: Accept, max_files: int = MAX_FORM_FILES
) -> Response:
    """Queues what the body asks for and answers with the document of the job; `max_files`: parts of a form."""
    body = await _read_body(request)
    payload, idempotency = await _understand(services, request.headers, body, headers.idempotency_key, max_files)
    accepted = await accept(payload, idempotency, Trace(request.state.request_id, headers.traceparent))
    note_job(request, accepted.view.record.id)
    _tell(services, accepted)
    return await _answer(services, accepted, preferred_wait_s(list(headers.prefer), services.settings.max_wait_s))


def _tell(services: Services, accepted: Accepted) -> None:
    """The line that has the job and its request beside each other; the answer may come much later."""
    record = accepted.view.record
    services.log.info(
        "accepted" if accepted.is_new else "accepted before",
        job=record.id,
        tenant=record.submission.tenant,
        model=record.submission.request.model,
        task=record.submission.request.task,
        priority=record.submission.priority,
    )


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body.extend(chunk)
    return bytes(body)


async def _understand(
    services: Services, headers: Headers, body: bytes, key: str | None, max_files: int
) -> tuple[Payload, Idempotency | None]:
    """The body parsed and, if need be, hashed; a large one in a thread, so that other requests go on meanwhile."""

    def read() -> tuple[Payload, Idempotency | None]:
        payload = read_payload(headers, body, max_files)
        return payload, _idempotency(key, payload)

    if len(body) < LARGE_BODY_BYTES:
        return read()
    return await anyio.to_thread.run_sync(read, limiter=services.decoders)


def _idempotency(key: str | None, payload: Payload) -> Idempotency | None:
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise Problem("idempotency_key_invalid")
    return Idempotency(key=key, body_digest=payload.digest)


async def _answer(services: Services, accepted: Accepted, wait_s: float | None) -> Response:
    view = accepted.view
    job_id = view.record.id
    headers = {"Location": job_path(job_id)}
    if not accepted.is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is None:
        return document_answer(job_document(view), 202, headers)

    async def read() -> JobView | None:
        return await services.on_board(services.board.get, job_id)

    view = await wait_for_end(services.hub, view, read, wait_s)
    headers["Preference-Applied"] = f"wait={wait_s:g}"
    return document_answer(job_document(view), 200 if view.status in ENDED else 202, headers)
