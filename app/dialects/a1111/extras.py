"""POST /sdapi/v1/extra-single-image, /extra-batch-images and /png-info.

Owns which size an enlarged picture is brought to. An upscaler has one factor, and this API asks for any: as its own
upscalers do, ours draw with their factor, and the answer is reduced to what was asked for.
"""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import anyio.to_thread
from fastapi import APIRouter, Request
from PIL import Image
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response

from app.dialect import HungUp, picture_files, refuse_unsupported, require_success, until_ended
from app.dialects.a1111.bodies import ExtraBatchImages, Extras, ExtraSingleImage, PngInfo
from app.dialects.a1111.current import upscalers
from app.dialects.a1111.infotext import values_of
from app.dialects.a1111.routes import ROOT, answer, in_base64, queued, read
from app.errors import Problem, field_problem
from app.parts import PartsRefused
from app.payload import Payload
from app.services import Services, ServicesHere, TenantHere
from app.texts import PARAMETERS, texts_of
from app.uploads import Upload, decode_base64, read_upload
from workers.contract import JobView, ModelEntry

router = APIRouter()

NO_UPSCALER = "None"
PASSED_OVER = frozenset({"upscale_first", "codeformer_weight", "show_extras_results"})
"""They only mean something together with a face restorer, or to a page."""
_ASKS_FOR_NOTHING = {
    "gfpgan_visibility": "There is no face restorer: `gfpgan_visibility` is 0.",
    "codeformer_visibility": "There is no face restorer: `codeformer_visibility` is 0.",
    "extras_upscaler_2_visibility": "One upscaler draws a picture: `extras_upscaler_2_visibility` is 0.",
}


