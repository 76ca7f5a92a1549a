"""What goes over the wire: the bodies of POST /generate and the documents that come back.

Owns field names, their types and their words in the documentation. Checks only what can be checked without knowing a
model; `app.resolve` does the rest.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from app.uploads import MaskConvention
from models.request import (
    MAX_OUTPAINT,
    MAX_SEED,
    TASKS,
    ImageToImageRequest,
    InpaintingRequest,
    PromptSyntax,
    Reproducibility,
    TextToImageRequest,
    UpscaleRequest,
)
from workers.contract import (
    JobError,
    ModelDefaults,
    OutputFormat,
    Priority,
    SamplerEntry,
    Status,
    Timings,
    Verdict,
    WebhookEvent,
)

MAX_PROMPT_CHARACTERS = 10_000
MAX_DEADLINE_S = 30 * 24 * 3600
MAX_LORAS = 8
MAX_CONTROLS = 4

TEXT_TO_IMAGE_EXAMPLE: dict[str, Any] = {
    "prompt": "a red apple on a white table",
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "seed": 42,
}
IMAGE_TO_IMAGE_EXAMPLE: dict[str, Any] = {
    "task": "image-to-image",
    "prompt": "a green apple on a white table",
    "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGM8ISfHgA0wYRUdtBIA0MoB"
    "FD5jqJkAAAAASUVORK5CYII=",
    "strength": 0.6,
    "seed": 42,
}


INPAINTING_EXAMPLE: dict[str, Any] = {
    "task": "inpainting",
    "prompt": "a green apple",
    "image": IMAGE_TO_IMAGE_EXAMPLE["image"],
    "mask_image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAGElEQVR42mNgYGBgsGFiYGJgYmBg"
    "YGAAAALUAEMQ6XlWAAAAAElFTkSuQmCC",
    "seed": 42,
}


UPSCALE_EXAMPLE: dict[str, Any] = {"task": "upscale", "image": IMAGE_TO_IMAGE_EXAMPLE["image"], "seed": 42}


class Wire(BaseModel):
    """A frozen value on the wire: nothing is converted (no "20" for 20), nothing unknown is let in."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _without_control_characters(text: str | None) -> str | None:
    for character in text or "":
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise ValueError(f"has the control character U+{ord(character):04X}: send text")
    return text


class LoraBody(Wire):
    """A LoRA file of the server."""

    name: str = Field(min_length=1, max_length=200, description="One of `loras` of GET /models.")
    weight: float = Field(1.0, ge=-10, le=10, description="How strongly it counts; 1 is as it was trained.")


