"""Answers that may get lost: a client that sends its request again gets the pictures of the job that it queued before.

For dialects whose clients repeat a request without saying which one (`workers.repeats` tells how they are told apart)
and have no other way to cancel than to hang up. Two promises meet here: a repeat queues no second job, and the job of a
client that is gone for good is canceled; so that one waits for GRACE_S whether a repeat comes.

    attempt = await begin(request, services, payload, is_repeat=...)   # is_repeat: as the client's headers say
    async with attempt:
        accepted = await queue_job(request, services, native, attempt.idempotency, dialect=...)
        view = await attempt.until_ended(request, accepted.view)
        ...
    return LastingAnswer(body, attempt)

Owns what becomes of an attempt, whichever way it ends. Knows no dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import anyio.to_thread
from fastapi import Request
from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.dialect import HungUp, hung_up, until_ended_or_hung_up
from app.errors import Problem
from app.intake import idempotency_of
from app.payload import Payload
from app.services import Services
from app.streams import wait_for_end
from workers.board import Idempotency
from workers.contract import ENDED, JobView
from workers.repeats import GRACE_S, LEASE_S, Attempt

RENEW_S = LEASE_S / 4
LOOK_S = 0.25
"""Between two looks for an order that a repeat may take over."""
_REPEATED = frozenset({408, 409, 429})
"""Statuses below 500 after which clients send a request again by themselves."""


@dataclass
class OpenAttempt:
    """One attempt while its request is answered. As a context it is renewed, and withdrawn or left where it fails."""

    services: Services
    attempt: Attempt
    idempotency: Idempotency
    _renewing: asyncio.Task[None] | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """A refusal withdraws it; after one that clients repeat, as after any other fault, it can be taken over. A
        cancellation comes with the end of this process: then the lease lapses by itself."""
        self._end_renewing()
        if isinstance(error, Problem) and not is_repeated(error):
            with contextlib.suppress(RedisError):
                await self.services.on_board(self.services.repeats.withdraw, self.attempt)
        elif isinstance(error, Exception) and not isinstance(error, HungUp):
            await self.leave()

    async def until_ended(self, request: Request, view: JobView) -> JobView:
        """As `app.dialect.until_ended`, but the job of a client that hangs up is canceled only if no repeat comes."""
        try:
            return await until_ended_or_hung_up(request, self.services, view)
        except HungUp:
            self._end_renewing()
            await self.services.on_board(self.services.repeats.leave, self.attempt)
            await self._wait_for_repeat(view)
            raise

    async def _wait_for_repeat(self, view: JobView) -> None:
        services, job_id = self.services, view.record.id
        view = await wait_for_end(services.hub, view, functools.partial(services.view, job_id), GRACE_S)
        if view.status not in ENDED and await services.on_board(services.repeats.give_up, self.attempt):
            await services.on_board(services.board.cancel, job_id)

    async def close(self) -> None:
        """The client has its answer. Without Redis the order lapses by itself."""
        with contextlib.suppress(RedisError):
            await self.services.on_board(self.services.repeats.close, self.attempt)

    async def leave(self) -> None:
        """The client has none, and may ask again."""
        with contextlib.suppress(RedisError):
            await self.services.on_board(self.services.repeats.leave, self.attempt)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(RedisError):
                await self.services.on_board(self.services.repeats.renew, self.attempt)

    def _end_renewing(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()


def is_repeated(problem: Problem) -> bool:
    """Whether the same request may do better soon, so that its client shall send it again."""
    return (problem.status >= 500 or problem.status in _REPEATED) and problem.code != "job_failed"


async def begin(request: Request, services: Services, payload: Payload, *, is_repeat: bool) -> OpenAttempt:
    """The attempt that this request is: of the order that its Idempotency-Key names, of one that is taken over, or of a
    new one. Raises Problem for a key that cannot be used.

    payload: the body as it came. is_repeat: whether the client says that it has sent this before.
    """
    tenant = request.state.tenant
    await anyio.to_thread.run_sync(lambda: payload.digest)  # of megabytes: not in the event loop
    given = idempotency_of(request.headers.get("idempotency-key"), payload)
    if given is not None:
        return OpenAttempt(services, await services.on_board(services.repeats.begin_named, tenant, given.key), given)
    digest = hashlib.sha256(f"{request.url.path} {payload.digest}".encode()).hexdigest()
    attempt = await _taken_over(services, tenant, digest) if is_repeat else None
    if attempt is None and is_repeat and await request.is_disconnected():
        raise HungUp  # it has been sent yet again while we looked
    if attempt is None:
        attempt = await services.on_board(services.repeats.begin, tenant, digest)
    return OpenAttempt(services, attempt, Idempotency(key=attempt.order, body_digest=payload.digest))


async def _taken_over(services: Services, tenant: str, digest: str) -> Attempt | None:
    """An order is free when its connection is known to be closed, or when its process has been silent for LEASE_S."""
    for _ in range(int(LEASE_S / LOOK_S) + 2):
        found = await services.on_board(services.repeats.take_over, tenant, digest)
        if found != "wait":
            return found
        await asyncio.sleep(LOOK_S)
    return None


class LastingAnswer(Response):
    """An answer that closes its attempt when it has been sent, and leaves it when the client hung up before."""

    def __init__(self, content: bytes, attempt: OpenAttempt, media_type: str = "application/json") -> None:
        super().__init__(content, media_type=media_type)
        self._attempt = attempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._attempt:  # a slow line takes its time, and nobody takes the order over meanwhile
            is_delivered = await self._deliver(receive, send)
        await (self._attempt.close() if is_delivered else self._attempt.leave())

    async def _deliver(self, receive: Receive, send: Send) -> bool:
        gone = asyncio.ensure_future(hung_up(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
            await asyncio.sleep(0)  # what the server has heard of the line by now is told
            is_delivered = not gone.done()
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
        return is_delivered
