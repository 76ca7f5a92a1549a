"""Checkpoints in diffusers layout rewritten as one file in the original key layout, for tests.

The keys are those of CompVis' and Stability AI's code, written down here independently of the loader, which renames
with diffusers' functions.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.checkpoint_files import components_of

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_EMBEDDERS = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def write_single_file(folder: Path, file: Path, *, dtype: torch.dtype | None = None, **more: Tensor) -> Path:
    """The weights of the checkpoint in `folder` as one file, with `more` keys; the rest is not in it."""
    tensors = {key: tensor.to(dtype or tensor.dtype).contiguous() for key, tensor in read_original(folder).items()}
    save_file(tensors | more, file)
    return file


def copy_configuration(folder: Path, target: Path) -> Path:
    """The checkpoint in `folder` without its weights."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def read_original(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint in diffusers layout, under the original keys of its class."""
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    networks = {name: kind.from_pretrained(folder / name, low_cpu_mem_usage=False) for name, kind in classes.items()}
    networks["text_encoder"] = CLIPTextModel.from_pretrained(folder / "text_encoder")
    if "text_encoder_2" in components_of(folder):
        networks["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    return original_tensors(networks)


def original_tensors(networks: Mapping[str, Any]) -> dict[str, Tensor]:
    """networks: as the folders in diffusers layout are called. Their weights, under the original keys."""
    unet, first = networks["unet"], networks["text_encoder"].state_dict()
    tensors = _unet_keys(unet) | _vae_keys(networks["vae"])
    if "text_encoder_2" in networks:
        second = networks["text_encoder_2"].state_dict()
        return tensors | _clip_keys(first, _EMBEDDERS[0]) | _open_clip_keys(second, _EMBEDDERS[1])
    if unet.config.use_linear_projection or unet.config.num_class_embeds is not None:  # from SD 2 on
        return tensors | _open_clip_keys(first, "cond_stage_model.model.")
    return tensors | _clip_keys(first, "cond_stage_model.transformer.")


def _unet_keys(unet: Any) -> dict[str, Tensor]:
    layers = unet.config.layers_per_block
    renamed = {unet_key(key, layers): tensor for key, tensor in unet.state_dict().items()}
    return {f"model.diffusion_model.{key}": tensor for key, tensor in _place_upsamplers(renamed).items()}


def unet_key(key: str, layers: int) -> str:
    """layers: resnets of a down block; an up block has one more."""
    for ours, theirs in _UNET.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    side, *words = key.split(".")
    rest = ".".join(words[3:]) if side != "mid_block" else ".".join(words[2:])
    if "resnets" in words:
        layer, _, kind = rest.rpartition(".")
        rest = f"{_RESNET[layer]}.{kind}"
    if side == "mid_block":
        return f"middle_block.{1 if words[0] == 'attentions' else 2 * int(words[1])}.{rest}"
    block, kind, place = int(words[0]), words[1], int(words[2])
    index = {"resnets": 0, "attentions": 1}.get(kind)
    if side == "down_blocks":
        if index is None:
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + block * (layers + 1) + place}.{index}.{rest}"
    if index is None:
        return f"output_blocks.{block * (layers + 1) + layers}.UPSAMPLER.{rest}"
    return f"output_blocks.{block * (layers + 1) + place}.{index}.{rest}"


def _place_upsamplers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An upsampler comes behind the attention of its block, where there is one."""
    placed = {}
    for key, tensor in tensors.items():
        block, found, rest = key.partition(".UPSAMPLER.")
        behind = 2 if any(other.startswith(f"{block}.1.") for other in tensors) else 1
        placed[f"{block}.{behind}.{rest}" if found else key] = tensor
    return placed


def _vae_keys(vae: Any) -> dict[str, Tensor]:
    blocks = len(vae.config.block_out_channels)
    return {f"first_stage_model.{vae_key(key, blocks)}": _as_convolution(key, t) for key, t in vae.state_dict().items()}


def vae_key(key: str, blocks: int) -> str:
    side, *words = key.split(".")
    if side in ("quant_conv", "post_quant_conv"):
        return key
    key = ".".join(words).replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    words = key.split(".")
    if words[0] == "mid_block":
        if words[1] == "attentions":
            layer, _, kind = ".".join(words[3:]).rpartition(".")
            return f"{side}.mid.attn_1.{_ATTENTION[layer]}.{kind}"
        return f"{side}.mid.block_{int(words[2]) + 1}.{'.'.join(words[3:])}"
    if words[0] in ("down_blocks", "up_blocks"):
        is_down = words[0] == "down_blocks"
        block = f"{side}.down.{words[1]}" if is_down else f"{side}.up.{blocks - 1 - int(words[1])}"
        if words[2] == "resnets":
            return f"{block}.block.{'.'.join(words[3:])}"
        return f"{block}.{'downsample' if is_down else 'upsample'}.{'.'.join(words[4:])}"
    return f"{side}.{key}"


def _as_convolution(key: str, tensor: Tensor) -> Tensor:
    """The attention of the original autoencoder is made of convolutions of one pixel."""
    is_linear = ".attentions." in key and tensor.ndim == 2
    return tensor[:, :, None, None] if is_linear else tensor


def _clip_keys(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in state.items()}


def _open_clip_keys(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    tensors = {
        f"{prefix}positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}ln_final.weight": state["final_layer_norm.weight"],
        f"{prefix}ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        tensors[f"{prefix}text_projection"] = state["text_projection.weight"].T
    for key, tensor in state.items():
        if not key.startswith("encoder.layers."):
            continue
        number, _, layer = key.removeprefix("encoder.layers.").partition(".")
        block = f"{prefix}transformer.resblocks.{number}"
        name, _, kind = layer.rpartition(".")
        if name in _OPEN_CLIP:
            tensors[f"{block}.{_OPEN_CLIP[name]}.{kind}"] = tensor
        elif name == "self_attn.q_proj":
            whole = [state[f"encoder.layers.{number}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(whole)
    return tensors
