"""GET /docs: the OpenAPI page, from our own files: no request leaves the machine."""

from __future__ import annotations

import gzip
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response

from app.errors import Problem

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).parent.parent / "static" / "swagger"
_FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}


@router.get("/docs")
async def docs() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="denoised",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="data:,",
    )


@router.get("/docs/{name}")
async def asset(request: Request, name: str) -> Response:
    if name not in _FILES:
        raise Problem("route_unknown")
    data = (STATIC / f"{name}.gz").read_bytes()
    headers = {"Cache-Control": "public, max-age=86400", "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(gzip.decompress(data), headers=headers, media_type=_FILES[name])
    return Response(data, headers={**headers, "Content-Encoding": "gzip"}, media_type=_FILES[name])
