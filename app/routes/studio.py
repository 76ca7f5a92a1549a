"""GET /: the studio, a page to draw on, and its files under /studio/. Nothing of it comes from elsewhere.

Owns how the files are sent and what the page is forbidden. Knows nothing of what they do: the page is a client of the
API like any other, and needs a key where the API does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header
from starlette.responses import Response

from app.errors import Problem

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).parent.parent / "static" / "studio"
_MEDIA_TYPES = MappingProxyType(
    {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
)
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # fetched with a key, they are blobs; previews come as data
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # asked again each time, so that page and scripts are always of one version
    }
)
Known = Annotated[str | None, Header(alias="If-None-Match")]


@router.get("/")
async def page(known: Known = None) -> Response:
    return await _file_answer("index.html", known)


@router.get("/studio/{name}")
async def asset(name: str, known: Known = None) -> Response:
    return await _file_answer(name, known)


async def _file_answer(name: str, known: str | None) -> Response:
    """The file, or word that the browser has it. Raises Problem."""
    path = STATIC / name
    if path.suffix not in _MEDIA_TYPES or path.parent != STATIC:
        raise Problem("route_unknown")
    try:
        data = await anyio.to_thread.run_sync(path.read_bytes)
    except (OSError, ValueError) as error:
        raise Problem("route_unknown") from error
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}
    if headers["ETag"] in (known or ""):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=_MEDIA_TYPES[path.suffix])
