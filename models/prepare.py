"""What a request means for a checkpoint: its group, its rows, what conditions it, and the slots it begins as.

Owns the way from a request and what it brings along to slots. Knows nothing of other jobs, of turns or of faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.checkpoint import Checkpoint
from models.conditioning import PromptOptions
from models.control import ControlNet, ControlUse
from models.lora import LoraUse
from models.materials import Materials
from models.request import ImageToImageRequest, InpaintingRequest, PictureRequest, UpscaleRequest
from models.slot import Conditioning, GroupKey, Slot, SlotState, Text
from models.start import Start, encode_uploads, small_picture, start, start_tiles
from models.step_table import StepTable
from models.tiles import Mosaic, Tiling, tile

_UNREAD_WITHOUT_GUIDANCE = "The negative prompt was not read: guidance_scale is 1 or less, which switches it off."
_UNREAD_FOR_MODEL = "The negative prompt was not read: this model is told the guidance scale and takes none."


@dataclass(frozen=True)
class Inputs:
    """What a request brings along beside its own values, read and decoded.

    image: the upload of image-to-image or upscale, RGB, any size; for inpainting the picture of its `Canvas`, and mask,
    (height, width) of the request, the canvas's own. loras and controlnets: read for this checkpoint, the latter with
    the picture of each, RGB, any size, in the order of the request. images: for upscale instead of image, one for each
    picture of the request.
    """

    image: Image.Image | None = None
    mask: NDArray[np.bool_] | None = None
    loras: tuple[LoraUse, ...] = ()
    controlnets: tuple[tuple[ControlNet, Image.Image], ...] = ()
    images: tuple[Image.Image, ...] = ()

    @property
    def has_uploads(self) -> bool:
        return self.image is not None or bool(self.images)

    @property
    def materials(self) -> Materials:
        return Materials(
            {use.lora.name: use.lora.digest for use in self.loras},
            {net.name: net.digest for net, _ in self.controlnets},
        )


@dataclass(frozen=True)
class Preparation:
    """The slots of a request, picture by picture, and the mosaics of those that are enlarged in tiles."""

    slots: tuple[Slot, ...]
    mosaics: dict[int, Mosaic] = field(default_factory=dict)


def step_table_of(request: PictureRequest, checkpoint: Checkpoint) -> StepTable:
    """The step table of a request; safe to call from another thread beforehand, so that the loop finds it compiled.

    Raises SamplerRefused.
    """
    strength = request.strength if isinstance(request, ImageToImageRequest | InpaintingRequest) else None
    return checkpoint.tables.get(request.sampler, request.noise_schedule, request.num_inference_steps, strength)


def group_key(request: PictureRequest, checkpoint: Checkpoint) -> GroupKey:
    factor = checkpoint.autoencoder.factor
    width, height = request.width // factor, request.height // factor
    if isinstance(request, UpscaleRequest):
        box = _tiling_of(request, checkpoint).boxes[0]
        width, height = box.width, box.height
    shape = (checkpoint.denoiser.latent_channels, height, width)
    context_length = checkpoint.conditioner.context_length(prompts_of(request, checkpoint), request.prompt_syntax)
    return GroupKey(checkpoint.name, shape, context_length, request.is_strict)


def rows_of(request: PictureRequest, checkpoint: Checkpoint) -> int:
    """UNet rows that a step of all its pictures takes."""
    tiles = len(_tiling_of(request, checkpoint).boxes) if isinstance(request, UpscaleRequest) else 1
    return request.num_images * tiles * (2 if _has_negative(request, checkpoint) else 1)


def prompts_of(request: PictureRequest, checkpoint: Checkpoint) -> list[str]:
    """The prompt, then, with a row for it, the negative one, empty where there is none."""
    negative = [request.negative_prompt or ""] if _has_negative(request, checkpoint) else []
    return [request.prompt, *negative]


def prompt_options(request: PictureRequest, inputs: Inputs) -> PromptOptions:
    return PromptOptions(request.prompt_syntax, request.clip_skip, inputs.loras, request.is_strict)


def warnings_of(request: PictureRequest, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What of the request is not done as asked."""
    warnings = [
        checkpoint.conditioner.warn_of_cut(text, name, request.prompt_syntax)
        for text, name in zip(prompts_of(request, checkpoint), ("prompt", "negative prompt"), strict=False)
    ]
    if request.negative_prompt and not _has_negative(request, checkpoint):
        warnings.append(_why_unread(request, checkpoint))
    return tuple(warning for warning in warnings if warning)


def _why_unread(request: PictureRequest, checkpoint: Checkpoint) -> str | None:
    """Of a negative prompt without a row."""
    if not checkpoint.reads_prompts:
        return checkpoint.conditioner.warn_of_cut(request.negative_prompt or "", "negative prompt")
    return _UNREAD_FOR_MODEL if request.has_guidance else _UNREAD_WITHOUT_GUIDANCE


