"""POST /sdapi/v1/txt2img and /img2img; GET /progress; POST /interrupt and /skip.

Owns the documents that these answer with. A call is a job of ours, and lasts as long as it.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Request
from PIL import Image
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from app.dialect import in_words_of, picture_files, until_ended
from app.dialects.a1111.bodies import Body, Drawing, ImageToImage, TextToImage
from app.dialects.a1111.current import current_of
from app.dialects.a1111.infotext import values_of
from app.dialects.a1111.translate import Fields, image_to_image, text_to_image
from app.errors import Problem
from app.intake import parsed, queue_job, read_body
from app.payload import Payload, read_payload
from app.resolve import schema_problem
from app.services import Services, ServicesHere, TenantHere
from app.texts import PARAMETERS, texts_of
from workers.contract import JobView, Picture
from workers.titles import SAMPLER_TITLES, SCHEDULE_TITLES

router = APIRouter()

NAME = "a1111"
ROOT = "/sdapi/v1"
MAX_DEPTH = 9
"""alwayson_scripts -> ControlNet -> args -> unit -> image -> its text, and what other scripts nest."""
_OF_PICTURES = {"image": "init_images", "mask_image": "mask"}

AnyBody = TypeVar("AnyBody", bound=Body)
Built = TypeVar("Built")


@router.post(f"{ROOT}/txt2img")
async def txt2img(request: Request, services: ServicesHere, tenant: TenantHere) -> Response:
    """Pictures from a prompt."""
    sent, body = await read(request, services, TextToImage)
    payload = Payload(text_to_image(body, await current_of(services, tenant)))
    view = await queued(request, services, payload, _OF_PICTURES)
    return await _drawn(request, services, view, body, sent)


@router.post(f"{ROOT}/img2img")
async def img2img(request: Request, services: ServicesHere, tenant: TenantHere) -> Response:
    """Pictures from a picture; with a mask, a part of it drawn anew."""
    sent, body = await read(request, services, ImageToImage)
    payload = Payload(image_to_image(body, await current_of(services, tenant)))
    view = await queued(request, services, payload, _OF_PICTURES)
    if not body.include_init_images:  # nor are they held: the wait for the job may be long
        sent |= {name: None for name in ("init_images", "mask") if name in sent}
        payload, body = Payload({}), body.model_copy(update={"init_images": None, "mask": None})
    return await _drawn(request, services, view, body, sent)


async def read(request: Request, services: Services, kind: type[AnyBody]) -> tuple[Fields, AnyBody]:
    """The body as it was sent, and as a value. Raises Problem."""
    fields, body = await read_json(request, services, lambda fields: _validated(kind, fields))
    return fields, body


async def read_json(request: Request, services: Services, build: Callable[[Fields], Built]) -> tuple[Fields, Built]:
    """A JSON body, and what `build` makes of it. Raises Problem."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem("content_type_unsupported", f"The Content-Type is {media_type or 'nothing'}.")
    raw = await read_body(request)

    def parse() -> tuple[Fields, Built]:
        fields = read_payload(request.headers, raw, MAX_DEPTH).fields
        return fields, build(fields)

    return await parsed(services, raw, parse)


def _validated(kind: type[AnyBody], fields: Fields) -> AnyBody:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise schema_problem(error) from error


async def queued(request: Request, services: Services, payload: Payload, names: Mapping[str, str]) -> JobView:
    """The queued job. Raises Problem, about these names of our fields."""
    try:
        return (await queue_job(request, services, payload, dialect=NAME)).view
    except Problem as problem:
        raise in_words_of(names, problem) from problem


async def answer(document: Callable[[], Any]) -> Response:
    """A JSON answer with pictures in it, written in a thread: it can be large."""
    return await anyio.to_thread.run_sync(lambda: JSONResponse(document()))


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- the answer to a drawing call ------------------------------------------------------------------------------------


