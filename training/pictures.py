"""The corpus as arrays, and pictures put on backgrounds.

`rgba.npy` is uint8 [pictures, 128, 128, 4] with straight alpha, `index.jsonl` has one record a row in the same order.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
Random = np.random.Generator

COLOURS = {
    "red": (226, 48, 48),
    "orange": (245, 145, 40),
    "yellow": (250, 216, 60),
    "green": (66, 165, 76),
    "teal": (40, 170, 165),
    "blue": (50, 115, 225),
    "light blue": (150, 200, 245),
    "purple": (135, 70, 185),
    "pink": (243, 150, 190),
    "brown": (125, 82, 48),
    "black": (24, 24, 28),
    "gray": (150, 150, 150),
    "white": (255, 255, 255),
}


@dataclass(frozen=True)
class Corpus:
    """Pictures uint8 [n, 128, 128, 4] (mapped, not read) and their records in the same order."""

    rgba: Pixels
    records: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        with (folder / "index.jsonl").open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        rgba = np.load(folder / "rgba.npy", mmap_mode="r")[: len(records)]
        return cls(rgba, records)

    def rows(self, *splits: str) -> NDArray[np.int64]:
        """Rows of the given splits: train, val, test_concept, test_combo."""
        return np.array([i for i, record in enumerate(self.records) if record["split"] in splits], dtype=np.int64)


def to_tensor(pixels: Pixels) -> Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(pictures: Tensor) -> Pixels:
    """float [n, 3, h, w], clipped to -1..1, to uint8 [n, h, w, 3]."""
    pixels: Pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def psnr(found: Tensor, true: Tensor) -> float:
    """Mean over pictures [n, 3, h, w] in -1..1 of the peak signal-to-noise ratio in decibels."""
    errors = (found - true).square().mean((1, 2, 3)).clamp(min=1e-9)
    return round((10 * torch.log10(4 / errors)).mean().item(), 3)


def grid(pictures: Pixels, columns: int) -> Image.Image:
    """Pictures [n, h, w, 3] in rows of `columns`, missing cells white."""
    count, height, width, _ = pictures.shape
    lines = -(-count // columns)
    cells = np.full((lines * columns, height, width, 3), 255, np.uint8)
    cells[:count] = pictures
    rows = cells.reshape(lines, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(np.ascontiguousarray(rows.reshape(lines * height, columns * width, 3)))


def on_background(rgba: Pixels, background: Any) -> Pixels:
    """`rgba` [..., 4] over `background` [..., 3] or one colour (3,): uint8 [..., 3]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    over = rgba[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return over.round().astype(np.uint8)


def shrunk(rgba: Pixels, side: int) -> Pixels:
    """`rgba` [s, s, 4] resized to `side`, with colours weighted by alpha so that edges stay clean."""
    premultiplied = rgba.astype(np.float32)
    alpha = premultiplied[..., 3:] / 255
    premultiplied[..., :3] *= alpha
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(premultiplied[..., c])).resize((side, side), Image.Resampling.BOX)
        )
        for c in range(4)
    ]
    small = np.stack(planes, -1)
    small[..., :3] = np.where(small[..., 3:] > 0.5, small[..., :3] * 255 / np.maximum(small[..., 3:], 0.5), 255)
    return small.clip(0, 255).round().astype(np.uint8)


def random_background(random: Random, size: int) -> NDArray[np.float32]:
    """[size, size, 3] in 0..255: white (half of the time), a plain colour, or a gradient between two."""
    kind = random.random()
    if kind < 0.5:
        return np.full((size, size, 3), 255, np.float32)
    named = np.array(list(COLOURS.values()), np.float32)
    first = named[random.integers(len(named))] if random.random() < 0.5 else random.uniform(0, 255, 3)
    if kind < 0.85:
        return np.broadcast_to(first, (size, size, 3)).astype(np.float32)
    across = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    gradient = first * (1 - across) + random.uniform(0, 255, 3) * across
    return np.broadcast_to(gradient, (size, size, 3)).astype(np.float32)
