"""Cut-outs as the judges see them while they learn: moved, on any background, a little soft, a little noisy.

A generated picture is softer than a drawn one and seldom exactly centred; judges that have seen such pictures judge
what is drawn instead of how sharp it is. Colours stay as they are, because captions name them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.pictures import COLOURS, Pixels, Random

_WHITE, _PLAIN = 0.55, 0.85
"""Shares of white backgrounds, and of white and plain ones together; the rest are gradients between two colours."""


def small_cutouts(rgba: Pixels, side: int) -> Pixels:
    """`rgba` [s, s, 4] as uint8 [side, side, 4] with colours multiplied by alpha; s is a multiple of `side`."""
    factor = rgba.shape[0] // side
    assert factor * side == rgba.shape[0], f"{rgba.shape[0]} pixels are no multiple of {side}. This is a bug."
    values = rgba.astype(np.float32)
    values[..., :3] *= values[..., 3:] / 255
    means = values.reshape(side, factor, side, factor, 4).mean((1, 3))
    return means.round().astype(np.uint8)


def augmented(cutouts: Pixels, may_flip: NDArray[np.bool_], random: Random) -> Tensor:
    """Training pictures float32 [n, 3, s, s] in -1..1 of `cutouts` uint8 [n, s, s, 4] (see `small_cutouts`)."""
    count, side = cutouts.shape[:2]
    values = torch.from_numpy(np.ascontiguousarray(cutouts)).permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(_placements(may_flip, random), [count, 4, side, side], align_corners=False)
    moved = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    pictures = moved[:, :3] + _backgrounds(count, side, random) * (1 - moved[:, 3:])
    return _soft_and_noisy(pictures, random) * 2 - 1


def _placements(may_flip: NDArray[np.bool_], random: Random) -> Tensor:
    """Affine maps [n, 2, 3] from output to input: most pictures keep their size, some shrink to half, all may shift."""
    count = len(may_flip)
    scale = np.exp(random.uniform(-0.12, 0.2, count))
    is_small = random.random(count) < 0.2
    scale[is_small] = random.uniform(1.2, 2.0, is_small.sum())
    room = 0.08 + np.maximum(0.0, scale - 1)
    flip = np.where(may_flip & (random.random(count) < 0.5), -1.0, 1.0)
    maps = np.zeros((count, 2, 3), np.float32)
    maps[:, 0, 0], maps[:, 1, 1] = flip * scale * np.exp(random.uniform(-0.1, 0.1, count)), scale
    maps[:, :, 2] = random.uniform(-1, 1, (count, 2)) * room[:, None]
    return torch.from_numpy(maps)


def _backgrounds(count: int, side: int, random: Random) -> Tensor:
    """[n, 3, side, side] in 0..1: white, plain or a gradient from top to bottom."""
    named = np.array(list(COLOURS.values()), np.float32) / 255
    first = np.where(
        random.random((count, 1)) < 0.5, named[random.integers(len(named), size=count)], random.random((count, 3))
    )
    second, kind = random.random((count, 3)), random.random((count, 1))
    first = np.where(kind < _WHITE, 1.0, first)
    second = np.where(kind < _PLAIN, first, second)
    across = np.linspace(0, 1, side)[:, None]
    rows = first[:, :, None, None] * (1 - across) + second[:, :, None, None] * across  # [n, 3, side, 1]
    return torch.from_numpy(rows.astype(np.float32))


def _soft_and_noisy(pictures: Tensor, random: Random) -> Tensor:
    """Pictures in 0..1, some of them blurred by one or two passes of a 3 x 3 mean, some with noise up to 0.06."""
    for share in (0.5, 0.25):
        some = torch.from_numpy(np.flatnonzero(random.random(len(pictures)) < share))
        sharp = pictures[some]
        # Edge pixels take the mean of the neighbours that are there.
        soft = F.avg_pool2d(sharp, 3, stride=1, padding=1, count_include_pad=False)
        pictures[some] = torch.lerp(sharp, soft, _per_picture(random.random(len(some))))
    some = torch.from_numpy(np.flatnonzero(random.random(len(pictures)) < 0.5))
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    noise = torch.randn(pictures[some].shape, generator=generator)
    pictures[some] += _per_picture(random.random(len(some)) * 0.06) * noise
    return pictures.clamp(0, 1)


def _per_picture(values: NDArray[np.float64]) -> Tensor:
    """float32 [n, 1, 1, 1]."""
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]