@router.post(f"{ROOT}/extra-single-image")
async def extra_single_image(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    """A picture enlarged."""
    enlarging = await _begin(request, services, ExtraSingleImage)
    files = await enlarging.files(request, services)
    return await answer(lambda: {"image": in_base64(files[0]), "html_info": enlarging.told})


@router.post(f"{ROOT}/extra-batch-images")
async def extra_batch_images(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    """Several pictures enlarged, a job each."""
    enlarging = await _begin(request, services, ExtraBatchImages)
    files = await enlarging.files(request, services)
    return await answer(lambda: {"images": [in_base64(file) for file in files], "html_info": enlarging.told})


async def _begin(request: Request, services: Services, kind: type[ExtraSingleImage | ExtraBatchImages]) -> _Enlarging:
    """A job for each picture. All are looked at before the first is queued; none is held while the jobs are waited
    for."""
    _, body = await read(request, services, kind)
    refuse_unsupported({name: what for name, what in _ASKS_FOR_NOTHING.items() if getattr(body, name)})
    texts = _texts(body)
    upscaler = await _upscaler(services, body.upscaler_1 or NO_UPSCALER, len(texts))
    uploads = [await _upload(services, name, text) for name, text in texts]
    if upscaler is None:
        return _Enlarging("<p></p>", unchanged=[upload.png for upload in uploads])
    plans = [_plan(body, upload, upscaler) for upload in uploads]
    told = f"<p>{html.escape(f'{plans[0].told}, Postprocess upscaler: {upscaler.name}')}</p>"
    enlarging = _Enlarging(told, plans)
    async with _all_or_none(services, enlarging.views):
        for upload in uploads:
            payload = Payload({"task": "upscale", "model": upscaler.name}, {"image": upload.png})
            enlarging.views.append(await queued(request, services, payload, {"model": "upscaler_1"}))
    return enlarging


def _texts(body: ExtraSingleImage | ExtraBatchImages) -> list[tuple[str, str]]:
    """The pictures in base64, and the names of their fields."""
    if isinstance(body, ExtraSingleImage):
        return [("image", body.image)]
    return [(f"imageList/{number}/data", image.data) for number, image in enumerate(body.imageList)]


@contextlib.asynccontextmanager
async def _all_or_none(services: Services, views: list[JobView]) -> AsyncIterator[None]:
    """When one job is refused, fails, or the client hangs up, the others are canceled."""
    try:
        yield
    except (Problem, HungUp, RedisError):
        for view in views:
            with contextlib.suppress(RedisError):
                await services.on_board(services.board.cancel, view.record.id)
        raise


@dataclass(frozen=True)
class _Enlarging:
    """Jobs on their way, what their pictures are to become, and what is told of it."""

    told: str
    plans: list[_Plan] = field(default_factory=list)
    views: list[JobView] = field(default_factory=list)
    unchanged: list[bytes] = field(default_factory=list)
    """The pictures themselves, where nothing is enlarged."""

    async def files(self, request: Request, services: Services) -> list[bytes]:
        """A file for each picture, when all are drawn. Raises Problem."""
        files = list(self.unchanged)
        async with _all_or_none(services, self.views):
            ended = [await _succeeded(request, services, view) for view in self.views]
        for plan, view in zip(self.plans, ended, strict=True):
            (file,) = await picture_files(services, view)
            files.append(await anyio.to_thread.run_sync(plan.reduced, file, limiter=services.decoders))
        return files


async def _upscaler(services: Services, name: str, count: int) -> ModelEntry | None:
    """None where nothing is to be enlarged. Raises Problem."""
    there = upscalers(await services.on_board(services.board.catalogue))
    if name == NO_UPSCALER:
        return None
    if name not in there:
        what = f"There is no upscaler {name[:80]!r}; there are {', '.join((NO_UPSCALER, *there))}."
        raise field_problem("upscaler_unknown", "upscaler_1", what)
    if count > there[name].max_images:
        what = f"{count} pictures, of 1 to {there[name].max_images}."
        raise field_problem("num_images_out_of_range", "imageList", what)
    return there[name]


async def _upload(services: Services, name: str, text: str) -> Upload:
    def read_text() -> Upload:
        return read_upload(decode_base64(text, name), services.settings.max_upload_pixels, name)

    return await anyio.to_thread.run_sync(read_text, limiter=services.decoders)


async def _succeeded(request: Request, services: Services, view: JobView) -> JobView:
    """Raises Problem for a job that did not."""
    ended = await until_ended(request, services, view)
    require_success(ended)
    return ended


@dataclass(frozen=True)
class _Plan:
    """size: of the whole picture. crop: what is left of it, around its middle; None is all."""

    size: tuple[int, int]
    crop: tuple[int, int] | None
    told: str

    def reduced(self, file: bytes) -> bytes:
        """The file as the upscaler made it, brought to this size; itself where it has it already."""
        with Image.open(io.BytesIO(file)) as drawn:
            if drawn.size == self.size and self.crop is None:
                return file
            picture = drawn.resize(self.size, Image.Resampling.LANCZOS)
        if self.crop is not None:
            left, top = (self.size[0] - self.crop[0]) // 2, (self.size[1] - self.crop[1]) // 2
            picture = picture.crop((left, top, left + self.crop[0], top + self.crop[1]))
        stream = io.BytesIO()
        picture.save(stream, "PNG", compress_level=1)
        return stream.getvalue()


def _plan(body: Extras, upload: Upload, upscaler: ModelEntry) -> _Plan:
    """Raises Problem for a size beyond the upscaler's factor."""
    highest = upscaler.upscale_factor or 1
    if body.resize_mode == 1:
        wanted = body.upscaling_resize_w or 512, body.upscaling_resize_h or 512
        factor = max(wanted[0] / upload.width, wanted[1] / upload.height)
        crop = wanted if body.upscaling_crop is not False else None
        told = f"Postprocess upscale to: {wanted[0]}x{wanted[1]}"
    else:
        factor, crop = body.upscaling_resize or 2.0, None
        told = f"Postprocess upscale by: {factor:g}"
    if factor > highest:
        name = "upscaling_resize_w" if body.resize_mode == 1 else "upscaling_resize"
        what = f"{upscaler.name} enlarges up to {highest} times, not {factor:.3g} times."
        raise field_problem("size_invalid", name, what)
    return _Plan((max(1, round(upload.width * factor)), max(1, round(upload.height * factor))), crop, told)


# --- what a file says ------------------------------------------------------------------------------------------------


@router.post(f"{ROOT}/png-info")
async def png_info(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    """The texts in a picture file, and the values in the one that says how it was drawn."""
    _, body = await read(request, services, PngInfo)

    def texts() -> dict[str, str]:
        data = decode_base64(body.image, "image")
        read_upload(data, services.settings.max_upload_pixels, "image")  # what is no sound picture is refused
        try:
            return texts_of(data)
        except PartsRefused as error:
            raise field_problem("image_broken", "image", "The file is divided as no sound one is.") from error

    found = await anyio.to_thread.run_sync(texts, limiter=services.decoders)
    info = found.pop(PARAMETERS, "")
    return JSONResponse({"info": info, "items": found, "parameters": values_of(info)})
