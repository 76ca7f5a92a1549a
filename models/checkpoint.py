"""Loaded weights of one model, and how they get here.

Owns loading and refusing a checkpoint of the SD 1.x, SD 2.x, SDXL, LCM or LDM super-resolution class, its defaults and
what it declares of itself; `weights` finds and reads the networks. Knows nothing of requests, slots or memory budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from models.autoencoder import Autoencoder
from models.checkpoint_files import (
    DEFAULTS,
    INDEX,
    LOW_RES_SCHEDULER,
    SUPER_RESOLUTION,
    UPSCALER,
    read_json,
)
from models.conditioning import MOST_WINDOWS, NoText, TextConditioner
from models.denoiser import Denoiser
from models.device import Placement, hardware_of
from models.errors import CheckpointRefused
from models.request import SIZE_MULTIPLE
from models.super_resolution import QuantizingAutoencoder, SuperResolutionDenoiser, refuse_other_networks
from models.table_cache import StepTables
from models.text_encoder import TextEncoder
from models.weights import Weights, find_weights

_ALL = ("text-to-image", "image-to-image", "inpainting")
_LATENT_CHANNELS = 4
_INPAINTING_CHANNELS = 9
"""Latents 4, mask 1, latents of the masked picture 4: the order of diffusers' inpainting networks."""
_UPSCALER_CHANNELS = 7
"""Latents 4, small picture 3: the order of diffusers' upscaling pipeline."""
_UPSCALER_SCALING = 0.08333
"""That pipeline puts this scaling factor in the place of any other."""
_UPSCALER_SIDE = 8192
"""Pixels a side of the largest answer of an upscaler; it takes six bytes a pixel of memory, and a megabyte a tile."""
_ZERO_CHANNELS = "zero-channels"
"""Value of `text_to_image` in `denoised.json`: the network was trained to draw from text alone where mask and masked
latents are zero. Other inpainting networks expect a full mask and the latents of a grey picture there, and are served
for inpainting alone."""
_SAMPLER_OF_SCHEDULER = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "kdpm2",
    "KDPM2AncestralDiscreteScheduler": "kdpm2_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}


class Defaults(BaseModel):
    """What a request gets when it says nothing; `denoised.json` beside `model_index.json` may set any of them.

    Beside them that file may say two things of the weights: `"text_to_image": "zero-channels"`, and how many windows of
    tokens a prompt may have, `"prompt_windows": 1` for a network that was never shown more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0, multiple_of=SIZE_MULTIPLE)
    height: int = Field(gt=0, multiple_of=SIZE_MULTIPLE)
    num_inference_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(7.5, ge=0)
    sampler: str
    noise_schedule: str = "default"
    strength: float = Field(0.8, gt=0, le=1)
    clip_skip: int = Field(0, ge=0)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    noise_level: int = Field(20, ge=0)


@dataclass(frozen=True)
class Upscaling:
    """What makes a checkpoint an upscaler. factor: pixels of the answer per pixel of the upload, a side. scales:
    signal and noise of each noise level, (levels, 2); None where the network is told none and the upload is shown as it
    is. tile: pixels of the upload a side that are drawn at once."""

    factor: int
    scales: Tensor | None
    tile: int
    overlap: int

    @property
    def max_noise_level(self) -> int | None:
        return None if self.scales is None else len(self.scales) - 1


@dataclass(frozen=True)
class Checkpoint:
    """Networks of one model, in memory on one device. Frozen; the caches inside belong to the engine's loop."""

    name: str
    conditioner: TextConditioner | NoText
    denoiser: Denoiser
    autoencoder: Autoencoder
    tables: StepTables
    scheduler_config: Mapping[str, Any]
    defaults: Defaults
    placement: Placement
    digest: str
    """SHA-256 over the weights on disk."""
    size_bytes: int
    """Of the weights in memory."""
    tasks: tuple[str, ...]
    zeroes_absent_negative: bool = False
    """Without a negative prompt the network is given zeros, not the empty prompt (SDXL)."""
    min_size: int = 64
    max_size: int = 4096
    """Pixels a side."""
    max_images: int = 16
    upscaling: Upscaling | None = None

    @property
    def networks(self) -> dict[str, Any]:
        """What a LoRA may adapt: component -> network."""
        return {"unet": self.denoiser.network} | {e.component: e.network for e in self.conditioner.encoders}

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def reads_prompts(self) -> bool:
        return self.window_tokens > 0

    @property
    def guides_by_rows(self) -> bool:
        """Guidance takes a second row: it reads prompts, and is not told the guidance scale instead."""
        return self.reads_prompts and self.denoiser.guidance_width is None

    @property
    def token_limit(self) -> int:
        return self.conditioner.token_limit

    @property
    def window_tokens(self) -> int:
        return self.conditioner.window_tokens

    @property
    def max_clip_skip(self) -> int:
        return self.conditioner.max_clip_skip

    @property
    def upscale_factor(self) -> int | None:
        return self.upscaling.factor if self.upscaling else None

    @property
    def max_noise_level(self) -> int | None:
        return self.upscaling.max_noise_level if self.upscaling else None

    @property
    def max_pixels(self) -> int:
        """Pixels a picture: nine times the area it was trained on, at least a megapixel, at most max_size squared; of
        an upscaler, which draws in tiles, all of max_size squared."""
        if self.upscaling:
            return self.max_size**2
        trained = self.defaults.width * self.defaults.height
        return min(self.max_size**2, max(9 * trained, 1024 * 1024))

    @property
    def device(self) -> str:
        return str(self.placement.device)

    @property
    def dtype(self) -> str:
        return self.placement.dtype_name

    @property
    def hardware(self) -> str:
        return hardware_of(self.placement.device)


