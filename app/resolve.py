"""A wire body and a model's entry -> a GenerationRequest with nothing left open.

Owns the choice of the model, the defaults, the names and the limits. Knows no HTTP, Redis or files; the only thing it
draws is the seed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from app.errors import FieldError, Problem, field_problem
from app.loras import read_loras
from app.schemas import (
    DEFAULT_TASK,
    GENERATE_BODY,
    MAX_PROMPT_CHARACTERS,
    AnyBody,
    InpaintingBody,
    TextToImageBody,
    UpscaleBody,
)
from app.uploads import MaskUpload, Upload
from models.region import Size, box_after_outpainting, canvas_for
from models.request import (
    TASKS,
    AnyRequest,
    ControlChoice,
    ImageToImageRequest,
    InpaintingRequest,
    TextToImageRequest,
    UpscaleRequest,
    fold_name,
)
from workers.contract import ModelEntry, SamplerEntry

UPSCALE_FACTOR = 4
"""Of every upscaler."""
_LONGEST_ENLARGED = 8192
"""Pixels a side of what upscalers answer."""
_MOST_ENLARGED = _LONGEST_ENLARGED**2
SEED_RANGE = 2**32
"""Seeds drawn at the door stay below this, so that every JSON reader keeps them exactly."""

Given = TypeVar("Given")


@dataclass(frozen=True)
class Uploads:
    """The pictures that came with a request."""

    image: Upload | None = None
    mask: MaskUpload | None = None
    controls: tuple[Upload, ...] = ()
    original: Upload | None = None
    """What the answer is compared with."""

    @property
    def all(self) -> tuple[Upload, ...]:
        uploads = (self.image, self.mask, *self.controls, self.original)
        return tuple(upload for upload in uploads if upload is not None)


def parse_body(fields: Mapping[str, Any]) -> AnyBody:
    """The body of POST /generate as a value. Raises Problem; `errors` names every field at fault."""
    task = fields.get("task", DEFAULT_TASK)
    if isinstance(task, str) and task not in TASKS:
        raise field_problem("task_unavailable", "task", f"There is no task {_quoted(task)}.")
    try:
        body = GENERATE_BODY.validate_python({**fields, "task": task})
    except ValidationError as error:
        raise schema_problem(error) from error
    _check_prompts(body)
    return body


def choose_model(body: AnyBody, catalogue: Mapping[str, ModelEntry], default_model: str | None) -> ModelEntry:
    """The named model, else the configured default, else the first by name that serves the task. Raises Problem."""
    if not catalogue:
        raise Problem("no_worker")
    if body.model is not None and body.model not in catalogue:
        raise field_problem(
            "model_unknown",
            "model",
            f"There is no model {_quoted(body.model)}; there are {', '.join(sorted(catalogue))}.",
        )
    if body.model is not None:
        entry = catalogue[body.model]
        if body.task in entry.tasks:
            return entry
        raise field_problem("task_unavailable", "task", f"The model {entry.name} serves {', '.join(entry.tasks)}.")
    serving = [name for name in sorted(catalogue) if body.task in catalogue[name].tasks]
    if not serving:
        raise field_problem("task_unavailable", "task", f"No model serves {body.task}.")
    return catalogue[default_model if default_model in serving and default_model else serving[0]]


def resolve(body: AnyBody, entry: ModelEntry, uploads: Uploads) -> AnyRequest:
    """Every default filled in and every limit of the model checked."""
    sampler, noise_schedule = _resolve_sampler(body, entry)
    steps = _resolve_steps(body, entry, sampler)
    width, height = _resolve_size(body, entry, uploads)
    if not 1 <= body.num_images <= entry.max_images:
        raise field_problem(
            "num_images_out_of_range", "num_images", f"{_number(body.num_images)} pictures, of 1 to {entry.max_images}."
        )
    prompt, loras = read_loras(body, entry)
    common: dict[str, Any] = {
        "model": entry.name,
        "prompt": prompt,
        "upscaler": _resolve_upscaler(body, entry, uploads, (width, height)),
        "loras": loras,
        "controls": _resolve_controls(body, entry, uploads),
        "negative_prompt": body.negative_prompt,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": _or(body.guidance_scale, entry.defaults.guidance_scale),
        "guidance_rescale": _or(body.guidance_rescale, entry.defaults.guidance_rescale),
        "sampler": sampler.name,
        "noise_schedule": noise_schedule,
        "prompt_syntax": body.prompt_syntax,
        "clip_skip": _resolve_clip_skip(body, entry),
        "reproducibility": body.reproducibility,
        "seed": _or(body.seed, secrets.randbelow(SEED_RANGE)),
        "num_images": body.num_images,
    }
    if isinstance(body, TextToImageBody):
        return TextToImageRequest(**common)
    assert uploads.image is not None, "an image task came without its upload. This is a bug."
    if isinstance(body, UpscaleBody):
        return UpscaleRequest(**common, image=uploads.image.reference, noise_level=_resolve_noise_level(body, entry))
    default = 1.0 if isinstance(body, InpaintingBody) else entry.defaults.strength
    common |= {"image": uploads.image.reference, "strength": _resolve_strength(body.strength, default, steps)}
    if not isinstance(body, InpaintingBody):
        return ImageToImageRequest(**common)
    return InpaintingRequest(
        **common,
        mask_image=uploads.mask.reference if uploads.mask else None,
        mask_blur=body.mask_blur,
        padding_mask_crop=body.padding_mask_crop,
        outpaint_left=body.outpaint_left,
        outpaint_top=body.outpaint_top,
        outpaint_right=body.outpaint_right,
        outpaint_bottom=body.outpaint_bottom,
    )


def _resolve_clip_skip(body: AnyBody, entry: ModelEntry) -> int:
    if body.clip_skip is None:
        return entry.defaults.clip_skip
    if not 0 <= body.clip_skip <= entry.max_clip_skip:
        what = f"{entry.name} can leave out 0 to {entry.max_clip_skip} layers, not {_number(body.clip_skip)}."
        raise field_problem("clip_skip_out_of_range", "clip_skip", what)
    return body.clip_skip


def _resolve_upscaler(body: AnyBody, entry: ModelEntry, uploads: Uploads, canvas: Size) -> str | None:
    """The upscaler of what is drawn, if one is wanted, and room for its answer."""
    if not body.upscale and body.upscaler is None:
        return None
    name = body.upscaler or next(iter(entry.upscalers), None)
    if name is None or name not in entry.upscalers:
        there = ", ".join(entry.upscalers) or "none"
        what = f"No upscaler {_quoted(body.upscaler)}" if body.upscaler else "No upscaler"
        where = "upscale" if body.upscaler is None else "upscaler"
        raise field_problem("upscaler_unknown", where, f"{what} is served with {entry.name}; there is {there}.")
    width, height = canvas
    if isinstance(body, InpaintingBody) and uploads.image is not None:
        width, height = enlarged_size(body, uploads.image)
    if (
        body.num_images * width * height * UPSCALE_FACTOR**2 > _MOST_ENLARGED
        or UPSCALE_FACTOR * max(width, height) > _LONGEST_ENLARGED
    ):
        what = f"{_number(body.num_images)} pictures of {width} x {height}, enlarged, would be too many pixels."
        raise field_problem("size_invalid", "upscale", what)
    return name


def check_controls(body: AnyBody, entry: ModelEntry) -> None:
    """Before their pictures are read. Raises Problem for one that is not there."""
    for number, control in enumerate(body.controls):
        if control.name not in entry.controlnets:
            there = ", ".join(entry.controlnets[:20]) or "none"
            what = f"There is no ControlNet {_quoted(control.name)}; there is {there}."
            raise field_problem("control_unknown", f"controls/{number}", what)


def _resolve_controls(body: AnyBody, entry: ModelEntry, uploads: Uploads) -> tuple[ControlChoice, ...]:
    check_controls(body, entry)
    return tuple(
        ControlChoice(
            name=control.name, image=upload.reference, weight=control.weight, start=control.start, end=control.end
        )
        for control, upload in zip(body.controls, uploads.controls, strict=True)
    )


def _resolve_noise_level(body: UpscaleBody, entry: ModelEntry) -> int | None:
    highest = entry.max_noise_level
    if body.noise_level is None:
        return None if highest is None else min(_or(entry.defaults.noise_level, highest), highest)
    if highest is None:
        what = f"{entry.name} knows no noise levels: leave noise_level out."
        raise field_problem("noise_level_out_of_range", "noise_level", what)
    if body.noise_level > highest:
        what = f"{entry.name} knows noise levels from 0 to {highest}, not {_number(body.noise_level)}."
        raise field_problem("noise_level_out_of_range", "noise_level", what)
    return body.noise_level


def _resolve_strength(given: float | None, default: float, steps: int) -> float:
    strength = _or(given, default)
    if int(steps * strength) < 1:
        raise field_problem(
            "steps_out_of_range",
            "strength",
            f"{steps} steps at strength {strength} leave none: their product is under 1.",
        )
    return strength


def resolve_sampler(name: str, noise_schedule: str | None, entry: ModelEntry) -> tuple[SamplerEntry, str]:
    """The model's sampler and noise schedule that the names mean; capitals, spaces, hyphens, "++" do not matter."""
    samplers = {sampler.name: sampler for sampler in entry.samplers}
    folded = fold_name(name)
    plain, meant = entry.sampler_aliases.get(folded, (folded, None))
    if plain not in samplers:
        raise field_problem(
            "sampler_unknown", "sampler", f"{entry.name} has no sampler {_quoted(name)}, but {', '.join(samplers)}."
        )
    implied = meant if meant not in (None, "default") else None
    asked = fold_name(noise_schedule) if noise_schedule is not None else "default"
    if implied and asked not in ("default", implied):
        raise field_problem(
            "noise_schedule_unknown",
            "noise_schedule",
            f"{_quoted(name)} already means {implied}, not {_quoted(asked)}.",
        )
    chosen = implied or asked
    offered = samplers[plain].noise_schedules
    if chosen not in offered:
        raise field_problem(
            "noise_schedule_unknown", "noise_schedule", f"{plain} has {', '.join(offered)}, not {_quoted(chosen)}."
        )
    return samplers[plain], chosen


