"""The noise-predicting UNet (arXiv 2112.10752, epsilon_theta(z_t, t, tau_theta(y))), wrapped once.

Owns casts between the engine's float32 latents and the network's precision. Knows nothing of samplers, guidance or
slots: every row stands for itself, with its own timestep and its own context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Denoiser:
    """A UNet2DConditionModel with four latent channels."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self.latent_channels: int = unet.config.in_channels
        self.sample_size: int = _square_side(unet.config.sample_size)
        """Side of the latents it was trained on."""
        # Kept: diffusers looks through all parameters to answer these, which takes milliseconds a call.
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """One forward call.

        latents: (N, C, h, w) float32, already scaled by the step table. timesteps: (N,) float32, may be fractional.
        context: (N, T, D). Returns the network's output (epsilon or v, as it was trained) as (N, C, h, w) float32.
        """
        output = self._unet(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=context.to(self.dtype),
            return_dict=False,
        )[0]
        return output.float()


def _square_side(sample_size: int | tuple[int, int] | list[int]) -> int:
    return int(sample_size if isinstance(sample_size, int) else max(sample_size))
