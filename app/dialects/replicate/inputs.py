"""The body of a prediction -> fields of `POST /generate`.

Owns the names that models on Replicate use, and what of them this server does not do. Checks no limits: `app.accept`
does. Knows no job and no document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from app.dialect import refuse_unsupported
from app.payload import Payload
from app.resolve import schema_problem
from app.schemas import ControlBody, InpaintingBody, LoraBody, UpscaleBody, Wire
from app.uploads import MaskConvention
from models.request import PromptSyntax, Reproducibility
from workers.contract import ModelEntry, Priority

FIELD_NAMES = {
    "num_images": "num_outputs",
    "sampler": "scheduler",
    "strength": "prompt_strength",
    "mask_image": "mask",
}
"""Our fields -> what they are called here; all others have one name."""
PASSED_OVER = frozenset(
    {
        *("output_quality", "disable_safety_checker", "apply_watermark", "replicate_weights", "lora_scale"),
        *("refine", "refine_steps", "high_noise_frac", "scale", "face_enhance"),
    }
)
"""What examples and playgrounds send, as far as it asks for nothing that is not done anyway; see `_unsupported`."""
SCHEDULERS = {
    "K_EULER": "euler",
    "K_EULER_ANCESTRAL": "euler_ancestral",
    "DPMSolverMultistep": "dpmpp_2m",
    "KarrasDPM": "dpmpp_2m_karras",
    "HeunDiscrete": "heun",
    "UniPCMultistep": "unipc",
}
"""Names of schedulers there -> of samplers here; what is not in it is read as `POST /generate` reads it."""
_EVENTS = {"start": "started", "output": "ended", "logs": "progress", "completed": "ended"}
"""All pictures of a job come with its end."""
_LONGEST_TOLD = 1000
"""Characters of a picture's text that documents tell again; a longer one is the picture itself."""


def _as_ours(name: str) -> Any:
    """A field that has the name and the meaning of ours."""
    ours = {**UpscaleBody.model_fields, **InpaintingBody.model_fields}[name]
    return Field(None, description=ours.description)


class PredictionInput(Wire):
    """What to draw. null is the same as left out."""

    prompt: str | None = _as_ours("prompt")
    negative_prompt: str | None = Field(None, description="What not to draw.")
    image: str | None = Field(
        None,
        description="A picture to start from, or to enlarge: a data URL, an uploaded file, or a picture of an earlier"
        " prediction.",
    )
    mask: str | None = Field(None, description="Of the size of `image`: white is drawn anew, black is kept.")
    prompt_strength: float | None = Field(
        None, description="How far from `image`: near 0 keeps it, 1 keeps nothing but its size."
    )
    width: int | None = _as_ours("width")
    height: int | None = _as_ours("height")
    num_outputs: int | None = Field(None, description="Pictures to draw.")
    num_inference_steps: int | None = _as_ours("num_inference_steps")
    guidance_scale: float | None = _as_ours("guidance_scale")
    scheduler: str | None = Field(None, max_length=200, description="A sampler of the model.")
    seed: int | None = _as_ours("seed")
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = _as_ours("output_format")

    output_quality: int | None = Field(None, description="Means nothing for png; refused for the others.")
    disable_safety_checker: bool | None = Field(None, description="true: no picture is checked here.")
    apply_watermark: bool | None = Field(None, description="false: no picture gets a watermark here.")
    replicate_weights: str | None = Field(None, description="Refused: use `loras`.")
    lora_scale: float | None = Field(None, description="Means nothing without `replicate_weights`.")
    refine: str | None = Field(None, description="`no_refiner`: there is none.")
    refine_steps: int | None = Field(None, description="Means nothing without `refine`.")
    high_noise_frac: float | None = Field(None, description="Means nothing without `refine`.")
    scale: float | None = Field(None, description="Of an upscaler: its own factor.")
    face_enhance: bool | None = Field(None, description="false: faces are enlarged like all else.")

    guidance_rescale: float | None = _as_ours("guidance_rescale")
    noise_schedule: str | None = _as_ours("noise_schedule")
    prompt_syntax: PromptSyntax | None = _as_ours("prompt_syntax")
    clip_skip: int | None = _as_ours("clip_skip")
    reproducibility: Reproducibility | None = _as_ours("reproducibility")
    loras: list[LoraBody] | None = _as_ours("loras")
    controls: list[ControlBody] | None = _as_ours("controls")
    upscale: bool | None = _as_ours("upscale")
    upscaler: str | None = _as_ours("upscaler")
    noise_level: int | None = _as_ours("noise_level")
    mask_convention: MaskConvention | None = _as_ours("mask_convention")
    mask_blur: int | None = _as_ours("mask_blur")
    padding_mask_crop: int | None = _as_ours("padding_mask_crop")
    outpaint_left: int | None = _as_ours("outpaint_left")
    outpaint_top: int | None = _as_ours("outpaint_top")
    outpaint_right: int | None = _as_ours("outpaint_right")
    outpaint_bottom: int | None = _as_ours("outpaint_bottom")
    priority: Priority | None = _as_ours("priority")
    deadline_s: float | None = _as_ours("deadline_s")