class ControlBody(Wire):
    """A ControlNet of the server, and the picture that it follows."""

    name: str = Field(min_length=1, max_length=200, description="One of `controlnets` of GET /models.")
    image: str = Field(
        description="The map that the ControlNet reads (edges, depth, a pose, ...), sent like `image`, but not as a"
        " part. It is stretched over the picture; for inpainting it goes with `image`, whatever part of it is shown."
    )
    weight: float = Field(1.0, ge=0, le=10, description="How strongly it steers.")
    start: float = Field(0.0, ge=0, le=1, description="Share of the steps after which it begins.")
    end: float = Field(1.0, ge=0, le=1, description="Share of the steps after which it ends.")

    @model_validator(mode="after")
    def _has_a_span(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start is not before end")
        return self


class WebhookBody(Wire):
    """Whom to tell of the job: a signed POST for each event, docs/webhooks.md."""

    url: str = Field(
        min_length=1,
        max_length=2048,
        description="http or https, at a public address; others only if whoever runs the server has allowed them.",
    )
    events: list[WebhookEvent] = Field(
        ["ended"],
        min_length=1,
        max_length=3,
        description="`started`: a worker has begun. `progress`: it has come further, at most twice a second. `ended`:"
        " succeeded, failed or canceled; repeated until it is answered with 2xx.",
    )


class PictureBody(Wire):
    """What every task takes. What is left out is filled in from the model and the document says with what."""

    prompt: str = Field(description=f"What to draw: 1 to {MAX_PROMPT_CHARACTERS:,} characters.")
    negative_prompt: str | None = Field(
        None, description='What not to draw. null is no negative prompt, which some networks keep apart from "".'
    )
    width: int | None = Field(None, description="Pixels; a multiple of 8 within the model's limits.")
    height: int | None = Field(None, description="Pixels; a multiple of 8 within the model's limits.")
    num_inference_steps: int | None = Field(
        None, description="Sampler steps. More cost more; beyond 20 to 50 most samplers gain little."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=100, description="How strongly to follow the prompt. 1 or less switches guidance off."
    )
    guidance_rescale: float | None = Field(
        None, ge=0, le=1, description="Against burnt colours at high guidance: 0 is off, 0.7 what its paper advises."
    )
    sampler: str | None = Field(
        None, max_length=200, description="A sampler or alias of GET /models, such as dpmpp_2m_karras."
    )
    noise_schedule: str | None = Field(
        None, max_length=200, description="One of the sampler's noise schedules of GET /models."
    )
    prompt_syntax: PromptSyntax = Field(
        "a1111",
        description="How prompts are read. `a1111`: `(word)`, `(word:1.3)` and `[word]` weigh words, `BREAK` begins a"
        " new window, long prompts are read in several windows. `plain`: brackets are text, and what exceeds one window"
        " is cut with a warning.",
    )
    clip_skip: int | None = Field(
        None,
        description="Layers of the text encoder to leave out at its end, within the model's limit. 1 is what other"
        " tools call clip skip 2.",
    )
    reproducibility: Reproducibility = Field(
        "standard",
        description="What the same request with the same seed gives again. `standard`: the same picture to within 1 of"
        " 255. `strict`: the same pixels to the last bit, on the same kind of device, whatever else is drawn meanwhile;"
        " it takes longer when much is.",
    )
    loras: list[LoraBody] = Field(
        [],
        max_length=MAX_LORAS,
        description="LoRA files to draw with, for these pictures alone. `<lora:NAME:WEIGHT>` in an `a1111` prompt is"
        " another way to say it.",
    )
    controls: list[ControlBody] = Field(
        [], max_length=MAX_CONTROLS, description="ControlNets that steer where things go, each by a picture of its own."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Start of all randomness: picture n is drawn with seed + n. Left out: drawn, and told.",
    )
    num_images: int = Field(1, description="Pictures to draw; each is the one its own seed draws alone.")
    upscale: bool = Field(False, description="Enlarge what was drawn, with the first of the model's `upscalers`.")
    upscaler: str | None = Field(
        None, max_length=200, description="Enlarge what was drawn with this one of the model's `upscalers`."
    )
    output_format: OutputFormat = Field("png", description="png is exact; webp and jpeg are smaller.")
    previews: bool = Field(False, description="Send pictures of the way there on the job's event stream.")
    model: str | None = Field(None, max_length=200, description="A name of GET /models.")
    priority: Priority = Field(
        "normal",
        description="Which of your own jobs are drawn first. Beside those of other tenants a high one has twice the"
        " time of a normal one, a low one half of it. `high` needs a key that may.",
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        le=MAX_DEADLINE_S,
        allow_inf_nan=False,
        description="Seconds from now after which the pictures are of no use to you: what is not done then fails with"
        " `deadline_exceeded`. Of your own jobs of one priority those with a deadline are drawn first, the nearest one"
        " at first.",
    )
    webhook: WebhookBody | None = Field(
        None, description="Whom to tell when the job has ended, or of more. It does not come back in `request`."
    )

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        return _without_control_characters(value)


class TextToImageBody(PictureBody):
    """Pictures from a prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [TEXT_TO_IMAGE_EXAMPLE]})

    task: Literal["text-to-image"] = "text-to-image"


class ImageToImageBody(PictureBody):
    """Pictures from a prompt and a picture to start from."""

    model_config = ConfigDict(json_schema_extra={"examples": [IMAGE_TO_IMAGE_EXAMPLE]})

    task: Literal["image-to-image"]
    image: str = Field(
        description="PNG, JPEG or WebP: base64, a data URL, `sha256:<digest>` of an upload of an earlier job, or the"
        " multipart part of this name. It is EXIF-rotated, brought to sRGB, and laid on white where transparent."
    )
    strength: float | None = Field(
        None, gt=0, le=1, description="How far from the picture: near 0 keeps it, 1 keeps nothing but its size."
    )


class InpaintingBody(PictureBody):
    """A part of a picture drawn anew, or what lies around it. Outside the mask the answer is `image`, pixel for pixel.

    `width` and `height` are those of the canvas that the network sees; the answer has the size of `image` and what is
    added to it.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [INPAINTING_EXAMPLE]})

    task: Literal["inpainting"]
    image: str = Field(description="As for image-to-image. Of any size: it is not resized, only what is drawn may be.")
    mask_image: str | None = Field(
        None,
        description="What to draw anew: a picture of the same size, sent like `image`, grey, 1-bit or coloured, white"
        " (128 and more) where it is drawn, or transparent there. Left out: what is transparent in `image`, or only"
        " what is added around it.",
    )
    mask_convention: MaskConvention = Field(
        "auto",
        description="Which pixels of the mask count: `white` ones, `black` ones (all that are not white), `transparent`"
        " ones, or `auto`: transparent ones where there are any, else white ones.",
    )
    strength: float | None = Field(
        None, gt=0, le=1, description="How far from what is there now: 1, the default, forgets it."
    )
    mask_blur: int = Field(
        4, ge=0, le=64, description="Pixels inside the mask over which the drawn picture comes in, to hide the seam."
    )
    padding_mask_crop: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="null shows the network the whole picture. A number shows it the mask and so many pixels around it"
        " instead, enlarged to the model's own size if it is small: finer detail in large pictures.",
    )
    outpaint_left: int = Field(0, ge=0, le=MAX_OUTPAINT, description="Pixels to add on this side.")
    outpaint_top: int = Field(0, ge=0, le=MAX_OUTPAINT, description="Pixels to add on this side.")
    outpaint_right: int = Field(0, ge=0, le=MAX_OUTPAINT, description="Pixels to add on this side.")
    outpaint_bottom: int = Field(0, ge=0, le=MAX_OUTPAINT, description="Pixels to add on this side.")

    @property
    def outpaint(self) -> tuple[int, int, int, int]:
        """Pixels added left, top, right, bottom."""
        return self.outpaint_left, self.outpaint_top, self.outpaint_right, self.outpaint_bottom


