"""The wire of `huggingface_hub.InferenceClient`, given `/hf/<task>` of this server as its model.

    InferenceClient(model="http://127.0.0.1:8000/hf/text-to-image").text_to_image("a red heart")

Owns `POST /hf/<task>` for every task of ours: `inputs` is the prompt of text-to-image and the picture of all others,
`parameters` are fields of POST /generate, the answer is the picture itself.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from app.dialect import Dialect, picture_files, refuse_unsupported, until_ended, until_ended_or_hung_up
from app.errors import Problem, field_problem
from app.intake import idempotency_of, parsed, queue_job, read_body
from app.payload import Payload, read_payload, require_no_files_but
from app.resolve import schema_problem
from app.schemas import Wire
from app.services import Services, ServicesHere, TenantHere
from workers.board import Idempotency
from workers.contract import JobView

NAME = "huggingface"
_OUR_NAMES = {"scheduler": "sampler"}
_RAW = re.compile(r"(image/.*|application/octet-stream)?$")
_SIDES = ("width", "height")

router = APIRouter()


class Body(Wire):
    """What the client sends. `parameters` are checked as fields of POST /generate."""

    inputs: str
    parameters: dict[str, Any] = {}

    @property
    def fields(self) -> dict[str, Any]:
        """Ours; what is null was not meant to be sent."""
        return {_OUR_NAMES.get(name, name): value for name, value in self.parameters.items() if value is not None}


@router.post("/hf/{task}")
async def draw(request: Request, services: ServicesHere, _tenant: TenantHere, task: str) -> Response:
    """One picture, as its bytes."""
    view, is_named = await _queued(request, services, task)
    wait = until_ended_or_hung_up if is_named else until_ended  # a repeat of a named one gets this very job
    view = await wait(request, services, view)
    files = await picture_files(services, view)
    assert view.record.outcome is not None, "a job with pictures has an outcome. This is a bug."
    picture = view.record.outcome.pictures[0]
    headers = {"X-Seed": str(picture.seed), "X-Job-ID": view.record.id}
    return Response(files[0], headers=headers, media_type=picture.media_type)


async def _queued(request: Request, services: Services, task: str) -> tuple[JobView, bool]:
    """The job, and whether an Idempotency-Key names it. The body ends here: the wait for the job may be long."""
    body = await read_body(request)

    def read() -> tuple[Payload, Idempotency | None]:
        payload = _payload(task, request.headers, body)
        return payload, idempotency_of(request.headers.get("idempotency-key"), payload)

    payload, idempotency = await parsed(services, body, read)
    accepted = await queue_job(request, services, payload, idempotency, NAME)
    return accepted.view, idempotency is not None


def _payload(task: str, headers: Headers, body: bytes) -> Payload:
    if _RAW.match(headers.get("content-type", "")):  # how it sends a picture without parameters
        return Payload({"task": task}, {"image": body})
    payload = read_payload(headers, body)
    require_no_files_but(payload, frozenset())
    try:
        sent = Body.model_validate(payload.fields)
    except ValidationError as error:
        raise schema_problem(error) from error
    fields = sent.fields
    if fields.get("num_images", 1) != 1:
        refuse_unsupported({"num_images": "The answer is one picture."})
    if "task" in fields:
        raise field_problem("field_unknown", "task", "The address names the task: `task` has no place here.")
    if set(_OUR_NAMES) | set(_OUR_NAMES.values()) <= set(sent.parameters):
        raise field_problem("field_invalid", "scheduler", "It is there as scheduler and as sampler: send one of them.")
    _take_target_size(fields)
    name = "prompt" if task == "text-to-image" else "image"
    if name in fields:
        raise field_problem("field_invalid", name, f"`{name}` is there as `inputs` and as a parameter.")
    return Payload({**fields, "task": task, name: sent.inputs})


def _take_target_size(fields: dict[str, Any]) -> None:
    """Replaces `target_size` by the width and the height that it holds."""
    size = fields.pop("target_size", None)
    if size is None:
        return
    if not isinstance(size, dict) or set(size) != set(_SIDES) or any(side in fields for side in _SIDES):
        raise field_problem("field_invalid", "target_size", "It is `width` and `height`, and then nothing else is.")
    fields.update(size)


def refuse(problem: Problem, _request_id: str) -> Response:
    """`error` is what the client shows; `code` and `errors` are those of docs/errors.md."""
    errors = [error.model_dump() for error in problem.errors]
    document = {"error": problem.detail, "code": problem.code, "errors": errors}
    return JSONResponse(document, problem.status, problem.headers)


DIALECT = Dialect(NAME, re.compile(r"/hf(/.*)?"), router, refuse, {"sampler": "scheduler"})
