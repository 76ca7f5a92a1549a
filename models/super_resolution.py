"""The two networks of LDM super-resolution (arXiv 2112.10752, section 4.4), where they differ from all others.

Owns which of them are served. Knows nothing of files, tiles or slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.denoiser import Denoiser, Rows
from models.errors import CheckpointRefused

_CHANNELS = 3
"""Of the latents, and of the small picture beside them."""


def refuse_other_networks(unet: Mapping[str, Any], vqvae: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointRefused for what diffusers' pipeline could not run; takes the configurations of both."""
    channels, out_channels = unet.get("in_channels", 3), unet.get("out_channels", 3)
    if (channels, out_channels) != (2 * _CHANNELS, _CHANNELS):
        raise CheckpointRefused(
            f"The UNet of {source!r} has {channels} input and {out_channels} output channels; networks for"
            " super-resolution with 6 and 3 are served."
        )
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        raise CheckpointRefused(f"The UNet of {source!r} is told a class, and no request can name one.")
    if unet.get("time_embedding_type", "positional") != "positional" or not unet.get("sample_size"):
        raise CheckpointRefused(
            f"The UNet of {source!r} must read positional timesteps and name the sample_size that it was trained on."
        )
    latent_channels = vqvae.get("latent_channels", 3)
    if (latent_channels, vqvae.get("vq_embed_dim") or latent_channels) != (_CHANNELS, _CHANNELS):
        raise CheckpointRefused(f"The vqvae of {source!r} does not have the 3 channels of latents that its UNet has.")
    if vqvae.get("lookup_from_codebook"):
        raise CheckpointRefused(f"The vqvae of {source!r} decodes indices of codes; the UNet draws latents.")


class SuperResolutionDenoiser(Denoiser):
    """A UNet2DModel: latents and the small picture in, 6 channels, 3 out. It is told nothing but the timestep."""

    def _told(self, rows: Rows) -> dict[str, Any]:
        return {}

    def _extras(self, rows: Rows) -> Tensor:
        """(N, 3, h, w), scaled as the latents are: diffusers' pipeline scales what it has concatenated."""
        extras = super()._extras(rows)
        return extras if rows.input_scales is None else extras * rows.input_scales[:, None, None, None]


class QuantizingAutoencoder(Autoencoder):
    """A VQModel: each position of the latents becomes the nearest code before it is decoded. Encodes nothing."""

    def __init__(self, vqvae: Any) -> None:
        super().__init__(vqvae, 1.0)  # diffusers' pipeline uses no other, whatever the configuration says

    def _run_decoder(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        # Picture by picture: a table of all distances is large, and this way it does not depend on the neighbours.
        codes = torch.stack([self._nearest_codes(own) for own in latents]).to(dtype)
        pixels: Tensor = self._vae.decode(codes, force_not_quantize=True, return_dict=False)[0]
        return pixels

    def _nearest_codes(self, latents: Tensor) -> Tensor:
        """(C, h, w) to the same, in float32: in half precision the nearest code is often another one."""
        codebook = self._vae.quantize.embedding.weight.float()  # (K, C)
        positions = latents.permute(1, 2, 0).flatten(0, 1)  # (h * w, C)
        # Not by a matrix product, which cancels what nearly equal distances differ by.
        distances = torch.cdist(positions, codebook, compute_mode="donot_use_mm_for_euclid_dist")  # (h * w, K)
        return codebook[distances.argmin(1)].view(*latents.shape[1:], -1).permute(2, 0, 1)  # (C, h, w)