def prepare(
    job_id: str, request: PictureRequest, checkpoint: Checkpoint, inputs: Inputs, table: StepTable
) -> Preparation:
    """The slots of a request; costs what its prompts and uploads cost to encode."""
    conditioning = _conditioning_of(request, checkpoint, inputs)
    if isinstance(request, UpscaleRequest):
        conditioning = replace(conditioning, noise_level=_noise_level_of(request, checkpoint))
        tiling = _tiling_of(request, checkpoint)
        starts = _start_tiles(request, checkpoint, inputs, table, tiling)
        mosaics = {index: Mosaic(tiling, checkpoint.autoencoder.factor) for index in range(request.num_images)}
    else:
        starts, mosaics = _start_pictures(request, checkpoint, inputs, table), {}
    key, device = group_key(request, checkpoint), checkpoint.denoiser.device
    slots = []
    for index, number, begun, generator in starts:
        latents = begun.latents.to(device)
        own = conditioning if begun.extra is None else replace(conditioning, extra=begun.extra.to(device))
        registers = latents.new_zeros((table.num_registers, *key.shape))
        known = begun.known.to(device) if begun.known else None
        state = SlotState(latents, registers, generator.get_state(), is_exact=begun.is_exact)
        slots.append(Slot(job_id, index, key, table, own, generator, state, known, number))
    return Preparation(tuple(slots), mosaics)


Starts = Iterator[tuple[int, int, Start, torch.Generator]]
"""Number of the picture, of the tile, where it begins, and the generator of its steps."""


def _start_pictures(request: PictureRequest, checkpoint: Checkpoint, inputs: Inputs, table: StepTable) -> Starts:
    has_channels = checkpoint.denoiser.extra_channels > 0
    encoded = encode_uploads(checkpoint.autoencoder, request, inputs.image, inputs.mask, has_channels)
    shape, strength = group_key(request, checkpoint).shape, getattr(request, "strength", 1.0)
    for index in range(request.num_images):
        generator = torch.Generator("cpu").manual_seed(request.seed_of(index))
        yield index, 0, start(table, encoded, strength, shape, generator), generator


def _start_tiles(
    request: UpscaleRequest, checkpoint: Checkpoint, inputs: Inputs, table: StepTable, tiling: Tiling
) -> Starts:
    upscaling = checkpoint.upscaling
    assert upscaling is not None, "A request to enlarge reached a model that cannot. This is a bug."
    assert inputs.has_uploads, "upscale came without its upload. This is a bug."
    images = inputs.images or tuple(inputs.image for _ in range(request.num_images) if inputs.image)
    channels, level = checkpoint.denoiser.latent_channels, _noise_level_of(request, checkpoint)
    for index, image in enumerate(images):
        generator = torch.Generator("cpu").manual_seed(request.seed_of(index))
        shown = small_picture(image, tiling.size)
        if level is not None and upscaling.scales is not None:
            signal, noise = upscaling.scales[level].tolist()
            shown = signal * shown + noise * torch.randn(shown.shape, generator=generator)
        for number, own in enumerate(start_tiles(table, shown, tiling, channels, generator)):
            yield index, number, *own


def _noise_level_of(request: UpscaleRequest, checkpoint: Checkpoint) -> int | None:
    """None for a network that is told none, whatever the request says."""
    highest = checkpoint.max_noise_level
    if highest is None:
        return None
    return min(checkpoint.defaults.noise_level if request.noise_level is None else request.noise_level, highest)


def _has_negative(request: PictureRequest, checkpoint: Checkpoint) -> bool:
    return request.has_guidance and checkpoint.guides_by_rows


def _tiling_of(request: UpscaleRequest, checkpoint: Checkpoint) -> Tiling:
    """In pixels of the upload, which are positions of the latents."""
    upscaling = checkpoint.upscaling
    assert upscaling is not None, "A request to enlarge reached a model that cannot. This is a bug."
    size = request.width // upscaling.factor, request.height // upscaling.factor
    return tile(size, upscaling.tile, upscaling.overlap, checkpoint.denoiser.multiple)


def _conditioning_of(request: PictureRequest, checkpoint: Checkpoint, inputs: Inputs) -> Conditioning:
    device = checkpoint.denoiser.device
    prompts = prompts_of(request, checkpoint)
    positive, *rest = checkpoint.conditioner.encode(prompts, prompt_options(request, inputs))
    negative = rest[0] if rest else None
    if negative is not None and request.negative_prompt is None and checkpoint.zeroes_absent_negative:
        pooled = None if negative.pooled is None else torch.zeros_like(negative.pooled)
        negative = Text(torch.zeros_like(negative.states), pooled)
    time_ids = None
    if checkpoint.denoiser.is_sdxl:  # size of the original, its crop's corner, size asked for (arXiv 2307.01952)
        size = [float(request.height), float(request.width)]
        time_ids = torch.tensor([*size, 0.0, 0.0, *size], device=device)
    controls = tuple(
        ControlUse(net, net.picture(image, request.width, request.height), choice.weight, choice.start, choice.end)
        for choice, (net, image) in zip(request.controls, inputs.controlnets, strict=True)
    )
    return Conditioning(
        positive,
        negative,
        request.guidance_scale,
        request.guidance_rescale,
        time_ids=time_ids,
        loras=inputs.loras,
        controls=controls,
    )
