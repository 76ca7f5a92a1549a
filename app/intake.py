"""The first half of every way in: from an HTTP request to a job that is queued.

Owns how a body comes off the line and is parsed without stalling other requests, and the log line of an accepted job.
Knows nothing of what the fields mean (`app.accept` does) nor of how the answer looks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from fastapi import Request

from app.accept import Accepted, ReadOrder, Trace, accept, read_order
from app.errors import Problem
from app.payload import Payload
from app.services import Services, note_job
from workers.board import Idempotency

LARGE_BODY_BYTES = 2**20
"""A body from this size on takes milliseconds to parse and hash: too long for the event loop."""
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Read = TypeVar("Read")


async def read_body(request: Request) -> bytes:
    """All bytes of the body; the gate has bounded their number and their time."""
    body = bytearray()
    async for chunk in request.stream():
        body.extend(chunk)
    return bytes(body)


async def parsed(services: Services, body: bytes, parse: Callable[[], Read]) -> Read:
    """What `parse` makes of the body; of a large one in a thread, so that other requests go on meanwhile."""
    if len(body) < LARGE_BODY_BYTES:
        return parse()
    return await anyio.to_thread.run_sync(parse, limiter=services.decoders)


def idempotency_of(key: str | None, payload: Payload) -> Idempotency | None:
    """What an Idempotency-Key header stands for. Raises Problem for one that cannot be used."""
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise Problem("idempotency_key_invalid")
    return Idempotency(key=key, body_digest=payload.digest)


async def queue_job(
    request: Request,
    services: Services,
    payload: Payload,
    idempotency: Idempotency | None = None,
    dialect: str | None = None,
) -> Accepted:
    """Checks and queues what a body of POST /generate asks for, see `queue_order`."""
    read = functools.partial(read_order, services, request.state.tenant, payload)
    return await queue_order(request, services, read, idempotency, dialect)


async def queue_order(
    request: Request,
    services: Services,
    read: ReadOrder,
    idempotency: Idempotency | None = None,
    dialect: str | None = None,
) -> Accepted:
    """Queues one job of the tenant who asks; tells the log. Raises Problem; then nothing is left behind."""
    parent = request.headers.get("traceparent", "")
    traceparent = parent if _TRACEPARENT.fullmatch(parent) else None
    trace = Trace(request.state.request_id, traceparent, dialect, str(request.base_url))
    accepted = await accept(services, request.state.tenant, read, idempotency, trace)
    note_job(request, accepted.view.record.id)
    _tell(services, accepted)
    return accepted


def _tell(services: Services, accepted: Accepted) -> None:
    """The line that has the job and its request beside each other; the answer may come much later."""
    record = accepted.view.record
    submission = record.submission
    way_in = {"dialect": submission.dialect} if submission.dialect else {}
    services.log.info(
        "accepted" if accepted.is_new else "accepted before",
        job=record.id,
        tenant=submission.tenant,
        model=submission.request.model,
        task=submission.request.task,
        priority=submission.priority,
        **way_in,
    )
