"""The original key layout of Stable Diffusion checkpoints: `model.diffusion_model.*` and its neighbours.

Owns which networks lie under which keys, which keys are no weights, and what a file is, told from its header alone.
diffusers' own functions rename the keys. Knows nothing of configurations, folders or the hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from models.checkpoint_files import Header, refuse_keys
from models.errors import CheckpointRefused

Convert = Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
"""Tensors of one network under the keys of the file, and that network -> the tensors under the network's own keys."""


@dataclass(frozen=True)
class Part:
    """One network in a file: what its keys begin with, and how they are renamed."""

    prefix: str
    convert: Convert

    def keys(self, header: Header) -> list[str]:
        """Keys of its weights; buffers that nothing reads are left out."""
        return [key for key in header.shapes if key.startswith(self.prefix) and not _UNREAD.fullmatch(key)]


@dataclass(frozen=True)
class Anatomy:
    """What a file holds. parts: component -> part. prediction_type: None where the file does not tell."""

    family: str
    parts: Mapping[str, Part]
    channels: int
    context_width: int | None
    prediction_type: str | None
    rescales_betas: bool


def _unet(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    return dict(convert_ldm_unet_checkpoint(tensors, network.config))


def _vae(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return dict(convert_ldm_vae_checkpoint(tensors, network.config))


def _clip(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    return _named_as_in(network, convert_ldm_clip_checkpoint(tensors))


def _open_clip(prefix: str) -> Convert:
    def convert(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
        from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

        return _named_as_in(network, convert_open_clip_checkpoint(network, tensors, prefix))

    return convert


def _named_as_in(text_encoder: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5 has one level less in the encoder without a projection."""
    if hasattr(text_encoder, "text_model"):
        return dict(tensors)
    return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}


_UNET, _VAE = Part("model.diffusion_model.", _unet), Part("first_stage_model.", _vae)
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_FIRST, _SECOND, _REFINER = (
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
)
_TEXT_ENCODERS: Mapping[str, Mapping[str, Part]] = MappingProxyType(
    {
        "SD 1.x": {"text_encoder": Part(_CLIP, _clip)},
        "SD 2.x": {"text_encoder": Part(_OPEN_CLIP, _open_clip(_OPEN_CLIP))},
        "SDXL": {"text_encoder": Part(_FIRST, _clip), "text_encoder_2": Part(_SECOND, _open_clip(_SECOND))},
    }
)
"""Family -> its text encoders, which are what tells the families apart."""

_CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
_CONTEXT = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")
_V_PREDICTION, _ZERO_TERMINAL_SNR = "v_pred", "ztsnr"
"""Empty tensors that some trainers leave as a sign."""

_UNREAD = re.compile(
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*"  # averages and what only training has
    r"|(\w+_)?alphas_cumprod(_prev)?|betas|posterior_\w+|denoiser\.(log_)?sigmas|low_res_model\..*"  # noise schedules
    r"|logvar|lvlb_weights|global_step|scale_factor"
    r"|.*\.position_ids|.*\.logit_scale|.*\.attn_mask"  # of text encoders: counted, or for comparing with pictures
    r"|cond_stage_model\.model\.text_projection|.*\.transformer\.text_projection\.weight"
    r"|cond_stage_model\.model\.transformer\.resblocks\.23\..*"  # SD 2.x stops a layer before the end
    rf"|{_V_PREDICTION}|{_ZERO_TERMINAL_SNR}"
)
"""Keys of a whole checkpoint that no network reads."""

_LORA_FOLDER, _CONTROLNET_FOLDER = "DENOISED_LORAS", "DENOISED_CONTROLNETS"
_NOT_SERVED = (
    (r"^lora_|[._]lora[._]|\.lora_\w+\.|\.hada_w1|\.lokr_w1", f"a LoRA, which belongs into the folder {_LORA_FOLDER}"),
    (
        r"^control_model\.|^input_hint_block\.|^controlnet_cond_embedding\.",
        f"a ControlNet; those are read in diffusers layout, from {_CONTROLNET_FOLDER}",
    ),
    (r"double_blocks\.", "a Flux network, which is not served"),
    (r"joint_blocks\.", "an SD 3 network, which is not served"),
    (rf"^{_REFINER}", "an SDXL refiner, which is not served; sd_xl_base is"),
)
"""Search in the keys -> what a file with such a key is; the first one found."""
_FRAGMENTS = (
    (r"^(unet\.)?down_blocks\.|^input_blocks\.", "a UNet alone"),
    (r"^(emb_params|string_to_param|clip_[lg]$)", "a textual inversion, which is not served"),
    (r"^(first_stage_model|encoder|decoder|vae)\.", "a VAE alone"),
    (r"^(cond_stage_model|conditioner|text_model|transformer)\.", "a text encoder alone"),
)
"""The same for files without a UNet of this layout."""
_WHOLE = "Give the checkpoint that holds UNet, VAE and text encoder, or a directory in diffusers layout."


def recognise(header: Header, name: str) -> Anatomy:
    """What the file `name` is. Raises CheckpointRefused, with what it is, for all but whole checkpoints."""
    refused = _other_kind(header)
    if refused:
        raise CheckpointRefused(f"{name} is {refused}. {_WHOLE}")
    family = _family_of(header)
    missing = [
        part
        for part, is_there in (("VAE", bool(_VAE.keys(header))), ("text encoder", family is not None))
        if not is_there
    ]
    if family is None or missing:
        raise CheckpointRefused(f"{name} holds a UNet and no {' and no '.join(missing)}. {_WHOLE}")
    anatomy = Anatomy(
        family=family,
        parts={"unet": _UNET, "vae": _VAE, **_TEXT_ENCODERS[family]},
        channels=header.shapes[_CONV_IN][1],
        context_width=next((shape[-1] for key, shape in header.shapes.items() if _CONTEXT.fullmatch(key)), None),
        prediction_type=_prediction_of(header),
        rescales_betas=_ZERO_TERMINAL_SNR in header.shapes,
    )
    unknown = header.shapes.keys() - {key for part in anatomy.parts.values() for key in part.keys(header)}
    refuse_keys(f"{name} holds what nothing here reads:", [key for key in unknown if not _UNREAD.fullmatch(key)])
    return anatomy


def _other_kind(header: Header) -> str | None:
    """In words, what a file is that is no checkpoint with a UNet of this layout."""
    has_unet = len(header.shapes.get(_CONV_IN, ())) == 4
    for pattern, kind in _NOT_SERVED if has_unet else (*_NOT_SERVED, *_FRAGMENTS):
        if any(re.search(pattern, key) for key in header.shapes):
            return kind
    if has_unet:
        return None
    return f"no Stable Diffusion checkpoint: its keys are such as {', '.join(sorted(header.shapes)[:3]) or 'none'}"


def _family_of(header: Header) -> str | None:
    return next(
        (family for family, encoders in _TEXT_ENCODERS.items() if all(part.keys(header) for part in encoders.values())),
        None,
    )


def _prediction_of(header: Header) -> str | None:
    """What the file says of it (Stability AI's ModelSpec 1.0); the shapes are the same for both."""
    told = header.metadata.get("modelspec.prediction_type")
    architecture = header.metadata.get("modelspec.architecture", "")
    if _V_PREDICTION in header.shapes or told == "v" or architecture.startswith("stable-diffusion-v2-768-v"):
        return "v_prediction"
    if told == "epsilon" or architecture.startswith("stable-diffusion-v2-512"):
        return "epsilon"
    return None
