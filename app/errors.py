"""The error table: everything this server refuses, and what to send instead.

Owns codes, statuses and the one shape of every answer that is not a success (RFC 9457, `application/problem+json`).
Knows nothing of why a check failed: whoever checks raises a Problem with a code of this table.

    400  the bytes are no request      json_invalid  json_too_deep  multipart_invalid  body_incomplete
    │                                  idempotency_key_invalid  cursor_invalid
    401  who are you                   key_required  key_unknown
    403  not from that page, not you   origin_refused  operator_required  priority_refused
    404  nothing there                 route_unknown  job_unknown  image_unknown  image_not_ready  model_absent
    │                                  file_unknown
    405  not with that method          method_not_allowed
    408  too slow                      body_timeout
    409  it does not work out          model_unusable
    410  there no more                 job_gone  image_gone  job_canceled
    413  too large                     body_too_large
    415  not that content              content_type_unsupported
    421  not under that name           host_refused
    422  understood, and refused
    ├── fields                         field_invalid  field_unknown  field_unsupported
    ├── prompt                         prompt_empty  prompt_too_long  clip_skip_out_of_range
    ├── what to draw                   size_invalid  steps_out_of_range  num_images_out_of_range
    │                                  noise_level_out_of_range
    ├── with what                      model_unknown  task_unavailable  sampler_unknown  noise_schedule_unknown
    │                                  lora_unknown  control_unknown  upscaler_unknown
    ├── uploads                        image_not_base64  image_format_unsupported  image_broken  image_too_large
    │                                  image_animated  image_mode_unsupported  upload_unknown
    ├── masks                          mask_missing  mask_empty  mask_size_mismatch
    ├── whom to tell                   webhook_refused
    ├── recipes                        recipe_missing  recipe_invalid  upload_mismatch
    └── repeats                        idempotency_conflict
    429  not now                       queue_full  streams_full
    503  not here, not now             redis_unavailable  no_worker  not_ready  store_unavailable  store_full
                                       durability_unconfirmed  job_failed  internal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field

PROBLEM_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table."""

    status: int
    title: str
    remedy: str
    """What to send, or do, instead."""


