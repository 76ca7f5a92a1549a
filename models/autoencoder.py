"""Pixels to latents and back (arXiv 2112.10752, section 3.1), wrapped once.

Owns scaling, the range of pixels, and the second try in float32 when half precision overflows. Knows nothing of
requests or slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.device import is_out_of_memory, release_cached_memory
from models.region import Box
from models.tiles import Shares, tile

WHOLE_UP_TO = 128 * 128
"""Positions of latents: 1024 x 1024 pixels at f = 8, the size that SDXL is made for."""
SMALLEST_TILE = 24
TILE_OVERLAP = 12
"""Positions. A decoder's norms see one tile at a time, so tiles differ in tone; over so many that fades unseen."""


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents, q(z|x) of the KL autoencoder; mean and std are (C, h, w) float32 on the CPU."""

    mean: Tensor
    std: Tensor
    scaling_factor: float
    is_exact: bool = True
    """False where it came in smaller tiles than usual, for want of memory."""

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

        hole: (height, width), True where the autoencoder shall see nothing, that is the middle of its range. What has
        more than WHOLE_UP_TO positions is encoded in tiles, in smaller and smaller ones when memory does not suffice.
        """
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)
        centred = pixels * 2.0 - 1.0  # (H, W, 3)
        if hole is not None:
            centred = centred * torch.from_numpy(~hole)[..., None]
        batch = centred.permute(2, 0, 1)[None].to(self._vae.device)  # (1, 3, H, W)
        (mean, std), is_exact = self._encode_as_fits(batch)
        return Posterior(mean, std, self._scaling_factor, is_exact)

    def _encode_as_fits(self, pixels: Tensor) -> tuple[tuple[Tensor, Tensor], bool]:
        """Mean and deviation, (C, h, w) each, and whether memory sufficed at once."""
        limit: int | None = None
        shape = 1, pixels.shape[-2] // self.factor, pixels.shape[-1] // self.factor
        while True:
            try:
                return self._encode(pixels, limit or WHOLE_UP_TO), limit is None
            except RuntimeError as error:
                limit = self.smaller_tiles(shape, limit)
                if not is_out_of_memory(error) or limit is None:
                    raise
            # Not inside the except clause: there the failed call's own memory would still be held.
            release_cached_memory(self._vae.device)

    def _encode(self, pixels: Tensor, whole_up_to: int) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) to (C, h, w) twice: as a whole, or in tiles that fade into each other; no call is larger."""
        height, width = (side // self.factor for side in pixels.shape[2:])
        if height * width <= whole_up_to:
            return self._encode_whole(pixels)
        tiling = tile((width, height), math.isqrt(whole_up_to), TILE_OVERLAP, 1)
        shares = Shares(tiling, 1)
        mean, std = torch.zeros(2, self.latent_channels, height, width)
        for number, box in enumerate(tiling.boxes):
            share = torch.from_numpy(shares.of(number))
            rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
            for total, own in zip((mean, std), self._encode_whole(self._pixels_of(box, pixels)), strict=True):
                total[:, rows, columns] += share * own
        return mean, std

    def _encode_whole(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self._in_safe_precision(lambda dtype: self._vae.encode(pixels.to(dtype)).latent_dist)
        return distribution.mean[0].float().cpu(), distribution.std[0].float().cpu()

    def _pixels_of(self, box: Box, pixels: Tensor) -> Tensor:
        """The part (N, 3, H, W) of `pixels` that lies under positions of latents."""
        factor = self.factor
        return pixels[:, :, factor * box.top : factor * box.bottom, factor * box.left : factor * box.right]

    @torch.inference_mode()
    def decode(self, latents: Tensor, whole_up_to: int | None = None) -> list[np.ndarray | None]:
        """Pictures of `latents` (N, C, h, w): uint8 (H, W, 3) each, or None where the result is not finite.

        whole_up_to: positions of latents up to which a picture is decoded as a whole, WHOLE_UP_TO without it.
        """
        pixels = self._decode(latents, whole_up_to or WHOLE_UP_TO)
        finite = torch.isfinite(pixels).flatten(1).all(1).tolist()
        pixels = (pixels / 2 + 0.5).nan_to_num().clamp(0, 1)
        arrays = (pixels.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)  # (N, H, W, 3)
        return [array if good else None for array, good in zip(arrays, finite, strict=True)]

    def smaller_tiles(self, shape: tuple[int, ...], whole_up_to: int | None) -> int | None:
        """Positions to take at once after memory did not suffice for latents of `shape` (C, h, w): half as many; None
        where tiles would get too small to be worth it."""
        limit = min(shape[-1] * shape[-2], whole_up_to or WHOLE_UP_TO) // 2
        return limit if limit >= SMALLEST_TILE**2 else None

    def _decode(self, latents: Tensor, whole_up_to: int) -> Tensor:
        """(N, C, h, w) to (N, 3, H, W) float32: as a whole, or in tiles that fade into each other, put together in the
        main memory; then no call is larger than one tile."""
        height, width = latents.shape[2:]
        if height * width <= whole_up_to:
            return self._decode_whole(latents)
        tiling = tile((width, height), math.isqrt(whole_up_to), TILE_OVERLAP, 1)
        shares = Shares(tiling, self.factor)
        pixels = torch.zeros(len(latents), 3, self.factor * height, self.factor * width)
        for number, box in enumerate(tiling.boxes):
            share, there = torch.from_numpy(shares.of(number)), self._pixels_of(box, pixels)
            for index, picture in enumerate(latents[:, :, box.top : box.bottom, box.left : box.right]):
                there[index] += share * self._decode_whole(picture[None])[0].cpu()
        return pixels

    def _decode_whole(self, latents: Tensor) -> Tensor:
        unscaled = latents.to(self._vae.device) / self._scaling_factor

        def run(dtype: torch.dtype) -> Tensor:
            return self._run_decoder(unscaled, dtype).float()

        pixels = run(self._vae.dtype)
        if self._vae.dtype != torch.float32 and not torch.isfinite(pixels).all():
            return self._in_float32(run)
        return pixels

    def _run_decoder(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, C, h, w) float32 to (N, 3, H, W) of `dtype`, the decoder's precision now."""
        pixels: Tensor = self._vae.decode(latents.to(dtype), return_dict=False)[0]
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