class UpscaleBody(PictureBody):
    """A picture enlarged by a model that was made for it, such as four times a side."""

    model_config = ConfigDict(json_schema_extra={"examples": [UPSCALE_EXAMPLE]})

    task: Literal["upscale"]
    prompt: str = Field("", description="What the picture shows, for a model that reads prompts.")
    width: int | None = Field(None, description="Left out, or the factor of the model times the width of `image`.")
    height: int | None = Field(None, description="Left out, or the factor of the model times the height of `image`.")
    image: str = Field(description="As for image-to-image. Of any size; a large one is drawn in tiles.")
    noise_level: int | None = Field(
        None,
        ge=0,
        description="How much noise is laid over `image` first: more lets the network invent more, less keeps to it.",
    )


AnyBody = TextToImageBody | ImageToImageBody | InpaintingBody | UpscaleBody
GenerateBody = Annotated[AnyBody, Field(discriminator="task")]
GENERATE_BODY: TypeAdapter[AnyBody] = TypeAdapter(GenerateBody)
DEFAULT_TASK = "text-to-image"


def form_schema() -> dict[str, Any]:
    """OpenAPI of the same fields in a form: pictures are files or texts, lists are JSON, and nothing is null."""
    bodies = (TextToImageBody, ImageToImageBody, InpaintingBody, UpscaleBody)
    fields = {name: field for body in bodies for name, field in body.model_json_schema()["properties"].items()}
    return {
        "type": "object",
        "description": "The same fields as texts, `image` and `mask_image` as files; `loras`, `controls` and `webhook`"
        " are JSON.",
        "properties": {name: _form_field(name, field) for name, field in sorted(fields.items())},
        "additionalProperties": False,
    }