def _table() -> dict[str, ErrorKind]:
    kind = ErrorKind
    return {
        "json_invalid": kind(
            400,
            "The body is not JSON",
            "Send one JSON object in UTF-8 with plain finite numbers and no key twice.",
        ),
        "json_too_deep": kind(
            400, "The JSON is nested too deeply", "Send an object whose fields nest no deeper than /docs shows."
        ),
        "multipart_invalid": kind(
            400,
            "The multipart body cannot be read",
            "Send complete form-data parts with names, texts in UTF-8, each name once.",
        ),
        "body_incomplete": kind(
            400, "The body ended too early", "Send as many bytes as Content-Length promises, then wait for the answer."
        ),
        "idempotency_key_invalid": kind(
            400, "The Idempotency-Key cannot be used", "Send 1 to 255 printable ASCII characters, such as a UUID."
        ),
        "cursor_invalid": kind(
            400, "The cursor cannot be read", "Send `next_cursor` of the page before, unchanged, or none at all."
        ),
        "key_required": kind(401, "This server wants a key", "Send the header `Authorization: Bearer YOUR-KEY`."),
        "key_unknown": kind(401, "This key opens nothing", "Check the key, or ask whoever runs the server for one."),
        "origin_refused": kind(
            403,
            "Pages of this origin may not call the server",
            "Call from the server's own pages, or add the origin to DENOISED_ALLOWED_ORIGINS.",
        ),
        "operator_required": kind(
            403, "Only operators may do this", "Ask an operator, or name the tenant in DENOISED_OPERATORS."
        ),
        "priority_refused": kind(
            403,
            "This key may not ask for the priority high",
            "Send `normal` or `low`, or have the tenant named in DENOISED_HIGH_PRIORITY.",
        ),
        "route_unknown": kind(404, "There is no such route", "See /docs for the routes."),
        "job_unknown": kind(404, "There is no such job", "Send the id of one of your own jobs; GET /jobs lists them."),
        "image_unknown": kind(
            404, "The job has no such picture", "Send a number of the document's `images`; the first is 0."
        ),
        "image_not_ready": kind(
            404, "The picture is not drawn yet", "Wait for `status` succeeded, then fetch the `url` of the document."
        ),
        "file_unknown": kind(404, "There is no such file", "Upload it again; files are kept as long as pictures are."),
        "model_absent": kind(404, "No living worker has such a model", "Send a name that GET /models lists."),
        "method_not_allowed": kind(
            405, "This route does not take that method", "Use one of the methods in the Allow header."
        ),
        "body_timeout": kind(408, "The body took too long to arrive", "Send a smaller picture, or from a faster line."),
        "model_unusable": kind(
            409, "The model cannot be loaded", "Mend what `detail` names on the worker's disk, then ask again."
        ),
        "job_gone": kind(
            410, "The job is gone", "Send the request again: with the same seed it draws the same picture."
        ),
        "job_canceled": kind(
            410, "The job was canceled before it had pictures", "Send the request again if you want them."
        ),
        "image_gone": kind(
            410, "The picture is gone", "Send the request again: with the same seed it draws the same picture."
        ),
        "body_too_large": kind(413, "The body is too large", "Send a smaller picture, or as a multipart part."),
        "content_type_unsupported": kind(
            415,
            "Bodies of this type are not read",
            "Send application/json, or multipart/form-data with the picture as a part, without Content-Encoding.",
        ),
        "host_refused": kind(
            421,
            "The server does not answer to this host name",
            "Call http://127.0.0.1 or localhost, or add the name to DENOISED_ALLOWED_HOSTS.",
        ),
        "field_invalid": kind(
            422, "A field has a value that it cannot have", "Correct the fields that `errors` names."
        ),
        "field_unknown": kind(
            422, "There is no such field", "Remove or rename the fields that `errors` names; /docs lists all."
        ),
        "field_unsupported": kind(
            422,
            "This server does not do that",
            "Leave out what `errors` names, or send what switches it off.",
        ),
        "prompt_empty": kind(422, "The prompt is empty", "Say in `prompt` what to draw."),
        "prompt_too_long": kind(422, "The prompt is too long", "Send at most 10,000 characters."),
        "clip_skip_out_of_range": kind(
            422,
            "The text encoder has not that many layers to leave out",
            "Send at most `max_clip_skip` of GET /models, or leave it out.",
        ),
        "size_invalid": kind(
            422, "The model cannot draw this size", "Send a width and a height that GET /models allows."
        ),
        "steps_out_of_range": kind(
            422, "The sampler cannot run that many steps", "Send steps within the sampler's limits in GET /models."
        ),
        "noise_level_out_of_range": kind(
            422,
            "The upscaler does not know that noise level",
            "Send at most `max_noise_level` of GET /models, or leave it out.",
        ),
        "num_images_out_of_range": kind(
            422, "Not that many pictures at once", "Send at most `max_images` of GET /models; use several requests."
        ),
        "model_unknown": kind(422, "There is no such model", "Send a name of GET /models, or leave `model` out."),
        "task_unavailable": kind(422, "No loaded model serves this task", "Send a task that GET /models lists."),
        "sampler_unknown": kind(
            422, "The model has no such sampler", "Send a sampler or an alias of GET /models, or leave it out."
        ),
        "noise_schedule_unknown": kind(
            422, "The sampler has no such noise schedule", "Send one that GET /models lists for it, or leave it out."
        ),
        "lora_unknown": kind(
            422, "The server has no such LoRA", "Send a name of `loras` of GET /models, or put the file there first."
        ),
        "upscaler_unknown": kind(
            422,
            "The model has no such upscaler",
            "Send one of `upscalers` of GET /models, or serve one beside the model.",
        ),
        "control_unknown": kind(
            422,
            "The server has no such ControlNet",
            "Send a name of `controlnets` of GET /models, or put the folder there first.",
        ),
        "image_not_base64": kind(
            422,
            "The picture is not base64",
            "Send base64, a data URL, `sha256:<digest>` of an earlier upload, or a multipart part.",
        ),
        "image_format_unsupported": kind(
            422, "Pictures of this format are not read", "Send a PNG, a JPEG or a WebP file."
        ),
        "image_broken": kind(422, "The picture is damaged", "Save the picture again and send the whole file."),
        "image_too_large": kind(422, "The picture has too many pixels", "Send a smaller picture."),
        "image_animated": kind(422, "The picture is animated", "Send a single frame."),
        "image_mode_unsupported": kind(
            422, "Pictures of this kind of pixel are not read", "Send 8-bit sRGB grey, RGB or RGBA."
        ),
        "mask_missing": kind(
            422,
            "Nothing says what to draw anew",
            "Send `mask_image`, an `image` that is transparent there, or pixels to add (`outpaint_left`, ...).",
        ),
        "mask_empty": kind(
            422,
            "The mask selects nothing",
            "Make white, or transparent, what is to be drawn anew; `mask_convention` says which of the two counts.",
        ),
        "mask_size_mismatch": kind(
            422, "Mask and picture differ in size", "Send a mask with the width and the height of the picture."
        ),
        "upload_unknown": kind(
            422,
            "There is no such upload of yours",
            "Send the picture itself; uploads are known only as long as a job that holds them.",
        ),
        "webhook_refused": kind(
            422,
            "That webhook is not called",
            "Send an http or https URL at a public address, or have its host named in DENOISED_WEBHOOK_ALLOW.",
        ),
        "recipe_missing": kind(
            422,
            "There is no recipe to replay",
            "Send a picture file as this server gave it out, or its recipe in `recipe`.",
        ),
        "recipe_invalid": kind(
            422, "The recipe cannot be read", "Send the recipe as it is in the picture's file, unchanged."
        ),
        "upload_mismatch": kind(
            422,
            "The picture is not the one that the recipe names",
            "Send the very picture that the first one was made from, or leave it out where a job of yours holds it.",
        ),
        "idempotency_conflict": kind(
            422,
            "This Idempotency-Key came with another body before",
            "Send a new key for a new request, or the very same body for a repeat.",
        ),
        "queue_full": kind(429, "Your queue is full", "Wait as long as Retry-After says, or cancel a queued job."),
        "streams_full": kind(
            429, "Too many event streams are open", "Close streams you no longer read, or poll GET /jobs/{id}."
        ),
        "redis_unavailable": kind(503, "The queue cannot be reached", "Repeat the request after Retry-After seconds."),
        "no_worker": kind(503, "No worker has told its models yet", "Repeat the request after Retry-After seconds."),
        "not_ready": kind(503, "The server is not ready yet", "Repeat the request after Retry-After seconds."),
        "store_unavailable": kind(
            503,
            "Pictures cannot be stored or read now",
            "Repeat the request after Retry-After seconds; whoever runs the server should look at its disk.",
        ),
        "store_full": kind(
            503,
            "There is no room for more pictures",
            "Erase jobs you do not need (DELETE /jobs/{id}), or repeat the request after Retry-After seconds.",
        ),
        "durability_unconfirmed": kind(
            503,
            "The job is queued, but perhaps not on disk yet",
            "Follow the job at Location, or repeat the request with the same Idempotency-Key.",
        ),
        "job_failed": kind(
            503, "The job failed", "docs/errors.md tells what to do about the code that `detail` begins with."
        ),
        "internal": kind(
            503,
            "A fault of ours",
            "Repeat the request; if it fails again, report the request_id, under which the log tells more.",
        ),
    }