async def _drawn(request: Request, services: Services, view: JobView, body: Drawing, sent: Fields) -> Response:
    view = await until_ended(request, services, view)
    # An interrupted call answers with what it has, as it always did in this API. Here that is nothing.
    files = [] if view.status == "canceled" else await picture_files(services, view)

    def document() -> Any:
        images = [in_base64(file) for file in files] if body.send_images is not False else []
        info = _info(view, body, [texts_of(file).get(PARAMETERS, "") for file in files])
        return {"images": images, "parameters": sent, "info": json.dumps(info)}

    return await answer(document)


def _info(view: JobView, body: Drawing, infotexts: list[str]) -> dict[str, Any]:
    """What was drawn, as tools look for it."""
    record = view.record
    request = record.submission.request
    pictures: tuple[Picture, ...] = record.outcome.pictures if record.outcome else ()
    count = len(pictures)
    width, height = (pictures[0].width, pictures[0].height) if pictures else (request.width, request.height)
    strength = getattr(request, "strength", None)
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": body.negative_prompt or "",
        "all_negative_prompts": [body.negative_prompt or ""] * count,
        "seed": pictures[0].seed if pictures else request.seed,
        "all_seeds": [picture.seed for picture in pictures],
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLER_TITLES.get(request.sampler, request.sampler),
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model,
        "sd_model_hash": values_of(infotexts[0]).get("Model hash") if infotexts else None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": 0,
        "seed_resize_from_h": 0,
        "denoising_strength": strength,
        "extra_generation_params": {
            "Schedule type": SCHEDULE_TITLES.get(request.noise_schedule, request.noise_schedule)
        },
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": _timestamp(record.created_at),
        "clip_skip": request.clip_skip + 1,
        "is_using_inpainting_conditioning": request.task == "inpainting",
        "version": "denoised",
        "job": record.id,
        "warnings": record.warnings,
    }


def _timestamp(unix_s: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(unix_s))


# --- what goes on meanwhile ------------------------------------------------------------------------------------------


async def _own_jobs(services: Services, tenant: str) -> list[JobView]:
    """This tenant's calls that have not ended, oldest first; its other jobs are not this API's business."""
    views = await services.on_board(services.board.unended, tenant)
    return [view for view in views if view.record.submission.dialect == NAME]


@router.get(f"{ROOT}/progress")
async def progress(services: ServicesHere, tenant: TenantHere, skip_current_image: bool = False) -> Response:
    """How far the oldest running call of this tenant is, and how many it has."""
    views = await _own_jobs(services, tenant)
    shown = next((view for view in views if view.status == "running"), views[0] if views else None)
    preview = None
    if shown is not None and not skip_current_image:
        preview = await services.on_board(services.board.preview, shown.record.id)
    current_image = await anyio.to_thread.run_sync(_png_text, preview) if preview is not None else None
    return JSONResponse(_progress_document(shown, len(views)) | {"current_image": current_image})


def _progress_document(shown: JobView | None, count: int) -> dict[str, Any]:
    at = shown.progress if shown else None
    step, steps = (at.step, at.steps) if at else (0, 0)
    share = min(step / steps, 1.0) if steps else 0.0
    return {
        "progress": max(share, 0.01) if shown else 0.0,  # 0 says that nothing goes on
        "eta_relative": (shown.eta_s if shown else None) or 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": shown.record.id if shown else "",
            "job_count": count,
            "job_timestamp": _timestamp(shown.record.created_at) if shown else "0",
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "textinfo": "Waiting" if shown and shown.status == "queued" else None,
    }


def _png_text(preview: bytes) -> str:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(preview)) as picture:
        picture.save(stream, "PNG", compress_level=1)
    return in_base64(stream.getvalue())


@router.post(f"{ROOT}/interrupt")
async def interrupt(services: ServicesHere, tenant: TenantHere) -> Response:
    """Ends every call of this tenant that has not ended."""
    for view in await _own_jobs(services, tenant):
        await services.on_board(services.board.cancel, view.record.id)
    return JSONResponse({})


@router.post(f"{ROOT}/skip")
async def skip(services: ServicesHere, tenant: TenantHere) -> Response:
    """Ends the call that GET /progress tells of, if it runs."""
    running = [view for view in await _own_jobs(services, tenant) if view.status == "running"]
    for view in running[:1]:
        await services.on_board(services.board.cancel, view.record.id)
    return JSONResponse(None)