def _form_field(name: str, field: dict[str, Any]) -> dict[str, Any]:
    told = {"description": field["description"]} if "description" in field else {}
    if name == "task":
        return {"type": "string", "enum": list(TASKS), "default": DEFAULT_TASK}
    if name in ("image", "mask_image"):
        return {"type": "string", "format": "binary", **told}
    if name in ("loras", "controls", "webhook"):
        return {"type": "string", "contentMediaType": "application/json", **told}
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    plain = {key: value for key, value in field.items() if key not in ("anyOf", "title", "default")}
    return {**(kinds[0] if kinds else {}), **plain}


# --- the job document ------------------------------------------------------------------------------------------------


class Document(BaseModel):
    """A frozen value that we send."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UnderstoodTextToImage(TextToImageRequest):
    """The request with every default filled in; sending it again repeats the picture."""

    output_format: OutputFormat
    previews: bool
    priority: Priority
    deadline_s: float | None


class UnderstoodImageToImage(ImageToImageRequest):
    """The request with every default filled in and the upload as its digest; sending it again repeats the picture."""

    output_format: OutputFormat
    previews: bool
    priority: Priority
    deadline_s: float | None


class UnderstoodInpainting(InpaintingRequest):
    """The request with every default filled in and the uploads as digests; sending it again repeats the picture."""

    output_format: OutputFormat
    previews: bool
    priority: Priority
    deadline_s: float | None


class UnderstoodUpscale(UpscaleRequest):
    """The request with every default filled in and the upload as its digest; sending it again repeats the picture."""

    output_format: OutputFormat
    previews: bool
    priority: Priority
    deadline_s: float | None


AnyUnderstood = UnderstoodTextToImage | UnderstoodImageToImage | UnderstoodInpainting | UnderstoodUpscale
UnderstoodRequest = Annotated[AnyUnderstood, Field(discriminator="task")]
UNDERSTOOD: TypeAdapter[AnyUnderstood] = TypeAdapter(UnderstoodRequest)


class ProgressDocument(Document):
    """UNet evaluations done and to do; a 20-step Heun request has 39."""

    step: int
    steps: int


class ImageDocument(Document):
    """One finished picture."""

    url: str = Field(description="Path of the file on this server.")
    seed: int = Field(description="This seed alone, with num_images 1, draws this picture.")
    width: int
    height: int
    sha256: str = Field(description="Of the file's bytes; also its ETag.")


class LinksDocument(Document):
    """Where to go on from here."""

    self: str
    events: str


class WebhookDocument(Document):
    """How far a job's webhook is."""

    url: str
    events: tuple[WebhookEvent, ...]
    state: Literal["active", "told", "given_up", "gone"] = Field(
        description="`active`: something is still to be told, or may be. `told`: everything was. `given_up`: the"
        " receiver did not take it in time. `gone`: it answered 410 and is told nothing more."
    )
    failed_attempts: int = Field(description="In a row, at the event that is being tried.")
    last_attempt_at: datetime | None
    last_status: int | None = Field(description="Of the last answer; null when none came.")
    last_error: str | None = Field(description="Why the last attempt failed; null when it did not.")
    next_attempt_at: datetime | None = Field(description="After a failed attempt.")