ERRORS: Mapping[str, ErrorKind] = MappingProxyType(_table())
"""Every code that an answer can carry; `docs/errors.md` has a heading for each."""

RETRY_AFTER_S: Mapping[str, int] = MappingProxyType(
    {
        "redis_unavailable": 2,
        "no_worker": 5,
        "not_ready": 5,
        "store_unavailable": 10,
        "store_full": 60,
        "durability_unconfirmed": 2,
        "internal": 5,
        "streams_full": 5,
    }
)
"""Seconds to wait where nothing better is known than how long such a fault usually lasts."""


class FieldError(BaseModel):
    """One field at fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pointer: str = Field(description="JSON pointer into the body, or `?name` of a query parameter.")
    detail: str


class ProblemDocument(BaseModel):
    """The answer to every request that is refused (RFC 9457)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = Field(examples=["urn:denoised:error:size_invalid"])
    title: str
    status: int
    detail: str = Field(description="What is wrong with this request, and what to send instead.")
    code: str = Field(description="Stable name of the fault; docs/errors.md describes each.")
    instance: str = Field(description="Path of the request.")
    request_id: str = Field(description="Also in the X-Request-ID header and in the server's log.")
    errors: tuple[FieldError, ...] | None = None


class Problem(Exception):
    """A request is refused. `what` is said first, the remedy of the table after it."""

    def __init__(
        self,
        code: str,
        what: str = "",
        *,
        errors: tuple[FieldError, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        assert code in ERRORS, f"no such error code: {code}. This is a bug."
        super().__init__(code)
        self.code = code
        self.what = what
        self.detail = f"{what} {ERRORS[code].remedy}".strip()
        self.errors = errors
        wait = {"Retry-After": str(RETRY_AFTER_S[code])} if code in RETRY_AFTER_S else {}
        self.headers: dict[str, str] = {**wait, **(headers or {})}

    @property
    def status(self) -> int:
        return ERRORS[self.code].status

    def document(self, instance: str, request_id: str) -> ProblemDocument:
        return ProblemDocument(
            type=f"urn:denoised:error:{self.code}",
            title=ERRORS[self.code].title,
            status=self.status,
            detail=self.detail,
            code=self.code,
            instance=instance,
            request_id=request_id,
            errors=self.errors or None,
        )


def field_problem(code: str, name: str, what: str) -> Problem:
    """A Problem about one field of the body."""
    return Problem(code, what, errors=(FieldError(pointer=f"/{name}", detail=what),))
