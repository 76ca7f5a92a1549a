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
KEEP_ALIVE = b": still here\n\n"
"""A comment, which readers of event streams pass over."""
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


@dataclass(frozen=True)
class StreamEvent:
    """What a client is told; `name` is one of status, progress, preview, end, gone."""

    name: str
    data: BaseModel


@dataclass
class JobStream:
    """What one client is told of one job: its state now, its changes, its end."""

    hub: EventHub
    view: JobView
    read: ReadJob
    read_preview: ReadPreview
    _sent: dict[str, object] = field(default_factory=dict)
    """Event name -> what the client saw last under it."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """The events as server-sent ones."""
        count = 0
        async for event in self.events():
            if event is None:
                yield KEEP_ALIVE
                continue
            count += 1
            event_id = END_ID if event.name in ("end", "gone") else str(count)
            yield format_sse_event(event=event.name, data_str=event.data.model_dump_json(), id=event_id)

    async def events(self) -> AsyncIterator[StreamEvent | None]:
        """Each event as soon as it is known; ends after `end`, or `gone` when the job was erased. None: nothing has
        happened for so long that the line may be taken for dead."""
        with self.hub.listen(self.view.record.id) as mailbox:
            mailbox.post("status")  # what has changed between reading the view and listening
            spoke_at = time.monotonic()
            for event in self._changes():
                yield event
            while self.view.status not in ENDED:
                events = await self._next(mailbox)
                if events is None:
                    yield StreamEvent("gone", JobError(code="job_gone", detail=Problem("job_gone").detail))
                    return
                if not events and time.monotonic() - spoke_at > KEEP_ALIVE_S:
                    spoke_at = time.monotonic()
                    yield None
                for event in events:
                    spoke_at = time.monotonic()
                    yield event

    async def _next(self, mailbox: Mailbox) -> list[StreamEvent] | None:
        """The events that came about since; None when the job is no more."""
        kinds = await mailbox.take(REREAD_S)
        try:
            newest = await self.read()
            if newest is None:
                return None
            self.view = newest
            events = self._changes()
            if "preview" in kinds and newest.record.submission.delivery.previews and newest.status == "running":
                events.extend(self._preview(await self.read_preview()))
        except RedisError:
            return []  # the job goes on without us; the next look may succeed
        return events

    def _changes(self) -> list[StreamEvent]:
        view = self.view
        document = job_document(view)
        if view.status in ENDED:
            return [StreamEvent("end", document)]
        events: list[StreamEvent] = []
        if self._is_new("status", (view.status, document.warnings)):
            events.append(StreamEvent("status", document))
        step, steps = (view.progress.step, view.progress.steps) if view.progress else (0, 0)
        if (steps or view.queue_position is not None) and self._is_new("progress", (step, steps, view.queue_position)):
            place = view.queue_position
            news = ProgressEvent(step=step, steps=steps, eta_s=document.eta_s, queue_position=place)
            events.append(StreamEvent("progress", news))
        return events

    def _preview(self, webp: bytes | None) -> list[StreamEvent]:
        if webp is None or not self._is_new("preview", webp):
            return []
        image = f"data:image/webp;base64,{base64.b64encode(webp).decode()}"
        return [StreamEvent("preview", PreviewEvent(image=image))]

    def _is_new(self, name: str, state: object) -> bool:
        is_new = self._sent.get(name) != state
        self._sent[name] = state
        return is_new
