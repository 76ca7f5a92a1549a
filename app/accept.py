"""A request on its way in: from a parsed payload to a queued job, or to nothing at all.

Owns the order of the checks and the promise that a refusal leaves neither a job nor a file behind. Knows no HTTP
beyond the Problems it raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import anyio.to_thread
from redis.exceptions import RedisError

from app.documents import job_path
from app.errors import Problem, field_problem
from app.payload import Payload, require_no_files_but
from app.resolve import Uploads, check_controls, choose_model, enlarged_size, parse_body, resolve
from app.room import needed_bytes
from app.schemas import AnyBody, InpaintingBody, TextToImageBody, WebhookBody
from app.services import Services
from app.uploads import (
    REFERENCE,
    MaskUpload,
    Upload,
    decode_base64,
    has_transparency,
    known_upload,
    read_mask,
    read_upload,
)
from app.webhooks.address import Refused, read_target
from app.webhooks.body import NATIVE
from workers.board import Idempotency, IdempotencyConflict, NotDurable
from workers.contract import Delivery, JobView, ModelEntry, Priority, Submission, Webhook, new_job_id

_UPLOAD_FIELDS = frozenset({"image", "mask_image"})
_LONGEST_SIDES = {"webp": 16383, "jpeg": 65500}
"""Pixels that these formats, as they are written here, can have a side."""


@dataclass(frozen=True)
class Trace:
    """Where a request came from: what finds it again, in logs and traces of others, and how its webhook speaks."""

    request_id: str
    traceparent: str | None = None
    dialect: str | None = None
    """Name of the dialect that it came in by."""
    base_url: str = ""
    """By which the client has reached the server."""


@dataclass(frozen=True)
class Accepted:
    """A queued job; `is_new` is false when an Idempotency-Key led to an earlier one."""

    view: JobView
    is_new: bool


@dataclass(frozen=True)
class Order:
    """A request that can be queued: everything checked, and everything that came along read."""

    submission: Submission
    entry: ModelEntry
    uploads: Uploads


ReadOrder = Callable[[], Awaitable[Order]]
"""Raises Problem."""


async def accept(
    services: Services, tenant: str, read: ReadOrder, idempotency: Idempotency | None, trace: Trace
) -> Accepted:
    """Reads the order, stores the uploads, queues the job. Raises Problem; then nothing was queued or stored, unless
    the problem is that a queued job is not known to be on disk. A repeat is not read again."""
    accepted = await _find_earlier(services, tenant, idempotency)
    if accepted is None:
        order = await read()
        accepted = await _store_and_submit(services, _traced(order, trace), idempotency)
    if services.settings.durability == "always":
        await _confirm_durable(services, accepted.view)
    return accepted


async def _find_earlier(services: Services, tenant: str, idempotency: Idempotency | None) -> Accepted | None:
    if idempotency is None:
        return None
    try:
        earlier = await services.on_board(services.board.find_idempotent, tenant, idempotency)
    except IdempotencyConflict as error:
        raise Problem("idempotency_conflict") from error
    return Accepted(earlier, False) if earlier else None


def _traced(order: Order, trace: Trace) -> Order:
    webhook = order.submission.webhook
    if webhook is not None:
        webhook = webhook.model_copy(update={"dialect": trace.dialect or NATIVE, "base_url": trace.base_url})
    found_by = {"traceparent": trace.traceparent, "request_id": trace.request_id, "dialect": trace.dialect}
    return replace(order, submission=order.submission.model_copy(update={**found_by, "webhook": webhook}))


async def _confirm_durable(services: Services, view: JobView) -> None:
    """Also for a repeat: what its first request could not confirm may not be on disk yet."""
    try:
        await services.on_board(services.board.confirm_durable, view.record.submission.tenant)
    except NotDurable as error:
        where = {"Location": job_path(view.record.id)}
        raise Problem("durability_unconfirmed", f"The job is {view.record.id}.", headers=where) from error


async def choose_loaded(
    services: Services, body: AnyBody, catalogue: Mapping[str, ModelEntry], default_model: str | None
) -> ModelEntry:
    """As `choose_model`; but what nobody serves while all workers are still loading may be served in a moment: Problem
    `not_ready`, which clients repeat."""
    try:
        return choose_model(body, catalogue, default_model)
    except Problem as problem:
        beats = await services.on_board(services.board.beats)
        if beats and all(beat.state == "loading" for beat in beats):
            raise Problem("not_ready", "The workers are loading.") from problem
        raise


async def read_order(services: Services, tenant: str, payload: Payload) -> Order:
    """The order that a body of POST /generate is. Raises Problem."""
    require_no_files_but(payload, _UPLOAD_FIELDS)
    body = parse_body(with_upload_marks(payload))
    check_priority(services, tenant, body.priority)
    webhook = webhook_of(services, body.webhook)
    catalogue = await services.on_board(services.board.catalogue)
    entry = await choose_loaded(services, body, catalogue, services.settings.default_model)
    await check_queue(services, tenant, entry)
    check_controls(body, entry)
    uploads = await _read_uploads(services, tenant, body, payload)
    submission = Submission(
        tenant=tenant,
        request=resolve(body, entry, uploads),
        delivery=Delivery(output_format=body.output_format, previews=body.previews),
        priority=body.priority,
        deadline_s=body.deadline_s,
        webhook=webhook,
        memo=dict(payload.memo),
    )
    return Order(submission, entry, uploads)


def webhook_of(services: Services, body: WebhookBody | None) -> Webhook | None:
    """Whom the job is to tell. Raises Problem for an address that this server does not call."""
    if body is None:
        return None
    try:
        target = read_target(body.url, services.settings.webhook_allowed)
    except Refused as error:
        raise field_problem("webhook_refused", "webhook/url", str(error)) from error
    return Webhook(url=body.url, host=target.host, events=tuple(dict.fromkeys(body.events)))


def check_priority(services: Services, tenant: str, priority: Priority) -> None:
    """Raises Problem for one that the tenant may not ask for."""
    if priority == "high" and not services.may_be_high(tenant):
        raise Problem("priority_refused")


def with_upload_marks(payload: Payload) -> dict[str, object]:
    """The fields as the schema sees them: a file part stands where the base64 text would."""
    twice = payload.fields.keys() & payload.files.keys()
    if twice:
        name = min(twice)
        raise field_problem("field_invalid", name, f"{name!r} is there as text and as a file.")
    return {**payload.fields, **dict.fromkeys(payload.files, "")}


async def check_queue(services: Services, tenant: str, entry: ModelEntry) -> None:
    """Raises Problem when the tenant has as many waiting jobs as it may."""
    if await services.on_board(services.board.queued_count, tenant) < services.settings.max_queued:
        return
    wait_s = await services.on_board(services.board.retry_after_s, tenant, entry.name)
    what = f"{services.settings.max_queued} of your jobs are waiting."
    raise Problem("queue_full", what, headers={"Retry-After": str(wait_s)})


async def _read_uploads(services: Services, tenant: str, body: AnyBody, payload: Payload) -> Uploads:
    known: dict[str, _Source] = {}

    async def source(name: str, text: str) -> _Source:
        which = text.strip() if REFERENCE.fullmatch(text.strip()) else name
        if which not in known:  # one stored upload may be named several times
            known[which] = await _source(services, tenant, payload, name, text)
        return known[which]

    controls = [await source(f"controls/{number}/image", control.image) for number, control in enumerate(body.controls)]
    image_source = None if isinstance(body, TextToImageBody) else await source("image", body.image)
    mask_source = None
    if isinstance(body, InpaintingBody) and body.mask_image is not None:
        mask_source = await source("mask_image", body.mask_image)
    max_pixels = services.settings.max_upload_pixels

    def read() -> Uploads:
        read_controls = tuple(control.read(max_pixels) for control in controls)
        if image_source is None:
            return Uploads(controls=read_controls)
        image, mask = image_source.read(max_pixels), None
        if isinstance(body, InpaintingBody):
            mask = _mask(body, image_source, mask_source, max_pixels)
            check_inpainting(body, image, mask, max_pixels)
        return Uploads(image, mask, read_controls)

    if image_source is None and not controls:
        return Uploads()
    return await anyio.to_thread.run_sync(read, limiter=services.decoders)


@dataclass(frozen=True)
class _Source:
    """Where the bytes of an upload field are: a part's, base64, or the file of an earlier job under its digest."""

    name: str
    data: bytes | None = None
    text: str = ""
    digest: str = ""

    def bytes(self) -> bytes:
        return self.data if self.data is not None else decode_base64(self.text, self.name)

    def read(self, max_pixels: int) -> Upload:
        if self.digest and self.data is not None:
            return known_upload(self.data, self.digest)
        return read_upload(self.bytes(), max_pixels, self.name)


