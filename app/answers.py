"""How routes answer: documents, problems in OpenAPI, preferences.

Owns headers that several routes send or read. Knows no route.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, WithJsonSchema
from starlette.responses import Response

from app.errors import ERRORS, PROBLEM_TYPE, ProblemDocument

Prefer = Annotated[
    list[str] | None,
    Header(description="`wait=N`: answer when it is done, or after N seconds."),
    WithJsonSchema(
        {"type": "string", "examples": ["wait=30"]}
    ),  # the header may come several times, and each time it is a text
]
_WAIT = re.compile(r"""wait\s*=\s*(?P<quote>"?)(?P<seconds>[0-9]{1,9})(?P=quote)""", re.IGNORECASE)


def document_answer(document: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(document.model_dump_json(), status, headers, media_type="application/json")


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the problems a route can answer with."""
    by_status: dict[int | str, list[str]] = {}
    for code in codes:
        by_status.setdefault(ERRORS[code].status, []).append(code)
    return {
        status: {
            "description": "; ".join(f"`{code}`: {ERRORS[code].title}" for code in found),
            "content": {PROBLEM_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}}},
        }
        for status, found in by_status.items()
    }


def preferred_wait_s(prefer: list[str], longest_s: float) -> float | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), capped; None when the client prefers none or one we cannot read."""
    for header in prefer:
        for preference in header.split(","):
            match = _WAIT.fullmatch(preference.partition(";")[0].strip())
            if match:
                return min(float(match["seconds"]), longest_s)
    return None
