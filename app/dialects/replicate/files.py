"""Uploaded files, and what an address in a prediction's input means.

Owns the files of tenants that belong to no job yet: each lies in the store in a folder of its own, under an id made
like a job's, so that it is swept away when pictures of its age are. Its name says whose it is. Nothing is ever fetched
from elsewhere.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.dialect import picture_files, refuse_unsupported
from app.dialects.replicate.documents import written
from app.errors import Problem, field_problem
from app.intake import parsed, read_body
from app.parts import JPEG, PNG, is_webp
from app.payload import Payload, read_payload, require_no_files_but
from app.services import Services, ServicesHere, TenantHere
from workers.contract import ENDED, created_at_of, new_job_id

router = APIRouter()

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://.*", re.DOTALL)
_FILE = re.compile(r"https?://[^/]+/v1/files/([0-9a-f]{44})")
_PICTURE = re.compile(r"https?://[^/]+/jobs/([0-9a-f]{44})/images/([0-9]{1,6})")

_FORM_FIELDS = frozenset({"content", "metadata"})


@router.post("/v1/files")
async def create_file(request: Request, services: ServicesHere, tenant: TenantHere) -> Response:
    body = await read_body(request)
    data = _content(await parsed(services, body, lambda: read_payload(request.headers, body)))
    kind, file_id = _kind(data), new_job_id()
    await services.on_store(services.room.take, file_id, len(data))
    try:
        await services.on_store(services.store.put, file_id, _name(tenant), data)
    except Problem:
        await services.on_board(services.room.give_back, file_id)
        raise
    return JSONResponse(await parsed(services, data, lambda: _document(request, services, file_id, kind, data)), 201)


@router.get("/v1/files/{file_id}")
async def read_file(request: Request, services: ServicesHere, tenant: TenantHere, file_id: str) -> Response:
    data = await _file(services, tenant, file_id)
    return JSONResponse(await parsed(services, data, lambda: _document(request, services, file_id, _kind(data), data)))


@router.delete("/v1/files/{file_id}")
async def delete_file(services: ServicesHere, tenant: TenantHere, file_id: str) -> Response:
    await _file(services, tenant, file_id)
    await services.on_store(services.store.erase, file_id)
    await services.on_board(services.room.give_back, file_id)
    return Response(status_code=204)


async def bytes_at(services: Services, tenant: str, field: str, text: str) -> bytes | None:
    """The file that an address in `field` means: an upload, or a picture of an earlier job of this tenant. None for a
    text that is no address. Raises Problem for any other address."""
    if not _ADDRESS.fullmatch(text):
        return None
    upload, picture = _FILE.fullmatch(text), _PICTURE.fullmatch(text)
    try:
        if upload:
            return await _file(services, tenant, upload[1])
        if picture:
            view = await services.owned_job(picture[1], tenant)
            if view.status not in ENDED:
                raise Problem("image_not_ready")
            return (await picture_files(services, view))[int(picture[2])]
    except (Problem, IndexError) as error:
        if isinstance(error, Problem) and error.code in ("store_unavailable", "not_ready"):
            raise
        raise field_problem("upload_unknown", field, f"`{field}` names no file or picture of yours here.") from error
    what = (
        f"`{field}` is an address elsewhere, and nothing is fetched from there: send a data URL, or upload the file"
        " (POST /v1/files, as the client does with an open file), or the address of a picture of this server."
    )
    refuse_unsupported({field: what})
    return None


def _content(sent: Payload) -> bytes:
    require_no_files_but(sent, _FORM_FIELDS)
    for name in sent.fields:
        if name not in _FORM_FIELDS:
            raise field_problem("field_unknown", name, f"There is no field {name!r}.")
    if "content" not in sent.files:
        raise field_problem("field_invalid", "content", "`content` is missing: the file, as a part of a form.")
    metadata = sent.fields.get("metadata", sent.files.get("metadata", b"{}"))
    if metadata not in (b"{}", "{}", "", b""):
        refuse_unsupported({"metadata": "`metadata` is not kept here."})
    return sent.files["content"]


async def _file(services: Services, tenant: str, file_id: str) -> bytes:
    """Raises Problem `file_unknown` for one that is not there, or not this tenant's."""
    if created_at_of(file_id) is None:
        raise Problem("file_unknown")
    try:
        return await services.on_store(services.store.get, file_id, _name(tenant))
    except FileNotFoundError as error:
        raise Problem("file_unknown") from error


def _name(tenant: str) -> str:
    return f"upload.{tenant}"


def _kind(data: bytes) -> str:
    """Name of the picture's format. Raises Problem for a file that no request could use."""
    kinds = {"png": data.startswith(PNG), "jpeg": data.startswith(JPEG), "webp": is_webp(data)}
    for kind, is_it in kinds.items():
        if is_it:
            return kind
    raise field_problem("image_format_unsupported", "content", "`content` starts like none of the formats read here.")


def _document(request: Request, services: Services, file_id: str, kind: str, data: bytes) -> dict[str, Any]:
    """The file as its clients know one. Its name and type say what it is, not what the sender called it."""
    digest, made = hashlib.sha256(data).hexdigest(), created_at_of(file_id) or 0.0
    return {
        "id": file_id,
        "name": f"upload.{kind}",
        "content_type": f"image/{kind}",
        "size": len(data),
        "etag": digest,
        "checksums": {"sha256": digest},
        "metadata": {},
        "created_at": written(made),
        "expires_at": written(made + services.settings.retention_s),
        "urls": {"get": f"{request.base_url}v1/files/{file_id}"},
    }