class PredictionBody(Wire):
    """Of the POST that creates a prediction."""

    input: PredictionInput
    version: str | None = Field(None, max_length=600)
    stream: bool | None = None
    """Every prediction can be streamed."""
    webhook: str | None = None
    webhook_completed: str | None = None
    """What older programs send instead of `webhook`."""
    webhook_events_filter: list[Literal["start", "output", "logs", "completed"]] | None = None


def read_prediction(sent: Payload) -> PredictionBody:
    """Raises Problem; `errors` names every field at fault."""
    try:
        return PredictionBody.model_validate(sent.fields)
    except ValidationError as error:
        raise schema_problem(error) from error


def native_fields(body: PredictionBody, entry: ModelEntry) -> dict[str, Any]:
    """The fields of `POST /generate` for this model; pictures are the texts that were sent. Raises Problem."""
    given = body.input.model_dump(exclude_none=True)
    refuse_unsupported(_unsupported(given, entry))
    if "image" not in given:
        given.pop("prompt_strength", None)  # playgrounds send it with every prompt
    if "mask" in given:
        given.setdefault("mask_convention", "white")
    if "scheduler" in given:
        given["scheduler"] = SCHEDULERS.get(given["scheduler"], given["scheduler"])
    if given.get("output_format") == "jpg":
        given["output_format"] = "jpeg"
    theirs = {here: ours for ours, here in FIELD_NAMES.items()}
    fields = {theirs.get(name, name): value for name, value in given.items() if name not in PASSED_OVER}
    webhook = _webhook(body)
    return {"task": _task(given, entry), "model": entry.name, **fields, **({"webhook": webhook} if webhook else {})}


def _unsupported(given: Mapping[str, Any], entry: ModelEntry) -> dict[str, str]:
    asks = {
        "output_quality": (
            given.get("output_format", "png") != "png",
            "`output_quality` is not chosen here: a JPEG has 95, a WebP is lossless.",
        ),
        "disable_safety_checker": (
            not given.get("disable_safety_checker"),
            "`disable_safety_checker` can only be true: no picture is checked here.",
        ),
        "apply_watermark": (given.get("apply_watermark"), "No picture gets a watermark here: `apply_watermark`."),
        "replicate_weights": (
            given.get("replicate_weights"),
            "`replicate_weights` are not fetched here: `loras` names files of this server.",
        ),
        "refine": (given.get("refine") != "no_refiner", "There is no refiner here: `refine`."),
        "scale": (
            given.get("scale") != entry.upscale_factor,
            f"`scale` is not chosen here: {entry.name} enlarges {entry.upscale_factor or 1} times.",
        ),
        "face_enhance": (given.get("face_enhance"), "Faces are enlarged like all else here: `face_enhance`."),
    }
    return {name: what for name, (is_asked, what) in asks.items() if name in given and is_asked}


def _task(given: Mapping[str, Any], entry: ModelEntry) -> str:
    """What the fields ask for; one that the model does not serve is refused later."""
    if "mask" in given or any(value for name, value in given.items() if name.startswith("outpaint_")):
        return "inpainting"
    fitting = ("image-to-image", "upscale") if "image" in given else ("text-to-image", "upscale")
    return next((task for task in fitting if task in entry.tasks), fitting[0])


def _webhook(body: PredictionBody) -> dict[str, Any] | None:
    if body.webhook is not None and body.webhook_completed is not None:
        refuse_unsupported({"webhook_completed": "There is one address, `webhook`, beside it."})
    if body.webhook_completed is not None:
        return {"url": body.webhook_completed, "events": ["ended"]}
    if body.webhook is None:
        return None
    wanted = body.webhook_events_filter
    events = ["completed"] if wanted is None else wanted
    return {"url": body.webhook, "events": list(dict.fromkeys(_EVENTS[event] for event in events))}


def remembered(sent: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The `input` as it was sent, but for pictures that came in it: where they stood, there is null."""
    told = {name: _without_picture(value) if name in ("image", "mask") else value for name, value in sent.items()}
    if isinstance(sent.get("controls"), list):
        told["controls"] = [{**control, "image": _without_picture(control["image"])} for control in sent["controls"]]
    return told


def _without_picture(value: Any) -> Any:
    return None if isinstance(value, str) and len(value) > _LONGEST_TOLD else value