def load_checkpoint(name: str, source: str, placement: Placement) -> Checkpoint:
    """Load the model at `source`: a directory in diffusers layout, a single safetensors file, or a hub id.

    Raises CheckpointMissing when there is none, CheckpointRefused when it is of a kind that is not served; both name
    the file or the component.
    """
    return load_weights(name, find_weights(source), placement)


def load_weights(name: str, weights: Weights, placement: Placement) -> Checkpoint:
    """The same for weights that were found before."""
    folder, components = weights.folder, weights.components
    index = read_json(folder / INDEX)
    own = read_json(folder / DEFAULTS) if (folder / DEFAULTS).is_file() else {}
    tasks = _tasks(index["_class_name"], folder, own, name)
    networks = {component: weights.load(component, placement) for component in components}
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    denoiser, autoencoder, upscaling = _wrap(index["_class_name"], networks, folder)
    reads_prompts = "text_encoder" in networks
    most_windows = _most_windows(own)
    conditioner = _load_conditioner(folder, networks, most_windows) if reads_prompts else NoText(denoiser.device)
    if not reads_prompts:
        own = {"guidance_scale": 1.0} | own  # there is nothing to be guided by
    defaults = _read_defaults(own, index, denoiser.sample_size * autoencoder.factor)
    _refuse_clip_skip(defaults, conditioner)
    return Checkpoint(
        name=name,
        conditioner=conditioner,
        denoiser=denoiser,
        autoencoder=autoencoder,
        tables=StepTables(scheduler_config),
        scheduler_config=scheduler_config,
        defaults=defaults,
        placement=placement,
        digest=weights.digest(),
        size_bytes=sum(_size_bytes(network) for network in networks.values()),
        tasks=tasks,
        upscaling=upscaling,
        max_size=_UPSCALER_SIDE if upscaling else Checkpoint.max_size,
        zeroes_absent_negative=denoiser.is_sdxl and bool(index.get("force_zeros_for_empty_prompt")),
    )


def _tasks(pipeline: str, folder: Path, own: dict[str, Any], name: str) -> tuple[str, ...]:
    """What its networks can do. Takes what `denoised.json` says of that out of `own`."""
    unet_config = read_json(folder / "unet" / "config.json")
    if pipeline == SUPER_RESOLUTION:
        refuse_other_networks(unet_config, read_json(folder / "vqvae" / "config.json"), name)
        return ("upscale",)
    if pipeline == UPSCALER:
        return _tasks_of_upscaler(unet_config, name)
    return _tasks_of(unet_config, own.pop("text_to_image", None), name)


def _tasks_of(unet_config: Mapping[str, Any], convention: object, name: str) -> tuple[str, ...]:
    """What this UNet can do; `convention` is what the checkpoint declares as `text_to_image`. Refuses other UNets."""
    channels, out_channels = unet_config.get("in_channels", 4), unet_config.get("out_channels", 4)
    if channels not in (_LATENT_CHANNELS, _INPAINTING_CHANNELS) or out_channels != _LATENT_CHANNELS:
        raise CheckpointRefused(
            f"The UNet of {name!r} has {channels} input and {out_channels} output channels; networks with 4 and 4 are"
            " served, and inpainting networks with 9 and 4."
        )
    if unet_config.get("num_class_embeds"):
        raise CheckpointRefused(f"The UNet of {name!r} is told a class, and no request can name one.")
    if convention not in (None, _ZERO_CHANNELS):
        raise CheckpointRefused(f"{DEFAULTS} says text_to_image is {convention!r}; only {_ZERO_CHANNELS!r} is known.")
    if channels == _LATENT_CHANNELS and convention is not None:
        raise CheckpointRefused(
            f"{DEFAULTS} says text_to_image is {convention!r}, but the UNet of {name!r} has 4 input channels:"
            " there is none to leave zero. Remove the line."
        )
    return ("inpainting",) if channels == _INPAINTING_CHANNELS and convention is None else _ALL


