"""How a job is posted in our own words: what a POST may say in its headers, and the document that it is answered with.

Owns what every route of ours that queues a job has in common. Knows neither what bodies mean nor which route it serves.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema
from starlette.responses import Response

from app.accept import Accepted, Order
from app.answers import Prefer, document_answer, preferred_wait_s
from app.documents import job_document, job_path
from app.intake import idempotency_of, parsed, queue_order, read_body
from app.payload import MAX_FORM_FILES, Payload, read_payload
from app.services import Services
from app.streams import wait_for_end
from workers.board import Idempotency
from workers.contract import ENDED

ReadPayload = Callable[[Payload], Awaitable[Order]]
"""What a payload orders. Raises Problem."""


@dataclass(frozen=True)
class PostHeaders:
    """The headers that say how a job is posted."""

    prefer: tuple[str, ...]
    idempotency_key: str | None


def _post_headers(
    prefer: Prefer = None,
    idempotency_key: Annotated[
        str | None,
        Header(description="Repeats with the same key and body get the same job."),
        WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"}),
    ] = None,
) -> PostHeaders:
    return PostHeaders(tuple(prefer or ()), idempotency_key)


PostHeadersHere = Annotated[PostHeaders, Depends(_post_headers)]


async def post_job(
    request: Request, services: Services, headers: PostHeaders, order: ReadPayload, max_files: int = MAX_FORM_FILES
) -> Response:
    """Queues what the body asks for and answers with the document of the job; `max_files`: parts of a form."""
    body = await read_body(request)

    def read() -> tuple[Payload, Idempotency | None]:
        payload = read_payload(request.headers, body, max_files=max_files)
        return payload, idempotency_of(headers.idempotency_key, payload)

    payload, idempotency = await parsed(services, body, read)
    accepted = await queue_order(request, services, functools.partial(order, payload), idempotency)
    return await _answer(services, accepted, preferred_wait_s(list(headers.prefer), services.settings.max_wait_s))


async def _answer(services: Services, accepted: Accepted, wait_s: float | None) -> Response:
    view = accepted.view
    job_id = view.record.id
    headers = {"Location": job_path(job_id)}
    if not accepted.is_new:
        headers["Idempotency-Replayed"] = "true"
    if wait_s is None:
        return document_answer(job_document(view), 202, headers)
    view = await wait_for_end(services.hub, view, functools.partial(services.view, job_id), wait_s)
    headers["Preference-Applied"] = f"wait={wait_s:g}"
    return document_answer(job_document(view), 200 if view.status in ENDED else 202, headers)
