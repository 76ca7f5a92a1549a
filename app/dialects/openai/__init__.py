"""OpenAI's Images API: POST /v1/images/generations, /edits and /variations, GET /v1/models and /v1/models/{model}.

Owns the routes and what a request goes through: translated (`words`), drawn as a job, told as OpenAI would
(`answers`). Repeats of a request whose answer was lost get the same job (`app.attempts`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.attempts import LastingAnswer, OpenAttempt, begin
from app.dialect import Dialect, in_words_of, picture_files, refuse_unsupported, require_success
from app.dialects.openai import answers, words
from app.dialects.openai.words import Wanted
from app.errors import Problem
from app.intake import LARGE_BODY_BYTES, parsed, queue_job, read_body
from app.payload import Payload, read_payload
from app.services import Services, ServicesHere, TenantHere
from workers.contract import JobView, ModelEntry

router = APIRouter()

_NAME = "openai"
_DRAWING = frozenset({"text-to-image", "image-to-image", "inpainting"})


@router.post("/v1/images/generations")
async def generate(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    """Pictures from a prompt."""
    return await _draw(request, services, await _read_prompt(request, services))


@router.post("/v1/images/edits")
async def edit(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    """A picture drawn anew, where the mask says or as a whole."""
    return await _draw(request, services, await _read_picture(request, services, words.edit))


@router.post("/v1/images/variations")
async def vary(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    """A picture drawn anew as a whole."""
    return await _draw(request, services, await _read_picture(request, services, words.variation))


@router.get("/v1/models")
async def list_models(services: ServicesHere, _tenant: TenantHere) -> Response:
    """The models that draw; those that only enlarge are no use in this dialect by themselves."""
    cards = [answers.model_card(entry) for entry in await _models(services)]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/models/{model}")
async def read_model(services: ServicesHere, _tenant: TenantHere, model: str) -> Response:
    """One of them."""
    for entry in await _models(services):
        if entry.name == model:
            return JSONResponse(answers.model_card(entry))
    raise Problem("model_absent", f"There is no {model[:80]!r}.")


async def _models(services: Services) -> list[ModelEntry]:
    catalogue = await services.on_board(services.board.catalogue)
    return [catalogue[name] for name in sorted(catalogue) if _DRAWING & set(catalogue[name].tasks)]


def _read(request: Request, body: bytes) -> Payload:
    try:
        return read_payload(request.headers, body, form_value=words.read_value)
    except Problem as problem:
        if any(error.pointer in ("/image", "/image[]") for error in problem.errors):  # the name of two parts
            refuse_unsupported({"image[]": "One picture is edited at a time."})
        raise


async def _read_prompt(request: Request, services: Services) -> Wanted:
    body = await read_body(request)
    return await parsed(services, body, lambda: words.generation(_read(request, body)))


async def _read_picture(request: Request, services: Services, translate: Callable[[Payload, int], Wanted]) -> Wanted:
    body, max_pixels = await read_body(request), services.settings.max_upload_pixels

    def look() -> Wanted:
        return translate(_read(request, body), max_pixels)

    return await anyio.to_thread.run_sync(look, limiter=services.decoders)


async def _draw(request: Request, services: Services, wanted: Wanted) -> Response:
    tenant = request.state.tenant
    if wanted.is_stream:
        services.check_streams(tenant)
    attempt = await begin(request, services, wanted.sent, is_repeat=_is_repeat(request))
    async with attempt:
        try:
            accepted = await queue_job(request, services, wanted.payload, attempt.idempotency, dialect=_NAME)
        except Problem as problem:
            raise in_words_of(wanted.names, problem) from problem
        wanted = wanted.once_queued
        if wanted.is_stream:
            return _streamed(services, accepted.view, wanted, attempt)
        view = await attempt.until_ended(request, accepted.view)
        body = await _document(services, view, wanted, str(request.base_url))
    return LastingAnswer(body, attempt)


def _is_repeat(request: Request) -> bool:
    """OpenAI's clients count how often they have sent a request before."""
    return request.headers.get("x-stainless-retry-count", "0").lstrip("0").isdecimal()


async def _document(services: Services, view: JobView, wanted: Wanted, base_url: str) -> bytes:
    require_success(view)
    if wanted.response_format == "url":
        return answers.images_document(view, answers.addressed(view, base_url))
    files = await picture_files(services, view)
    assert view.record.outcome is not None, "a job that succeeded has no outcome. This is a bug."
    pictures = view.record.outcome.pictures

    def document() -> bytes:
        return answers.images_document(view, answers.shown(pictures, files))

    if sum(map(len, files)) < LARGE_BODY_BYTES:
        return document()
    return await anyio.to_thread.run_sync(document)


def _streamed(services: Services, view: JobView, wanted: Wanted, attempt: OpenAttempt) -> Response:
    """Clients repeat nothing that has begun to come: whoever hangs up now does not want it any more."""

    async def cancel() -> None:
        await services.on_board(services.board.cancel, view.record.id)

    return answers.EventAnswer(answers.picture_events(services, view, wanted), attempt.close, cancel)


DIALECT = Dialect(
    name=_NAME,
    paths=re.compile(r"/v1/images(/.*)?|/v1/models(/[^/]*)?"),
    router=router,
    refuse=answers.refuse,
)