async def _source(services: Services, tenant: str, payload: Payload, name: str, text: str) -> _Source:
    if name in payload.files:
        return _Source(name, payload.files[name])
    reference = REFERENCE.fullmatch(text.strip())
    if not reference:
        return _Source(name, text=text)
    held = await held_upload(services, tenant, reference[1])
    if held is None:
        raise field_problem("upload_unknown", name, "No job of yours holds this picture.")
    return _Source(name, held, digest=reference[1])


async def held_upload(services: Services, tenant: str, digest: str) -> bytes | None:
    """The file of an upload that some job of the tenant still holds."""
    holder = await services.on_board(services.board.upload_holder, tenant, digest)
    if holder is None:
        return None
    try:
        return await services.on_store(services.store.get, holder, f"{digest}.png")
    except FileNotFoundError:
        return None


def _mask(body: InpaintingBody, image: _Source, mask: _Source | None, max_pixels: int) -> MaskUpload | None:
    """The mask that was sent; else the transparency of the picture; None where only pixels are added around it."""
    if mask is not None:
        # A mask that was stored is grey already, whatever it was when it came.
        return read_mask(mask.bytes(), max_pixels, "white" if mask.digest else body.mask_convention)
    if has_transparency(image.bytes(), max_pixels):
        return read_mask(image.bytes(), max_pixels, "transparent", "image")
    if any(body.outpaint):
        return None
    raise field_problem("mask_missing", "mask_image", "There is no mask, and nothing is to be added.")


