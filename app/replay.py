"""A replay on its way in: from the body of POST /replay to an order for the picture that its recipe draws.

Owns where the picture, the recipe and what the first picture was made from are found, and that these are the very
same. What a recipe says is read by `app.recipes`; queues and promises are those of `app.accept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread
from pydantic import ValidationError

from app.accept import (
    Order,
    check_inpainting,
    check_priority,
    check_queue,
    choose_loaded,
    held_upload,
    webhook_of,
    with_upload_marks,
)
from app.errors import Problem, field_problem
from app.parts import JPEG, is_lossless
from app.payload import Payload, require_no_files_but
from app.recipes import ReadRecipe, about_recipe, read_recipe, recipe_in, served
from app.replay_schemas import ReplayBody
from app.resolve import Uploads, check_controls, parse_body, resolve, schema_problem
from app.schemas import AnyBody, InpaintingBody
from app.services import Services
from app.uploads import MaskConvention, MaskUpload, Upload, decode_base64, known_upload, read_mask, read_upload
from models.request import AnyRequest, InpaintingRequest, TextToImageRequest
from workers.contract import Delivery, FileKind, ModelEntry, Original, Submission

FILES = frozenset({"image", "init_image", "mask_image"})
_CONVENTIONS: tuple[MaskConvention, ...] = ("auto", "white", "transparent")


@dataclass(frozen=True)
class _Sent:
    """What came along: the recipe, the first picture with what its file did to it, and what that was made from."""

    recipe: ReadRecipe
    picture: Upload | None
    file_kind: FileKind
    init_image: bytes | None
    mask_image: bytes | None
    control_images: tuple[bytes, ...]


async def read_replay(services: Services, tenant: str, payload: Payload) -> Order:
    """The order that a body of POST /replay is. Raises Problem."""
    require_no_files_but(payload, FILES)
    body = _parse(payload)
    check_priority(services, tenant, body.priority)
    webhook = webhook_of(services, body.webhook)
    max_pixels = services.settings.max_upload_pixels
    sent = await anyio.to_thread.run_sync(_read_sent, body, payload, max_pixels, limiter=services.decoders)
    catalogue = await services.on_board(services.board.catalogue)
    wanted = served(sent.recipe, catalogue)
    with about_recipe():
        drawing = parse_body(_as_body(wanted, body))
        entry = await choose_loaded(services, drawing, catalogue, None)
        check_controls(drawing, entry)
    await check_queue(services, tenant, entry)
    uploads = await _find_uploads(services, tenant, wanted, sent)
    with about_recipe():
        _check(wanted, drawing, entry, uploads, max_pixels)
    original = Original(
        provenance=sent.recipe.provenance,
        picture=sent.picture.reference if sent.picture else None,
        file_kind=sent.file_kind,
    )
    submission = Submission(
        tenant=tenant,
        request=wanted,
        delivery=Delivery(output_format=body.output_format, previews=body.previews),
        priority=body.priority,
        deadline_s=body.deadline_s,
        original=original,
        webhook=webhook,
    )
    return Order(submission, entry, replace(uploads, original=sent.picture))


def _parse(payload: Payload) -> ReplayBody:
    try:
        return ReplayBody.model_validate(with_upload_marks(payload))
    except ValidationError as error:
        raise schema_problem(error) from error


def _read_sent(body: ReplayBody, payload: Payload, max_pixels: int) -> _Sent:
    """Everything decoded that decides about the request; what it was made from is looked at when it is known what the
    recipe names."""

    def bytes_of(name: str, text: str | None) -> bytes | None:
        return payload.files[name] if name in payload.files else None if text is None else decode_base64(text, name)

    data = bytes_of("image", body.image)
    picture = None if data is None else read_upload(data, max_pixels)  # before its texts are: it bounds its parts
    recipe = body.recipe if body.recipe is not None else recipe_in(data or b"")
    return _Sent(
        recipe=read_recipe(recipe),
        picture=picture,
        file_kind=_kind_of(data or b""),
        init_image=bytes_of("init_image", body.init_image),
        mask_image=bytes_of("mask_image", body.mask_image),
        control_images=tuple(
            decode_base64(text, f"control_images/{number}") for number, text in enumerate(body.control_images)
        ),
    )


def _kind_of(data: bytes) -> FileKind:
    if data.startswith(JPEG):
        return "jpeg"
    return "lossless" if not data or is_lossless(data) else "lossy"


def _as_body(request: AnyRequest, body: ReplayBody) -> dict[str, Any]:
    """The request as POST /generate would be sent it."""
    return {**request.model_dump(mode="json"), "output_format": body.output_format}


def _check(request: AnyRequest, drawing: AnyBody, entry: ModelEntry, uploads: Uploads, max_pixels: int) -> None:
    """Raises Problem for a request that nobody could have asked this server for."""
    if isinstance(drawing, InpaintingBody):
        assert uploads.image is not None, "inpainting came without its upload. This is a bug."
        check_inpainting(drawing, uploads.image, uploads.mask, max_pixels)
    understood = resolve(drawing, entry, uploads)
    for name, value in request:
        if getattr(understood, name) != value and name not in _UPLOADED:
            raise field_problem("field_invalid", name, "Such a value is never understood as itself.")


_UPLOADED = frozenset({"image", "mask_image", "controls"})
"""Compared where they are found."""


# --- what the first picture was made from ----------------------------------------------------------------------------


async def _find_uploads(services: Services, tenant: str, request: AnyRequest, sent: _Sent) -> Uploads:
    """What was sent again, and else what jobs of the tenant still hold. Raises Problem."""
    image, mask = _names_of(request)
    controls = tuple(control.image for control in request.controls)
    max_pixels = services.settings.max_upload_pixels

    def read() -> tuple[dict[str, Upload], MaskUpload | None]:
        pictures = _sent_image(sent, image, max_pixels) | _sent_controls(sent.control_images, controls, max_pixels)
        return pictures, _sent_mask(sent, mask, max_pixels)

    found, mask_upload = await anyio.to_thread.run_sync(read, limiter=services.decoders)

    async def find(field: str, reference: str) -> None:
        if reference not in found:
            found[reference] = known_upload(*await _held(services, tenant, field, reference))

    if image is not None:
        await find("init_image", image)
    if mask is not None and mask_upload is None:
        png, digest = await _held(services, tenant, "mask_image", mask)
        held = await anyio.to_thread.run_sync(read_mask, png, max_pixels, "white", limiter=services.decoders)
        mask_upload = replace(held, png=png, digest=digest)
    for control in controls:
        await find("control_images", control)
    return Uploads(found[image] if image else None, mask_upload, tuple(found[control] for control in controls))


def _names_of(request: AnyRequest) -> tuple[str | None, str | None]:
    """The recipe's names of its picture and its mask."""
    image = None if isinstance(request, TextToImageRequest) else request.image
    return image, request.mask_image if isinstance(request, InpaintingRequest) else None


