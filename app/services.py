"""What the routes share: the board, the store, the event hub, and how blocking calls are made.

Owns the threads in which they run and the mapping of their failures. One object per application, made and ended by its
lifespan.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from app.errors import Problem
from app.events import EventHub
from app.metrics import HttpMetrics
from app.room import Room
from app.security import KeyRing
from app.settings import ApiSettings
from app.streams import JobStream
from app.webhooks.sign import Secrets
from workers.board import JobBoard
from workers.choices import Choices
from workers.contract import JobView, created_at_of
from workers.overview import Overview
from workers.repeats import Repeats
from workers.store import Store
from workers.webhooks import Webhooks

_FULL = (errno.ENOSPC, errno.EDQUOT)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Services:
    """Everything a route may use."""

    settings: ApiSettings
    keys: KeyRing
    board: JobBoard
    overview: Overview
    choices: Choices
    repeats: Repeats
    store: Store
    room: Room
    hub: EventHub
    webhooks: Webhooks
    secrets: Secrets
    metrics: HttpMetrics
    log: Any
    decoders: anyio.CapacityLimiter
    """Uploads decoded at the same time."""
    door: anyio.Lock = field(default_factory=anyio.Lock)
    """Held from counting a tenant's queue to entering it, so that concurrent posts cannot overfill it."""

    async def on_board(
        self, call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """A blocking call of the board in a thread. A RedisError comes through; the application answers it with 503."""
        return await anyio.to_thread.run_sync(functools.partial(call, *args, **kwargs))

    async def on_store(
        self, call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """A blocking call of the store in a thread. FileNotFoundError comes through; any other OSError is a Problem."""
        try:
            return await anyio.to_thread.run_sync(functools.partial(call, *args, **kwargs))
        except FileNotFoundError:
            raise
        except OSError as error:
            self.log.error("store", error=str(error))
            raise Problem("store_full" if error.errno in _FULL else "store_unavailable") from error

    async def view(self, job_id: str) -> JobView | None:
        """Everything known of a job, whoever owns it."""
        return await self.on_board(self.board.get, job_id)

    def stream_of(self, view: JobView) -> JobStream:
        """What its owner is told of a job from now on."""
        job_id = view.record.id

        async def read_preview() -> bytes | None:
            return await self.on_board(self.board.preview, job_id)

        return JobStream(self.hub, view, functools.partial(self.view, job_id), read_preview)

    def check_streams(self, tenant: str) -> None:
        """Raises Problem `streams_full` when this tenant, or all of them together, may open no more."""
        if self.metrics.open_streams >= self.settings.max_event_streams:
            raise Problem("streams_full")
        if not self.keys.is_empty and self.metrics.streams_of(tenant) >= self.settings.max_tenant_streams:
            raise Problem("streams_full", f"{self.settings.max_tenant_streams} of them are yours.")

    def is_operator(self, tenant: str) -> bool:
        """Whether this tenant may look after the server. Without keys everybody who reaches it may."""
        return self.keys.is_empty or tenant in self.settings.operators

    def may_be_high(self, tenant: str) -> bool:
        """Whether this tenant's jobs may have the priority `high`, which takes time from those of others."""
        return self.is_operator(tenant) or tenant in self.settings.high_priority

    async def owned_job(self, job_id: str, tenant: str) -> JobView:
        """A job of this tenant. Raises Problem: `job_gone` when it was there, `not_ready` when another API process of a
        rolling upgrade must be asked, `job_unknown` otherwise."""
        created_at = created_at_of(job_id) if job_id.isalnum() else None
        if created_at is None:
            raise Problem("job_unknown")
        view = await self.view(job_id)
        if view is not None:
            if view.record.submission.tenant != tenant:
                raise Problem("job_unknown")
            return view
        if await self.on_board(self.board.is_beyond_us, job_id, tenant):
            raise Problem("not_ready", "The job was queued by a newer version of this server, which can read it.")
        owner = await self.on_board(self.board.gone_tenant, job_id)
        if owner == tenant or (owner is None and _age_s(created_at) > self.settings.retention_s):
            raise Problem("job_gone")
        raise Problem("job_unknown")


def _age_s(created_at: float) -> float:
    return time.time() - created_at


async def get_services(request: Request) -> Services:
    """What the lifespan made. A coroutine, as all dependencies here: it needs no thread, and threads may be waiting."""
    services: Services = request.app.state.services
    return services


_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", description="Your key, when the server has keys; none is needed otherwise."
)


async def get_tenant(
    request: Request,
    services: Annotated[Services, Depends(get_services)],
    _documented: Annotated[Any, Depends(_BEARER)],
) -> str:
    """Whose request this is. Raises Problem without a key that the server knows."""
    tenant = services.keys.tenant_of(request.headers.get("authorization"))
    request.scope["state"]["tenant"] = tenant
    return tenant


def note_job(request: Request, job_id: str) -> None:
    """Puts the job's id into the access log of this request."""
    request.scope["state"]["job"] = job_id[:64]


ServicesHere = Annotated[Services, Depends(get_services)]
TenantHere = Annotated[str, Depends(get_tenant)]
