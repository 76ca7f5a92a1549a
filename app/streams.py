"""Waiting for a job: as server-sent events, and until its end.

Owns the order of events and when each is sent. Knows the hub and how to read a job; knows no routes.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from redis.exceptions import RedisError

from app.documents import job_document
from app.errors import Problem
from app.events import EventHub, Mailbox
from app.schemas import PreviewEvent, ProgressEvent
from workers.contract import ENDED, JobError, JobView

REREAD_S = 2.0
"""A job is looked at this often even when no event tells to: the net below lost events."""
KEEP_ALIVE_S = 15.0
END_ID = "end"
"""Id of the last event. A client that comes back with it has seen everything."""

ReadJob = Callable[[], Awaitable[JobView | None]]
ReadPreview = Callable[[], Awaitable[bytes | None]]


async def wait_for_end(hub: EventHub, view: JobView, read: ReadJob, wait_s: float) -> JobView:
    """The job's newest view, at its end or when the time is over. Redis may go away meanwhile: the job is queued."""
    deadline = time.monotonic() + wait_s
    with hub.listen(view.record.id) as mailbox:
        while True:
            newest = await _read_quietly(read)
            view = newest or view
            remaining = deadline - time.monotonic()
            if view.status in ENDED or remaining <= 0:
                return view
            await mailbox.take(min(remaining, REREAD_S))


async def _read_quietly(read: ReadJob) -> JobView | None:
    try:
        return await read()
    except RedisError:
        return None


@dataclass
class JobStream:
    """Server-sent events of one job for one client: its state now, its changes, its end."""

    hub: EventHub
    view: JobView
    read: ReadJob
    read_preview: ReadPreview
    _count: int = 0
    _sent: dict[str, object] = field(default_factory=dict)
    """Event name -> what the client saw last under it."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Bytes of the events, each as soon as it is known; ends after `end`, or `gone` when the job was erased."""
        with self.hub.listen(self.view.record.id) as mailbox:
            mailbox.post("status")  # what has changed between reading the view and listening
            spoke_at = time.monotonic()
            for chunk in self._changes():
                yield chunk
            while self.view.status not in ENDED:
                chunks = await self._next(mailbox)
                if chunks is None:
                    yield self._event("gone", JobError(code="job_gone", detail=Problem("job_gone").detail), END_ID)
                    return
                if not chunks and time.monotonic() - spoke_at > KEEP_ALIVE_S:
                    chunks = [b": still here\n\n"]
                for chunk in chunks:
                    spoke_at = time.monotonic()
                    yield chunk

    async def _next(self, mailbox: Mailbox) -> list[bytes] | None:
        """The events that came about since; None when the job is no more."""
        kinds = await mailbox.take(REREAD_S)
        try:
            newest = await self.read()
            if newest is None:
                return None
            self.view = newest
            chunks = self._changes()
            if "preview" in kinds and newest.record.submission.delivery.previews and newest.status == "running":
                chunks.extend(self._preview(await self.read_preview()))
        except RedisError:
            return []  # the job goes on without us; the next look may succeed
        return chunks

    def _changes(self) -> list[bytes]:
        view = self.view
        document = job_document(view)
        if view.status in ENDED:
            return [self._event("end", document, END_ID)]
        chunks = []
        if self._is_new("status", (view.status, document.warnings)):
            chunks.append(self._event("status", document))
        step, steps = (view.progress.step, view.progress.steps) if view.progress else (0, 0)
        if (steps or view.queue_position is not None) and self._is_new("progress", (step, steps, view.queue_position)):
            eta_s = document.eta_s
            chunks.append(
                self._event(
                    "progress",
                    ProgressEvent(step=step, steps=steps, eta_s=eta_s, queue_position=view.queue_position),
                )
            )
        return chunks

    def _preview(self, webp: bytes | None) -> list[bytes]:
        if webp is None or not self._is_new("preview", webp):
            return []
        image = f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
        return [self._event("preview", PreviewEvent(image=image))]

    def _is_new(self, name: str, state: object) -> bool:
        is_new = self._sent.get(name) != state
        self._sent[name] = state
        return is_new

    def _event(self, name: str, data: BaseModel, event_id: str | None = None) -> bytes:
        self._count += 1
        return format_sse_event(event=name, data_str=data.model_dump_json(), id=event_id or str(self._count))