def _resolve_sampler(body: AnyBody, entry: ModelEntry) -> tuple[SamplerEntry, str]:
    if body.sampler is not None:
        return resolve_sampler(body.sampler, body.noise_schedule, entry)
    return resolve_sampler(entry.defaults.sampler, _or(body.noise_schedule, entry.defaults.noise_schedule), entry)


def _resolve_steps(body: AnyBody, entry: ModelEntry, sampler: SamplerEntry) -> int:
    """A default outside the sampler's limits (lcm takes few steps) is brought inside; a wish outside is refused."""
    low, high = sampler.min_steps, sampler.max_steps
    if body.num_inference_steps is None:
        return min(max(entry.defaults.num_inference_steps, low), high)
    if not low <= body.num_inference_steps <= high:
        raise field_problem(
            "steps_out_of_range",
            "num_inference_steps",
            f"{sampler.name} runs {low} to {high} steps, not {_number(body.num_inference_steps)}.",
        )
    return body.num_inference_steps


def _enlarged(body: UpscaleBody, entry: ModelEntry, image: Upload) -> Size:
    """The model's factor times the upload; a size that was sent may only say the same."""
    factor = entry.upscale_factor or 1
    size = factor * image.width, factor * image.height
    for name, asked, there in (("width", body.width, size[0]), ("height", body.height, size[1])):
        if asked is not None and asked != there:
            what = f"{entry.name} enlarges {factor} times, to {size[0]} x {size[1]}: leave {name} out."
            raise field_problem("size_invalid", name, what)
    if body.num_images * size[0] * size[1] > entry.max_pixels:
        what = f"{_number(body.num_images)} pictures of {size[0]} x {size[1]} are more than {entry.max_pixels} pixels."
        raise field_problem("size_invalid", "image" if body.num_images == 1 else "num_images", what)
    if max(size) > entry.max_size:
        what = f"{size[0]} x {size[1]} would have a side of more than {entry.max_size} pixels."
        raise field_problem("size_invalid", "image", what)
    return size