def _tasks_of_upscaler(unet_config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    channels, out_channels = unet_config.get("in_channels", 4), unet_config.get("out_channels", 4)
    if (channels, out_channels) != (_UPSCALER_CHANNELS, _LATENT_CHANNELS) or not unet_config.get("num_class_embeds"):
        raise CheckpointRefused(
            f"The UNet of {name!r} has {channels} input and {out_channels} output channels and"
            f" {unet_config.get('num_class_embeds') or 'no'} noise levels; upscalers with 7 and 4 channels and some"
            " levels are served."
        )
    return ("upscale",)


def _wrap(pipeline: str, networks: Mapping[str, Any], folder: Path) -> tuple[Denoiser, Autoencoder, Upscaling | None]:
    """What the engine calls instead of the networks themselves."""
    denoiser: Denoiser
    autoencoder: Autoencoder
    if pipeline == SUPER_RESOLUTION:
        denoiser, autoencoder = SuperResolutionDenoiser(networks["unet"]), QuantizingAutoencoder(networks["vqvae"])
        return denoiser, autoencoder, _upscaling(denoiser, autoencoder, scales=None)
    denoiser = Denoiser(networks["unet"])
    if pipeline == UPSCALER:
        autoencoder = Autoencoder(networks["vae"], _UPSCALER_SCALING)
        return denoiser, autoencoder, _upscaling(denoiser, autoencoder, _load_scales(folder, denoiser))
    return denoiser, Autoencoder(networks["vae"]), None


def _upscaling(denoiser: Denoiser, autoencoder: Autoencoder, scales: Tensor | None) -> Upscaling:
    side = denoiser.sample_size
    return Upscaling(autoencoder.factor, scales, side, overlap=min(16, side // 4))


def _load_scales(folder: Path, denoiser: Denoiser) -> Tensor:
    """Signal and noise of the noise levels, (levels, 2), by the checkpoint's second scheduler."""
    from diffusers import DDPMScheduler

    config = read_json(folder / LOW_RES_SCHEDULER / "scheduler_config.json")
    alphas = DDPMScheduler.from_config(config).alphas_cumprod
    assert denoiser.max_noise_level is not None, "An upscaler without noise levels was let in. This is a bug."
    told = read_json(folder / INDEX).get("max_noise_level", denoiser.max_noise_level)
    alphas = alphas[: min(int(told), denoiser.max_noise_level) + 1]
    return torch.stack([alphas.sqrt(), (1 - alphas).sqrt()], dim=1)


def _most_windows(own: dict[str, Any]) -> int:
    """What `denoised.json` says of the length of prompts, taken out of it."""
    most = own.pop("prompt_windows", MOST_WINDOWS)
    if not isinstance(most, int) or not 1 <= most <= MOST_WINDOWS:
        raise CheckpointRefused(f"{DEFAULTS} says prompt_windows is {most!r}; 1 to {MOST_WINDOWS} are read.")
    return most


def _load_conditioner(folder: Path, networks: Mapping[str, Any], most_windows: int) -> TextConditioner:
    names = [name for name in ("text_encoder", "text_encoder_2") if name in networks]
    is_sdxl = len(names) > 1
    tokenizers = [_load_tokenizer(folder / name.replace("text_encoder", "tokenizer"), networks[name]) for name in names]
    first = tokenizers[0]
    if any(other.get_vocab() != first.get_vocab() for other in tokenizers[1:]):
        raise CheckpointRefused("The two tokenizers have different tokens; both encoders must read the same ones.")
    lengths = [networks[name].config.max_position_embeddings for name in names]
    return TextConditioner(
        first,
        [
            TextEncoder(networks[name], tokenizer.pad_token_id, is_penultimate=is_sdxl, component=name)
            for name, tokenizer in zip(names, tokenizers, strict=True)
        ],
        # A tokenizer saved without a limit reports a huge one.
        window_length=int(min(*lengths, *(tokenizer.model_max_length for tokenizer in tokenizers))),
        most_windows=most_windows,
    )


def _load_tokenizer(folder: Path, text_encoder: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointRefused(f"The {folder.name} cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        raise CheckpointRefused(f"The {folder.name} has no pad_token; name one in its tokenizer_config.json.")
    if len(tokenizer) > text_encoder.config.vocab_size:
        encoder = folder.name.replace("tokenizer", "text_encoder")
        raise CheckpointRefused(
            f"The {folder.name} has {len(tokenizer)} tokens and the {encoder} knows {text_encoder.config.vocab_size}."
        )
    return tokenizer


def _read_defaults(own: Mapping[str, Any], index: Mapping[str, Any], side: int) -> Defaults:
    """`own`: the content of `denoised.json`, as far as it is about defaults."""
    scheduler = (index.get("scheduler") or (None, None))[1]
    given: dict[str, Any] = {
        "width": side,
        "height": side,
        "sampler": _SAMPLER_OF_SCHEDULER.get(str(scheduler), "dpmpp_2m"),
    }
    try:
        return Defaults(**(given | dict(own)))
    except (ValidationError, TypeError) as error:
        raise CheckpointRefused(f"{DEFAULTS} is not usable: {error}") from error


def _refuse_clip_skip(defaults: Defaults, conditioner: TextConditioner | NoText) -> None:
    if defaults.clip_skip > conditioner.max_clip_skip:
        raise CheckpointRefused(
            f"{DEFAULTS} says clip_skip {defaults.clip_skip}, and {conditioner.max_clip_skip} layers can be left out."
        )


def _size_bytes(network: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
