"""Pixels to latents and back (arXiv 2112.10752, section 3.1), wrapped once.

Owns scaling, the range of pixels, and the second try in float32 when half precision overflows. Knows nothing of
requests or slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents, q(z|x) of the KL autoencoder; mean and std are (C, h, w) float32 on the CPU."""

    mean: Tensor
    std: Tensor
    scaling_factor: float

    def sample(self, generator: torch.Generator) -> Tensor:
        """Scaled latents (C, h, w); takes one draw of that shape from `generator`."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return (self.mean + self.std * noise) * self.scaling_factor


class Autoencoder:
    """An AutoencoderKL."""

    def __init__(self, vae: Any, scaling_factor: float | None = None) -> None:
        """`scaling_factor`: instead of the one in its configuration."""
        self._vae = vae
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels per latent, f of the paper."""
        self.latent_channels: int = vae.config.latent_channels
        self._scaling_factor: float = scaling_factor or vae.config.scaling_factor

    @torch.inference_mode()
    def encode(self, image: Image.Image, width: int, height: int, hole: NDArray[np.bool_] | None = None) -> Posterior:
        """Posterior of `image` (RGB), resized to `width` x `height` pixels (Lanczos) when it has another size.

        hole: (height, width), True where the autoencoder shall see nothing, that is the middle of its range.
        """
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)
        centred = pixels * 2.0 - 1.0  # (H, W, 3)
        if hole is not None:
            centred = centred * torch.from_numpy(~hole)[..., None]
        batch = centred.permute(2, 0, 1)[None].to(self._vae.device)  # (1, 3, H, W)
        distribution = self._in_safe_precision(lambda dtype: self._vae.encode(batch.to(dtype)).latent_dist)
        mean, std = distribution.mean[0].float().cpu(), distribution.std[0].float().cpu()
        return Posterior(mean, std, self._scaling_factor)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[np.ndarray | None]:
        """Pictures of `latents` (N, C, h, w): uint8 (H, W, 3) each, or None where the result is not finite."""
        pixels = self._decode(latents)
        finite = torch.isfinite(pixels).flatten(1).all(1).tolist()
        pixels = (pixels / 2 + 0.5).nan_to_num().clamp(0, 1)
        arrays = (pixels.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)  # (N, H, W, 3)
        return [array if good else None for array, good in zip(arrays, finite, strict=True)]

    def _decode(self, latents: Tensor) -> Tensor:
        unscaled = latents.to(self._vae.device) / self._scaling_factor

        def run(dtype: torch.dtype) -> Tensor:
            return self._vae.decode(unscaled.to(dtype), return_dict=False)[0].float()

        pixels = run(self._vae.dtype)
        if self._vae.dtype != torch.float32 and not torch.isfinite(pixels).all():
            return self._in_float32(run)
        return pixels

    def _in_safe_precision(self, run: Any) -> Any:
        """`force_upcast` marks autoencoders whose encoder is known to overflow in half precision."""
        if self._vae.dtype == torch.float32 or not self._vae.config.force_upcast:
            return run(self._vae.dtype)
        return self._in_float32(run)

    def _in_float32(self, run: Any) -> Any:
        dtype = self._vae.dtype
        try:
            self._vae.to(torch.float32)
            return run(torch.float32)
        finally:
            self._vae.to(dtype)