def _resolve_size(body: AnyBody, entry: ModelEntry, uploads: Uploads) -> Size:
    if isinstance(body, UpscaleBody):
        assert uploads.image is not None, "an image task came without its upload. This is a bug."
        return _enlarged(body, entry, uploads.image)
    for name, pixels in (("width", body.width), ("height", body.height)):
        if pixels is None or (entry.min_size <= pixels <= entry.max_size and pixels % entry.size_multiple == 0):
            continue
        allowed = f"{entry.size_multiple} from {entry.min_size} to {entry.max_size}"
        raise field_problem("size_invalid", name, f"{name} {_number(pixels)} is no multiple of {allowed}.")
    size = _default_size(body, entry, _shown_size(body, uploads))
    if size[0] * size[1] > entry.max_pixels:
        raise field_problem(
            "size_invalid", "width", f"{size[0]} x {size[1]} is more than {entry.max_pixels} pixels together."
        )
    return size


def _shown_size(body: AnyBody, uploads: Uploads) -> Size | None:
    """Pixels of an upload that the network is to see: all, or for inpainting what lies around the mask."""
    if uploads.image is None:
        return None
    size = uploads.image.width, uploads.image.height
    if not isinstance(body, InpaintingBody):
        return size
    enlarged = enlarged_size(body, uploads.image)
    if body.padding_mask_crop is None:
        return enlarged
    box = box_after_outpainting(uploads.mask.box if uploads.mask else None, size, body.outpaint)
    assert box is not None, "inpainting came with nothing to draw. This is a bug."
    shown = box.padded(body.padding_mask_crop, enlarged)
    return shown.width, shown.height