class JobDocument(Document):
    """A job as its owner sees it."""

    id: str
    task: str
    status: Status
    queue_position: int | None = Field(description="Jobs that start before this one; null once it started.")
    progress: ProgressDocument | None
    eta_s: float | None = Field(description="Seconds until it ends, from measured step costs; null when unknown.")
    warnings: tuple[str, ...] = Field(
        description="What was not done as asked, such as a prompt cut at the token limit."
    )
    images: tuple[ImageDocument, ...]
    reproducibility: Reproducibility | None = Field(
        description="Which contract its pictures hold; null until they are drawn. A strict request for which memory did"
        " not suffice gets standard ones."
    )
    replay: Verdict | None = Field(
        description="Of a job of POST /replay: whether its pixels are those of the first picture, within which"
        " contract, and why not; null until it is drawn, and for every other job. docs/replay.md describes the codes."
    )
    resumed_from_step: int | None = Field(
        description="Step from which its last worker went on, when another one had come so far; else null."
    )
    error: JobError | None = Field(description="Why it failed; docs/errors.md describes each code.")
    timings: Timings = Field(description="Seconds per phase.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    request: UnderstoodRequest
    webhook: WebhookDocument | None = Field(description="Whom the job tells; null when nobody.")
    links: LinksDocument


class JobListDocument(Document):
    """One page of a tenant's jobs, newest first."""

    jobs: tuple[JobDocument, ...]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


class ProgressEvent(Document):
    """Data of a `progress` event."""

    step: int
    steps: int
    eta_s: float | None
    queue_position: int | None


class PreviewEvent(Document):
    """Data of a `preview` event: the clean picture as predicted now, as a WebP data URL."""

    image: str


class WebhookSecretDocument(Document):
    """What your webhooks are signed with."""

    secret: str = Field(description="`whsec_` and base64, as libraries of Standard Webhooks take it.")


# --- models and health -----------------------------------------------------------------------------------------------


class AliasDocument(Document):
    """What a sampler's other name means."""

    sampler: str
    noise_schedule: str


class LimitsDocument(Document):
    """What a request to this model may ask for."""

    size_multiple: int
    min_size: int = Field(description="Pixels a side.")
    max_size: int = Field(description="Pixels a side.")
    max_pixels: int = Field(description="Width times height.")
    max_images: int
    token_limit: int = Field(description="Tokens of a prompt that the network sees; the rest is cut with a warning.")
    window_tokens: int = Field(description="Of them those that are read at once; all that a `plain` prompt has.")
    max_clip_skip: int = Field(description="Layers of the text encoder that can be left out.")
    loras: tuple[str, ...] = Field(description="LoRA files that a request may name.")
    upscalers: tuple[str, ...] = Field(description="Models that can enlarge what this one has drawn.")
    controlnets: tuple[str, ...] = Field(description="ControlNets that a request may name.")
    upscale_factor: int | None = Field(description="Of an upscaler: what it multiplies both sides by.")
    max_noise_level: int | None = Field(
        description="Of an upscaler that knows noise levels; where it is null, `noise_level` is left out."
    )
    max_prompt_characters: int


class ModelDocument(Document):
    """A model and what it can do."""

    name: str
    tasks: tuple[str, ...]
    loaded: bool = Field(description="A living worker holds it in memory, warmed up. Others load at their first job.")
    defaults: ModelDefaults
    limits: LimitsDocument
    samplers: tuple[SamplerEntry, ...]
    sampler_aliases: dict[str, AliasDocument]
    prediction_type: str
    device: str
    dtype: str
    digest: str = Field(description="SHA-256 over the weights: the same digest draws the same pictures.")


class ModelFaultDocument(Document):
    """A model that a worker could not load."""

    model: str
    worker: str
    error: JobError


class ModelListDocument(Document):
    """All models of the catalogue by name."""

    models: tuple[ModelDocument, ...]
    faults: tuple[ModelFaultDocument, ...] = Field(
        (), description="For operators: models that a worker could not load, and why."
    )


class ModelOnWorkerDocument(Document):
    """One model on one worker."""

    worker: str
    loaded: bool
    done: bool = Field(description="The worker has done what was asked, or found it impossible.")
    error: JobError | None = Field(description="Why it could not be loaded when that was last tried.")


class ModelStateDocument(Document):
    """Where the weights of a model are in memory."""

    name: str
    loaded: bool = Field(description="At least one worker holds it.")
    workers: tuple[ModelOnWorkerDocument, ...]


class HealthDocument(Document):
    """The process answers."""

    status: Literal["ok"]


class ReadyDocument(Document):
    """The server can draw."""

    status: Literal["ready"]
    warnings: tuple[str, ...] = Field(description="What about Redis could lose accepted jobs.")
