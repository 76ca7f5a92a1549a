"""Jobs and refusals of ours -> OpenAI's documents and events.

Owns every shape that its clients parse, and which previews become partial images.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from PIL import Image
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.attempts import is_repeated
from app.dialect import hung_up, picture_files
from app.dialects.openai.words import Wanted
from app.documents import job_document, job_path
from app.errors import Problem
from app.schemas import PreviewEvent
from app.services import Services
from app.streams import KEEP_ALIVE
from workers.contract import JobView, ModelEntry, OutputFormat, Picture

_TYPES = {429: "rate_limit_error"}
_NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}
"""Clients expect it of a completed picture; nothing is counted in tokens here."""


# --- documents -------------------------------------------------------------------------------------------------------


def images_document(view: JobView, pictures: Iterable[Mapping[str, Any]]) -> bytes:
    """The answer to a request for pictures: OpenAI's fields, and the job's id, model and warnings."""
    outcome = view.record.outcome
    assert outcome is not None, "the job has not ended. This is a bug."
    document = {
        "created": int(outcome.ended_at),
        "data": list(pictures),
        "background": "opaque",
        "output_format": view.record.submission.delivery.output_format,
        "size": size_of(outcome.pictures[0]),
        "id": view.record.id,
        "model": view.record.submission.request.model,
        "warnings": job_document(view).warnings,
    }
    return json.dumps(document).encode()


def shown(pictures: Sequence[Picture], files: Sequence[bytes]) -> list[dict[str, Any]]:
    """Each picture with its seed, as base64."""
    return [
        {"b64_json": base64.b64encode(file).decode(), "seed": picture.seed}
        for picture, file in zip(pictures, files, strict=True)
    ]


def addressed(view: JobView, base_url: str) -> list[dict[str, Any]]:
    """Each picture with its seed, as the address of its file on this server, where the same key opens it."""
    assert view.record.outcome is not None, "the job has not ended. This is a bug."
    where = f"{base_url.rstrip('/')}{job_path(view.record.id)}/images"
    return [
        {"url": f"{where}/{number}", "seed": picture.seed}
        for number, picture in enumerate(view.record.outcome.pictures)
    ]


def size_of(picture: Picture) -> str:
    return f"{picture.width}x{picture.height}"


def model_card(entry: ModelEntry) -> dict[str, Any]:
    """A model of the list. Nobody knows when it was made."""
    return {"id": entry.name, "object": "model", "created": 0, "owned_by": "denoised", "tasks": entry.tasks}


# --- refusals --------------------------------------------------------------------------------------------------------


def refuse(problem: Problem, request_id: str) -> Response:
    """What is 422 among ours is 400 here: the class of exceptions that clients expect a wrong field to be."""
    status = 400 if problem.status == 422 else problem.status
    should_retry = {"x-should-retry": "true" if is_repeated(problem) else "false"}
    return JSONResponse(error_document(problem), status, problem.headers | should_retry)


def error_document(problem: Problem) -> dict[str, Any]:
    """The one shape of everything that is not a success."""
    fields = [{"param": _param(error.pointer), "message": error.detail} for error in problem.errors]
    untold = [f"{entry['param']}: {entry['message']}." for entry in fields if entry["message"] not in problem.detail]
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    error = {
        "message": " ".join([*untold, problem.detail]),
        "type": kind,
        "param": fields[0]["param"] if fields else None,
        "code": problem.code,
        "errors": fields,
    }
    return {"error": error}


def _param(pointer: str) -> str:
    return pointer.removeprefix("/").removeprefix("?").replace("/", ".")


# --- streams ---------------------------------------------------------------------------------------------------------


@dataclass
class Partials:
    """Chooses `count` previews that are spread over the way to the picture. The last one is sent at the end where no
    other was: a short job has few."""

    count: int
    sent: int = 0
    _newest: bytes | None = field(default=None, init=False)

    def take(self, preview: bytes, share_done: float) -> bytes | None:
        """The preview, if it is one of them."""
        self._newest = preview
        is_due = self.sent < self.count and share_done >= (2 * self.sent + 1) / (2 * self.count)
        return self._chosen(preview) if is_due else None

    def take_last(self) -> bytes | None:
        """What is to be sent when the picture is there."""
        return self._chosen(self._newest) if self._newest and self.count and not self.sent else None

    def _chosen(self, preview: bytes) -> bytes:
        self.sent += 1
        return preview


async def picture_events(services: Services, view: JobView, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """The events of one picture: partial images, then the completed one, or an error."""
    with services.metrics.count_stream(view.record.submission.tenant):
        try:
            async for chunk in _picture_events(services, view, wanted):
                yield chunk
        except (Problem, RedisError) as error:
            problem = error if isinstance(error, Problem) else Problem("redis_unavailable")
            yield _event("error", error_document(problem))


async def _picture_events(services: Services, view: JobView, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    output_format = view.record.submission.delivery.output_format
    stream, partials = services.stream_of(view), Partials(wanted.partial_images)

    async def partial(preview: bytes | None) -> bytes:
        if preview is None:
            return b""
        convert = functools.partial(_in_format, preview, output_format)
        file, size = await anyio.to_thread.run_sync(convert, limiter=services.decoders)
        number = {"partial_image_index": partials.sent - 1}
        return _picture_event(f"{wanted.event}.partial_image", file, size, output_format, number)

    yield KEEP_ALIVE  # the client knows at once that it is heard
    async for event in stream.events():
        if event is None:
            yield KEEP_ALIVE
        elif isinstance(event.data, PreviewEvent):
            progress = stream.view.progress
            share_done = progress.step / max(1, progress.steps) if progress else 0.0
            yield await partial(partials.take(_preview_file(event.data), share_done))
        elif event.name == "gone":
            raise Problem("job_gone")
    yield await partial(partials.take_last())
    files = await picture_files(services, stream.view)
    assert stream.view.record.outcome is not None, "a job that succeeded has no outcome. This is a bug."
    picture = stream.view.record.outcome.pictures[0]
    more = {"usage": _NO_TOKENS, "seed": picture.seed, "id": view.record.id}
    kind, size = f"{wanted.event}.completed", size_of(picture)
    yield await anyio.to_thread.run_sync(_picture_event, kind, files[0], size, output_format, more)


def _preview_file(event: PreviewEvent) -> bytes:
    return base64.b64decode(event.image.partition(",")[2])


def _in_format(webp: bytes, output_format: OutputFormat) -> tuple[bytes, str]:
    """A preview in the format that the picture will have, and its size in words."""
    with Image.open(io.BytesIO(webp), formats=("WEBP",)) as picture:
        size = f"{picture.width}x{picture.height}"
        if output_format == "webp":
            return webp, size
        stream = io.BytesIO()
        picture.save(stream, output_format.upper(), **({"compress_level": 1} if output_format == "png" else {}))
    return stream.getvalue(), size


def _picture_event(kind: str, file: bytes, size: str, output_format: str, more: Mapping[str, Any]) -> bytes:
    told = {
        "type": kind,
        "b64_json": base64.b64encode(file).decode(),
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "opaque",
        "output_format": output_format,
    }
    return _event(kind, {**told, **more})


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventAnswer(Response):
    """Server-sent events, until they end or the client hangs up."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        on_begin: Callable[[], Awaitable[None]],
        on_hang_up: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_begin, self._on_hang_up = on_begin, on_hang_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._on_begin()
        gone = asyncio.ensure_future(hung_up(receive))
        sending = asyncio.ensure_future(self._send_all(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                await self._on_hang_up()
        finally:
            gone.cancel()
            sending.cancel()

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
