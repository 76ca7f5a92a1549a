"""Low-rank adaptations of a network's weights (LoRA, arXiv 2106.09685): read from a file, applied row by row.

Owns the names under which other programs store them, the check that one fits a network, and the hooks that apply them.
Knows nothing of slots.

Three spellings are read, all as safetensors: kohya's (`lora_unet_...`, `lora_te_...`, module paths with underscores),
PEFT's (`unet....lora_A.weight`), and older ones of diffusers (`...processor.to_q_lora.down.weight`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.device import is_out_of_memory
from models.errors import LoraRefused, OutOfMemory

_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
_OLD_ATTENTION = re.compile(r"\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight$")
_BLOCK_NAMES = {"input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks"}
_BLOCKS = re.compile("|".join(_BLOCK_NAMES))
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_mid": "LoCon with a middle",
    "oft_": "OFT",
}
_PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("unet.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
)


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """What is added to one linear layer or convolution: up(down(x)), `up` times alpha / rank already."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class Lora:
    """layers: component (unet, text_encoder, text_encoder_2) -> module path -> layer."""

    name: str
    layers: Mapping[str, Mapping[str, LoraLayer]]
    identity: tuple[object, ...] = ()
    """Equal for two readings of one file; what caches remember of it."""
    digest: str = ""
    """SHA-256 of the file."""

    @property
    def size_bytes(self) -> int:
        tensors = [t for layers in self.layers.values() for layer in layers.values() for t in (layer.down, layer.up)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def of(self, component: str) -> Mapping[str, LoraLayer]:
        return self.layers.get(component, {})


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how strongly it counts."""

    lora: Lora
    weight: float


def read_lora(file: Path, name: str, networks: Mapping[str, nn.Module], identity: tuple[object, ...] = ()) -> Lora:
    """The LoRA in `file`, for these networks, in their precision and on their device.

    Raises LoraRefused where it is of another kind, does not fit, or cannot be read.
    """
    tensors, scales = _read(file, name)
    tensors = _in_diffusers_blocks(tensors, networks["unet"], name)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    paths = {component: _modules(network) for component, network in networks.items()}
    for key, tensor in tensors.items():
        component, path, part = _place(key, paths, name)
        found.setdefault((component, path), {})[part] = tensor
    layers: dict[str, dict[str, LoraLayer]] = {}
    for (component, path), parts in found.items():
        module = paths[component][path]
        try:
            layer = _layer(module, parts, scales.get(component, 1.0), f"{name}, {component}.{path}")
        except (IndexError, ZeroDivisionError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory(f"There is no memory left for the LoRA {name!r}.") from error
            raise LoraRefused(f"The LoRA {name!r} is damaged at {component}.{path}: {error}") from error
        layers.setdefault(component, {})[path] = layer
    return Lora(name, layers, identity or (name, id(layers)))


def _read(file: Path, name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors, and the scale that PEFT's metadata gives to each component."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no dict)
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LoraRefused(f"The LoRA {name!r} cannot be read: {error}.") from error
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in key for key in tensors):
            raise LoraRefused(f"{name!r} is a {kind}; plain LoRA files are served.")
    return tensors, _scales(metadata.get("lora_adapter_metadata", "{}"), name)


def _scales(told: str, name: str) -> dict[str, float]:
    """Alpha / rank of each component by PEFT's metadata, for layers without an alpha of their own."""
    try:
        metadata = dict(json.loads(told))
    except (ValueError, TypeError):
        return {}
    scales = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        own = {key.removeprefix(f"{component}."): value for key, value in metadata.items()}
        if f"{component}.lora_alpha" not in metadata:
            continue
        if any(own.get(name) for name in ("alpha_pattern", "rank_pattern", "use_rslora")):
            raise LoraRefused(f"The layers of the LoRA {name!r} have scales of their own, which are not read.")
        with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
            scales[component] = float(own["lora_alpha"]) / float(own["r"])
    return scales


def _in_diffusers_blocks(tensors: dict[str, Tensor], unet: Any, name: str) -> dict[str, Tensor]:
    """Keys of files that count blocks as the original SDXL code does (`input_blocks_4_1`), renamed."""
    if not any(key.startswith(("lora_unet_input_blocks", "lora_unet_output_blocks")) for key in tensors):
        return tensors
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    try:
        mapped = _maybe_map_sgm_blocks_to_diffusers(tensors, unet.config)
        return {_BLOCKS.sub(lambda found: _BLOCK_NAMES[found[0]], key): tensor for key, tensor in mapped.items()}
    except (ValueError, KeyError, IndexError) as error:
        raise LoraRefused(f"The LoRA {name!r} is made for another network: {error}.") from error


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def _place(key: str, paths: Mapping[str, Mapping[str, nn.Module]], name: str) -> tuple[str, str, str]:
    """Component, module path and part (down, up, alpha) of a key; LoraRefused where the network has no such module."""
    old = _OLD_ATTENTION.sub(_modern_attention, key)
    prefix, component = next(((p, c) for p, c in _PREFIXES if old.startswith(p)), ("", "unet"))
    suffix = next((suffix for suffix in _PARTS if old.endswith("." + suffix)), None)
    if suffix is None:
        raise LoraRefused(f"{name!r} holds {key!r}, which is no part of a LoRA.")
    path = old[len(prefix) : -len(suffix) - 1]
    known = paths.get(component, {})
    for candidate in _spellings(path, known):
        if candidate in known:
            return component, candidate, _PARTS[suffix]
    raise LoraRefused(f"The LoRA {name!r} is made for another network: this model has no {component}.{path}.")


def _modern_attention(match: re.Match[str]) -> str:
    layer = "to_out.0" if match[1] == "to_out" else match[1]
    return f".{layer}.lora.{match[2]}.weight"


def _spellings(path: str, known: Mapping[str, nn.Module]) -> Iterable[str]:
    """`path` as it is, with and without the text_model that transformers 5 dropped, and from kohya's underscores."""
    yield path
    yield path.removeprefix("text_model.")
    yield f"text_model.{path}"
    if "." not in path:
        plain = {name.replace(".", "_"): name for name in known}
        for spelled in (path, path.removeprefix("text_model_"), f"text_model_{path}"):
            if spelled in plain:
                yield plain[spelled]


def _layer(module: nn.Module, parts: Mapping[str, Tensor], scale: float, where: str) -> LoraLayer:
    if "down" not in parts or "up" not in parts:
        raise LoraRefused(f"The LoRA {where} is not whole: it has only {', '.join(sorted(parts))}.")
    down, up = parts["down"], parts["up"]
    weight: Tensor = module.weight  # type: ignore[assignment]
    rank = down.shape[0]
    if "alpha" in parts:
        scale = parts["alpha"].float().item() / rank
    if isinstance(module, nn.Linear):
        down, up = down.flatten(1), up.flatten(1)
        fits = down.shape == (rank, weight.shape[1]) and up.shape == (weight.shape[0], rank)
    else:
        kernel = tuple(weight.shape[2:])
        down = down.reshape(*down.shape[:2], *(down.shape[2:] or (1, 1)))
        up = up.reshape(*up.shape[:2], 1, 1) if up.numel() == up.shape[0] * up.shape[1] else up
        fits = down.shape == (rank, weight.shape[1], *kernel) and up.shape == (weight.shape[0], rank, 1, 1)
    if not fits:
        shapes = f"{tuple(parts['down'].shape)} and {tuple(parts['up'].shape)}"
        raise LoraRefused(f"The LoRA {where} is made for another network: {shapes} for {tuple(weight.shape)}.")
    return LoraLayer(down.to(weight), (up.float() * scale).to(weight))


class RowLoras:
    """Adds to each row of a network's calls what the LoRAs of that row say; the weights of the network stay untouched.

    One per network. After `clear` the network is what it was.
    """

    def __init__(self, network: nn.Module, component: str) -> None:
        self._component = component
        self._modules = _modules(network)
        self._hooked: set[str] = set()
        self._active: dict[str, list[tuple[Tensor, LoraLayer, float]]] = {}

    def activate(self, rows: Sequence[tuple[LoraUse, ...]], device: torch.device) -> None:
        """Until `clear`: row n of every call is adapted by rows[n]."""
        users: dict[LoraUse, list[int]] = {}
        for row, uses in enumerate(rows):
            for use in uses:
                users.setdefault(use, []).append(row)
        for use, own in users.items():
            index = torch.tensor(own, device=device)
            for path, layer in use.lora.of(self._component).items():
                self._hook(path)
                self._active.setdefault(path, []).append((index, layer, use.weight))

    def clear(self) -> None:
        self._active.clear()

    def _hook(self, path: str) -> None:
        if path in self._hooked:
            return
        self._hooked.add(path)

        def adapt(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            for index, layer, weight in self._active.get(path, ()):
                output.index_add_(0, index, _delta(module, layer, inputs[0][index]), alpha=weight)

        self._modules[path].register_forward_hook(adapt)


def _delta(module: nn.Module, layer: LoraLayer, x: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        inner = nn.functional.conv2d(x, layer.down, None, module.stride, module.padding, module.dilation)
        return nn.functional.conv2d(inner, layer.up)
    return nn.functional.linear(nn.functional.linear(x, layer.down), layer.up)
