"""ControlNets (arXiv 2302.05543): pictures of edges, depth, poses that steer where things go.

Owns what is added to the UNet's skip connections for the rows that ask for it. Knows nothing of files or samplers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class ControlNet:
    """A ControlNetModel of one checkpoint's class, wrapped once."""

    def __init__(self, name: str, network: Any, digest: str = "") -> None:
        """digest: SHA-256 over its files."""
        self.name = name
        self.network = network
        self.digest = digest

    def picture(self, image: Image.Image, width: int, height: int) -> Tensor:
        """(3, height, width) in 0..1, in the network's precision, of an RGB picture, resized (Lanczos) if need be."""
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)
        return pixels.permute(2, 0, 1).to(self.network.device, self.network.dtype)


@dataclass(frozen=True, eq=False)
class ControlUse:
    """A ControlNet with its picture (3, H, W), how strongly it counts, and from which share of the steps to which."""

    net: ControlNet
    picture: Tensor
    weight: float
    start: float
    end: float

    def is_active(self, step: int, steps: int) -> bool:
        """Whether it steers the 0-based `step` of `steps`, by diffusers' rule: steps that lie wholly inside."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


Residuals = tuple[tuple[Tensor, ...], Tensor]
"""For each skip connection, then for the middle: (N, C, h, w)."""


def residuals(
    controls: Sequence[tuple[ControlUse, ...]],
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    added: dict[str, Tensor] | None,
) -> Residuals | None:
    """What each row's controls add to the UNet; zeros for rows without any, None where no row has one.

    controls: those of each row that are active now. The rest as `Denoiser` gives it to the UNet, the latents alone.
    Rows of the same network share its call.
    """
    users: dict[ControlNet, list[tuple[int, ControlUse]]] = {}
    for row, uses in enumerate(controls):
        for use in uses:
            users.setdefault(use.net, []).append((row, use))
    total: list[Tensor] | None = None
    for net, own in users.items():
        index = torch.tensor([row for row, _ in own], device=latents.device)
        weights = torch.tensor([use.weight for _, use in own], device=latents.device, dtype=latents.dtype)
        down, middle = net.network(
            latents[index],
            timesteps[index],
            encoder_hidden_states=context[index],
            controlnet_cond=torch.stack([use.picture for _, use in own]),
            added_cond_kwargs=None if added is None else {name: value[index] for name, value in added.items()},
            return_dict=False,
        )
        parts = [part * weights[:, None, None, None] for part in (*down, middle)]
        if total is None:
            total = [part.new_zeros((len(latents), *part.shape[1:])) for part in parts]
        for there, part in zip(total, parts, strict=True):
            there.index_add_(0, index, part)
    return None if total is None else (tuple(total[:-1]), total[-1])