def enlarged_size(body: InpaintingBody, image: Upload) -> Size:
    """Of the picture with what is to be added to it."""
    left, top, right, bottom = body.outpaint
    return image.width + left + right, image.height + top + bottom


def _default_size(body: AnyBody, entry: ModelEntry, shown: Size | None) -> Size:
    """What was asked for; what was not follows the aspect of what is shown: image-to-image at the area of the model's
    own size, inpainting pixel for pixel where the model can."""
    own = entry.defaults.width, entry.defaults.height
    if shown is None or (body.width is not None and body.height is not None):
        return _or(body.width, own[0]), _or(body.height, own[1])
    if body.width is not None:
        return body.width, _fitting(shown[1] * body.width / shown[0], entry)
    if body.height is not None:
        return _fitting(shown[0] * body.height / shown[1], entry), body.height
    limits = entry.max_pixels, entry.min_size, entry.max_size, entry.size_multiple
    if isinstance(body, InpaintingBody):
        return canvas_for(shown, own, *limits)
    scale = math.sqrt(own[0] * own[1] / (shown[0] * shown[1]))
    sides = [_fitting(side * scale, entry) for side in shown]
    while sides[0] * sides[1] > entry.max_pixels:  # rounding up, or an extreme aspect, went over
        sides[sides.index(max(sides))] -= entry.size_multiple
    return sides[0], sides[1]


def _fitting(pixels: float, entry: ModelEntry) -> int:
    """The nearest allowed length of a side."""
    multiple = entry.size_multiple
    low, high = math.ceil(entry.min_size / multiple) * multiple, entry.max_size // multiple * multiple
    return min(max(round(pixels / multiple) * multiple, low), high)


def _check_prompts(body: AnyBody) -> None:
    if not body.prompt.strip() and not isinstance(body, UpscaleBody):
        raise field_problem("prompt_empty", "prompt", "`prompt` has no word in it.")
    for name, text in (("prompt", body.prompt), ("negative_prompt", body.negative_prompt or "")):
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise field_problem("prompt_too_long", name, f"`{name}` has {len(text)} characters.")


def schema_problem(error: ValidationError) -> Problem:
    """What is wrong with which fields of a body."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = tuple(FieldError(pointer=_pointer(item["loc"]), detail=item["msg"]) for item in found[:20])
    code = "field_unknown" if all(item["type"] == "extra_forbidden" for item in found) else "field_invalid"
    names = ", ".join(sorted({f"`{entry.pointer.removeprefix('/')}`" for entry in errors}))
    return Problem(code, f"Look at {names}.", errors=errors)


def _pointer(location: tuple[int | str, ...]) -> str:
    """JSON pointer (RFC 6901) of an error below the union's tag."""
    parts = location[1:] if location and location[0] in TASKS else location
    return "".join(f"/{str(part)[:100].replace('~', '~0').replace('/', '~1')}" for part in parts) or "/task"


def _quoted(text: str) -> str:
    return repr(text[:80])


def _number(value: int) -> str:
    return str(value) if abs(value) < 10**20 else "such a number"


def _or(value: Given | None, default: Given) -> Given:
    return default if value is None else value
