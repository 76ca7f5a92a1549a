"""The noise-predicting UNet (arXiv 2112.10752, epsilon_theta(z_t, t, tau_theta(y))), wrapped once.

Owns what is concatenated to the latents, and casts between the engine's float32 latents and the network's precision.
Knows nothing of samplers, guidance or slots: every row stands for itself, with its own timestep, its own context and
its own extra channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Denoiser:
    """A UNet2DConditionModel: 4 channels in and out, or 9 in and 4 out for one that was trained to inpaint."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.latent_channels: int = unet.config.out_channels
        self.extra_channels: int = unet.config.in_channels - unet.config.out_channels
        """Input channels behind the latents (arXiv 2112.10752, section 3.3, conditioning by concatenation)."""
        self.sample_size: int = _square_side(unet.config.sample_size)
        """Side of the latents it was trained on."""
        # Kept: diffusers looks through all parameters to answer these, which takes milliseconds a call.
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype

    @torch.inference_mode()
    def predict(
        self, latents: Tensor, timesteps: Tensor, context: Tensor, extras: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """One forward call.

        latents: (N, C, h, w) float32, already scaled by the step table. timesteps: (N,) float32, may be fractional.
        context: (N, T, D). extras: for each row (E, h, w) float32, never scaled, or None for zeros; all zeros without
        it. Returns the network's output (epsilon or v, as it was trained) as (N, C, h, w) float32.
        """
        output = self._unet(
            self._with_extras(latents, extras).to(self.dtype),
            timesteps,
            encoder_hidden_states=context.to(self.dtype),
            return_dict=False,
        )[0]
        return output.float()

    def _with_extras(self, latents: Tensor, extras: Sequence[Tensor | None] | None) -> Tensor:
        """(N, C, h, w) -> (N, C + E, h, w)."""
        rows = extras or [None] * len(latents)
        if not self.extra_channels:
            assert all(own is None for own in rows), "This network takes latents only. This is a bug."
            return latents
        # Zeros go through the same convolution as anything else: a narrower one is another kernel, which may round
        # differently, and a picture would change when a neighbour with extra channels joins.
        zeros = latents.new_zeros((self.extra_channels, *latents.shape[2:]))
        stacked = torch.stack([zeros if own is None else own for own in rows])  # (N, E, h, w)
        return torch.cat([latents, stacked], dim=1)


def _square_side(sample_size: int | tuple[int, int] | list[int]) -> int:
    return int(sample_size if isinstance(sample_size, int) else max(sample_size))