async def _held(services: Services, tenant: str, field: str, reference: str) -> tuple[bytes, str]:
    """The file and its digest. Raises Problem."""
    digest = reference.removeprefix("sha256:")
    png = await held_upload(services, tenant, digest)
    if png is None:
        what = f"The recipe names {reference}, which no job of yours holds any more. Send that picture in `{field}`."
        raise field_problem("upload_unknown", field, what)
    return png, digest


def _sent_image(sent: _Sent, wanted: str | None, max_pixels: int) -> dict[str, Upload]:
    if sent.init_image is None:
        return {}
    upload = read_upload(sent.init_image, max_pixels, "init_image")
    return {upload.reference: _the_very(upload, (wanted,), "init_image")}


def _sent_controls(sent: Sequence[bytes], wanted: Sequence[str], max_pixels: int) -> dict[str, Upload]:
    names = [f"control_images/{number}" for number in range(len(sent))]
    uploads = [(read_upload(data, max_pixels, name), name) for data, name in zip(sent, names, strict=True)]
    return {upload.reference: _the_very(upload, wanted, name) for upload, name in uploads}


def _sent_mask(sent: _Sent, wanted: str | None, max_pixels: int) -> MaskUpload | None:
    """The mask, whatever convention it was sent with the first time; it may have been the transparency of the
    picture."""
    data, name = (sent.mask_image, "mask_image") if sent.mask_image is not None else (sent.init_image, "init_image")
    if data is None or (name == "init_image" and wanted is None):
        return None
    mask = None
    for convention in _CONVENTIONS if name == "mask_image" else _CONVENTIONS[2:]:
        try:
            mask = read_mask(data, max_pixels, convention, name)
        except Problem as problem:
            if problem.code != "mask_empty":
                raise
            continue
        if mask.reference == wanted:
            return mask
    if name == "init_image":
        return None
    if mask is None:
        raise field_problem("mask_empty", name, "No pixel of the mask counts.")
    _the_very(mask, (wanted,), name)
    return None


def _the_very(upload: Upload, wanted: Sequence[str | None], field: str) -> Upload:
    if upload.reference in wanted:
        return upload
    names = [reference for reference in wanted if reference is not None]
    if not names:
        raise field_problem("field_invalid", field, "The recipe names no such picture: leave it out.")
    raise field_problem("upload_mismatch", field, f"It is {upload.reference}; the recipe names {', '.join(names)}.")
