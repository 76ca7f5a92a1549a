"""A request on its way in: from a parsed payload to a queued job, or to nothing at all.

Owns the order of the checks and the promise that a refusal leaves neither a job nor a file behind. Knows no HTTP
beyond the Problems it raises.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio.to_thread
from redis.exceptions import RedisError

from app.errors import Problem, field_problem
from app.payload import Payload, require_no_files_but
from app.resolve import Body, choose_model, parse_body, resolve
from app.schemas import ImageToImageBody
from app.services import Services
from app.uploads import REFERENCE, Upload, decode_base64, known_upload, read_upload
from workers.board import Idempotency, IdempotencyConflict
from workers.contract import Delivery, JobView, ModelEntry, Submission, new_job_id

_UPLOAD_FIELDS = frozenset({"image"})


@dataclass(frozen=True)
class Accepted:
    """A queued job; `is_new` is false when an Idempotency-Key led to an earlier one."""

    view: JobView
    is_new: bool


async def accept(
    services: Services, tenant: str, payload: Payload, idempotency: Idempotency | None, traceparent: str | None
) -> Accepted:
    """Checks everything, stores the upload, queues the job. Raises Problem; then nothing was queued or stored."""
    if idempotency:
        try:
            earlier = await services.on_board(services.board.find_idempotent, tenant, idempotency)
        except IdempotencyConflict as error:
            raise Problem("idempotency_conflict") from error
        if earlier:
            return Accepted(earlier, False)
    require_no_files_but(payload, _UPLOAD_FIELDS)
    body = parse_body(_with_upload_marks(payload))
    catalogue = await services.on_board(services.board.catalogue)
    entry = choose_model(body, catalogue, services.settings.default_model)
    await _check_queue(services, tenant, entry)
    upload = await _read_image(services, tenant, body, payload)
    submission = Submission(
        tenant=tenant,
        request=resolve(body, entry, upload),
        delivery=Delivery(output_format=body.output_format, previews=body.previews),
        priority=body.priority,
        traceparent=traceparent,
    )
    return await _store_and_submit(services, submission, entry, upload, idempotency)


def _with_upload_marks(payload: Payload) -> dict[str, object]:
    """The fields as the schema sees them: a file part stands where the base64 text would."""
    twice = payload.fields.keys() & payload.files.keys()
    if twice:
        name = min(twice)
        raise field_problem("field_invalid", name, f"{name!r} is there as text and as a file.")
    return {**payload.fields, **dict.fromkeys(payload.files, "")}


async def _check_queue(services: Services, tenant: str, entry: ModelEntry) -> None:
    if await services.on_board(services.board.queued_count, tenant) < services.settings.max_queued:
        return
    wait_s = await services.on_board(services.board.retry_after_s, tenant, entry.name)
    what = f"{services.settings.max_queued} of your jobs are waiting."
    raise Problem("queue_full", what, headers={"Retry-After": str(wait_s)})


async def _read_image(services: Services, tenant: str, body: Body, payload: Payload) -> Upload | None:
    if not isinstance(body, ImageToImageBody):
        return None
    reference = REFERENCE.fullmatch(body.image.strip())
    if reference and "image" not in payload.files:
        return await _known_image(services, tenant, reference[1])

    def read() -> Upload:
        data = payload.files["image"] if "image" in payload.files else decode_base64(body.image)
        return read_upload(data, services.settings.max_upload_pixels)

    return await anyio.to_thread.run_sync(read, limiter=services.decoders)


async def _known_image(services: Services, tenant: str, digest: str) -> Upload:
    holder = await services.on_board(services.board.upload_holder, tenant, digest)
    if holder is not None:
        try:
            png = await services.on_store(services.store.get, holder, f"{digest}.png")
            return known_upload(png, digest)
        except FileNotFoundError:
            holder = None
    raise field_problem("upload_unknown", "image", "No job of yours holds this picture.")


async def _store_and_submit(
    services: Services,
    submission: Submission,
    entry: ModelEntry,
    upload: Upload | None,
    idempotency: Idempotency | None,
) -> Accepted:
    job_id = new_job_id()
    is_kept = False
    try:
        if upload:
            await services.on_store(services.store.put, job_id, upload.name, upload.png)
        digests = (upload.digest,) if upload else ()
        async with services.door:
            await _check_queue(services, submission.tenant, entry)
            view, is_new = await services.on_board(
                services.board.submit, submission, entry, job_id, idempotency, digests
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
        if upload and not is_kept:
            await services.on_store(services.store.erase, job_id)


async def _may_be_queued(services: Services, job_id: str) -> bool:
    try:
        return await services.on_board(services.board.is_known, job_id)
    except RedisError:
        return True
