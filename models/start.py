"""Where a picture begins: noise, a noised upload, an upload with a hole, or a small one to enlarge.

Owns what is encoded of the uploads of a request, and the order in which a picture's generator is asked, which is that
of diffusers' pipelines. Knows nothing of steps, batches or other pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.autoencoder import Autoencoder, Posterior
from models.request import ImageToImageRequest, InpaintingRequest, PictureRequest
from models.slot import Known
from models.step_table import StepTable
from models.tiles import Tiling

_STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of tiles: 2**64 over the golden ratio, so that no small seed meets another's tile."""


@dataclass(frozen=True)
class Encoded:
    """The uploads of one request as the pictures of that request begin with them.

    image: the upload; None where nothing of it is looked at. masked: the upload with a hole where it is drawn, for a
    network with channels for it. is_drawn: bool (1, h, w).
    """

    image: Posterior | None = None
    masked: Posterior | None = None
    is_drawn: Tensor | None = None

    @property
    def is_exact(self) -> bool:
        return all(posterior.is_exact for posterior in (self.image, self.masked) if posterior)


@dataclass(frozen=True)
class Start:
    """latents: (C, h, w). extra: (1 + C, h, w), mask and masked latents, or (3, h, w), a small picture. All float32 on
    the CPU."""

    latents: Tensor
    extra: Tensor | None = None
    known: Known | None = None
    is_exact: bool = True
    """Its uploads were encoded in the usual way."""


def encode_uploads(
    autoencoder: Autoencoder,
    request: PictureRequest,
    image: Image.Image | None,
    mask: NDArray[np.bool_] | None,
    has_channels: bool,
) -> Encoded:
    """One or two encoder calls, or none without uploads.

    image: RGB. mask: (height, width) of the request, True where it is drawn. has_channels: the network takes mask and
    masked latents beside the noisy ones.
    """
    size = request.width, request.height
    if isinstance(request, ImageToImageRequest):
        assert image is not None, "image-to-image came without its upload. This is a bug."
        return Encoded(image=autoencoder.encode(image, *size))
    if not isinstance(request, InpaintingRequest):
        return Encoded()
    assert image is not None, "inpainting came without its upload. This is a bug."
    assert mask is not None, "inpainting came without its mask. This is a bug."
    is_drawn = _of_latents(mask, autoencoder.factor)
    if not has_channels:
        return Encoded(image=autoencoder.encode(image, *size), is_drawn=is_drawn)
    begins_with_it = request.strength < 1
    return Encoded(
        image=autoencoder.encode(image, *size) if begins_with_it else None,
        masked=autoencoder.encode(image, *size, hole=mask),
        is_drawn=is_drawn,
    )


def start(
    table: StepTable, encoded: Encoded, strength: float, shape: tuple[int, ...], generator: torch.Generator
) -> Start:
    """The start of one picture with latents of `shape`; takes its first draws from `generator`."""
    clean = encoded.image.sample(generator) if encoded.image else None
    noise = torch.randn(shape, generator=generator)
    if clean is None or (encoded.is_drawn is not None and strength == 1):
        latents = noise * table.initial_noise_scale
    else:  # SDEdit, arXiv 2108.01073
        latents = table.signal_scale[0].item() * clean + table.noise_scale[0].item() * noise
    begun = Start(latents, is_exact=encoded.is_exact)
    if encoded.is_drawn is None:
        return begun
    if encoded.masked is not None:
        return replace(begun, extra=torch.cat([encoded.is_drawn.float(), encoded.masked.sample(generator)]))
    # diffusers encodes the masked picture for every network, and its draw moves those of the steps.
    torch.randn(shape, generator=generator)
    assert clean is not None, "Blending needs the upload. This is a bug."
    return replace(begun, known=Known(clean, noise, encoded.is_drawn))


def small_picture(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(3, height, width) float32 in -1..1 of an RGB picture, its last row and column repeated up to `size`."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0).permute(2, 0, 1)
    missing = (0, size[0] - image.width, 0, size[1] - image.height)
    return torch.nn.functional.pad(pixels[None] * 2.0 - 1.0, missing, mode="replicate")[0]


def start_tiles(
    table: StepTable, shown: Tensor, tiling: Tiling, channels: int, generator: torch.Generator
) -> list[tuple[Start, torch.Generator]]:
    """The start of each tile of a picture to enlarge, and the generator of its steps.

    shown: (3, h, w), the small picture as the network sees it, the size of the tiling. The noise of the whole picture
    is drawn once and cut, so that what two tiles share begins alike; the first tile goes on with `generator`.
    """
    seed = generator.initial_seed()
    latents = torch.randn((channels, *shown.shape[1:]), generator=generator) * table.initial_noise_scale
    started = []
    for number, box in enumerate(tiling.boxes):
        part = (slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
        own = generator if number == 0 else torch.Generator("cpu").manual_seed((seed + number * _STRIDE) % 2**63)
        started.append((Start(latents[part].contiguous(), extra=shown[part].contiguous()), own))
    return started


def _of_latents(mask: NDArray[np.bool_], factor: int) -> Tensor:
    """bool (1, h, w): the pixel at the corner of each patch decides, as in diffusers (nearest neighbour). A mask of
    lines so thin that no corner is met takes every patch it touches instead."""
    corners: NDArray[np.bool_] = mask[::factor, ::factor]
    if not corners.any():
        height, width = mask.shape
        corners = np.asarray(mask.reshape(height // factor, factor, width // factor, factor).any((1, 3)))
    return torch.from_numpy(np.ascontiguousarray(corners))[None]
