"""Replicate's HTTP API, as its client `replicate` 1.0.7 speaks it: predictions, files, models.

Owns the paths and the shape of refusals. docs/replicate.md says what is the same and what is not.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from app.dialect import Dialect
from app.dialects.replicate import files, models, predictions
from app.dialects.replicate.documents import webhook_body
from app.dialects.replicate.inputs import FIELD_NAMES, PredictionInput
from app.errors import ERRORS, FieldError, Problem

_STATUSES = {410: 404}
"""Its clients know "not found" and no "gone"."""


def _refuse(problem: Problem, request_id: str) -> Response:
    """RFC 9457, of which its client shows type, title, status and detail."""
    status = _STATUSES.get(problem.status, problem.status)
    # Its client shows `detail` alone, so that has to say what is wrong with each field.
    untold = [f"{_field(error)}: {error.detail}." for error in problem.errors if error.detail not in problem.detail]
    body: dict[str, Any] = {
        "type": f"urn:denoised:error:{problem.code}",
        "title": ERRORS[problem.code].title,
        "status": status,
        "detail": " ".join([*untold, problem.detail]),
        "request_id": request_id,
    }
    if problem.errors:
        body["invalid_fields"] = [
            {"type": problem.code, "field": _field(error), "description": error.detail} for error in problem.errors
        ]
    if "Retry-After" in problem.headers:
        body["retry_after"] = int(problem.headers["Retry-After"])
    return JSONResponse(body, status, problem.headers)


def _field(error: FieldError) -> str:
    """`input.seed` for what the checks behind this dialect call `/seed`."""
    parts = error.pointer.removeprefix("/").split("/")
    return ".".join(["input", *parts] if parts[0] in PredictionInput.model_fields else parts)


DIALECT = Dialect(
    name=predictions.NAME,
    paths=re.compile(
        r"/v1/(predictions|files|account|webhooks|deployments|trainings|hardware|collections)(/.*)?"
        r"|/v1/models/[^/]+/[^/]+(/.*)?"
    ),
    router=APIRouter(routes=[*predictions.router.routes, *models.router.routes, *files.router.routes]),
    refuse=_refuse,
    field_names={**FIELD_NAMES, "errors": "invalid_fields"},
    webhook_body=webhook_body,
)