def check_inpainting(body: InpaintingBody, image: Upload, mask: MaskUpload | None, max_pixels: int) -> None:
    """Raises Problem where mask and picture do not fit, or the answer would be too large."""
    if mask is not None and (mask.width, mask.height) != (image.width, image.height):
        sizes = f"The mask has {mask.width} x {mask.height} pixels and the picture {image.width} x {image.height}."
        raise field_problem("mask_size_mismatch", "mask_image", sizes)
    width, height = enlarged_size(body, image)
    longest = _LONGEST_SIDES.get(body.output_format)
    if longest is not None and max(width, height) > longest:
        what = f"The answer has {width} x {height} pixels, and a {body.output_format} at most {longest} a side."
        raise field_problem("size_invalid", "output_format", what)
    if width * height > max_pixels:
        side = max(("left", "top", "right", "bottom"), key=lambda side: getattr(body, f"outpaint_{side}"))
        what = f"The answer would have {width} x {height} pixels; at most {max_pixels} are made."
        raise field_problem("image_too_large", f"outpaint_{side}", what)


async def _store_and_submit(services: Services, order: Order, idempotency: Idempotency | None) -> Accepted:
    job_id, submission, uploads = new_job_id(), order.submission, order.uploads
    await services.on_store(services.room.take, job_id, needed_bytes(submission.request, uploads))
    is_kept = False
    try:
        for upload in {upload.name: upload for upload in uploads.all}.values():
            await services.on_store(services.store.put, job_id, upload.name, upload.png)
        digests = tuple(upload.digest for upload in uploads.all)
        async with services.door:
            await check_queue(services, submission.tenant, order.entry)
            view, is_new = await services.on_board(
                services.board.submit, submission, order.entry, job_id, idempotency, digests
            )
        is_kept = is_new
        return Accepted(view, is_new)
    except IdempotencyConflict as error:
        raise Problem("idempotency_conflict") from error
    except RedisError:
        # The transaction may have gone through with its answer lost: files of a job that may be queued stay. If it
        # did not, the store's own expiry removes them.
        is_kept = await _may_be_queued(services, job_id)
        raise
    finally:
        if not is_kept:
            await _leave_nothing(services, job_id, uploads)


async def _leave_nothing(services: Services, job_id: str, uploads: Uploads) -> None:
    try:
        if uploads.all:
            await services.on_store(services.store.erase, job_id)
    finally:
        with contextlib.suppress(RedisError):  # what is left reserved is found later
            await services.on_board(services.room.give_back, job_id)


async def _may_be_queued(services: Services, job_id: str) -> bool:
    try:
        return await services.on_board(services.board.is_known, job_id)
    except RedisError:
        return True
