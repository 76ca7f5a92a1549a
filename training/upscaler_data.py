"""Pairs of pictures for the x4 upscaler: 512 true pixels, and the 128 it is given to see.

Owns crops of the drawn pictures that match at both resolutions, and what spoils the small one. Knows nothing of how the
pictures were drawn, or of the networks that learn from them.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.pictures import Pixels, Random

FACTOR = 4
SIDE = 512


@dataclass(frozen=True)
class ViewSettings:
    """How a batch looks at the pictures: `crop` true pixels a side, a multiple of 4.

    A share of `whole_share` of the steps sees whole pictures instead, as many as have the pixels of one batch of crops
    (at least one): the norms of the networks average over the canvas, and whole pictures are what is served.
    Of the small pictures, `soft_share` come from the bundled model's autoencoder (where they were made), `jpeg_share`
    through JPEG.
    """

    crop: int = 128
    whole_share: float = 0.1
    soft_share: float = 0.5
    jpeg_share: float = 0.2


def read_index(folder: Path) -> list[dict[str, Any]]:
    """A record (`id`, `split`) of every picture that is drawn."""
    path = folder / "index.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@dataclass(frozen=True)
class Pairs:
    """The cache: `high` uint8 [n, 512, 512, 3] and `soft` uint8 [n, 128, 128, 3] or None, both mapped."""

    high: Pixels
    soft: Pixels | None
    records: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "Pairs":
        """ValueError when the pictures are not all there."""
        high, records = np.load(folder / "high.npy", mmap_mode="r"), read_index(folder)
        if len(records) != len(high):
            raise ValueError(f"{len(records)} of {len(high)} pictures in {folder}: run `pictures` again to finish.")
        soft = np.load(folder / "soft.npy", mmap_mode="r") if (folder / "soft.npy").exists() else None
        return cls(high, soft, records)

    def rows(self, split: str) -> NDArray[np.int64]:
        return np.array([row for row, record in enumerate(self.records) if record["split"] == split], dtype=np.int64)

    def cut(self, row: int, corner: tuple[int, int], side: int) -> tuple[Pixels, Pixels]:
        """The square of `side` pixels at `corner` (y, x, in small pixels), and the same at a quarter of the size."""
        y, x = corner
        high = self.high[row, FACTOR * y : FACTOR * y + side, FACTOR * x : FACTOR * x + side]
        return high, reduced(high)

    def cut_soft(self, row: int, corner: tuple[int, int], side: int) -> Pixels | None:
        """The small square as the autoencoder gave it back, or None where that was not written."""
        y, x = corner
        small = side // FACTOR
        return None if self.soft is None else self.soft[row, y : y + small, x : x + small]

    def middles(self, split: str, side: int) -> Iterator[tuple[Pixels, Pixels, Pixels | None]]:
        """The middle square of every picture of `split`: true, small, and small and soft."""
        corner = ((SIDE - side) // 2 // FACTOR,) * 2
        for row in self.rows(split):
            yield *self.cut(row, corner, side), self.cut_soft(row, corner, side)


@dataclass(frozen=True)
class Batches:
    """Draws what one step learns from."""

    pairs: Pairs
    views: ViewSettings
    size: int

    def draw(self, random: Random) -> tuple[Pixels, Pixels]:
        """True squares uint8 [n, s, s, 3] of the train split and their spoilt small versions [n, s / 4, s / 4, 3]."""
        crop = self.views.crop
        is_whole = random.random() < self.views.whole_share
        count, side = (max(1, self.size * crop**2 // SIDE**2), SIDE) if is_whole else (self.size, crop)
        drawn = [self._pair(row, side, random) for row in random.choice(self.pairs.rows("train"), count)]
        high, low = zip(*drawn, strict=True)
        return np.stack(high), np.stack(low)

    def _pair(self, row: int, side: int, random: Random) -> tuple[Pixels, Pixels]:
        corner, high, low = self._square(row, side, random)
        soft = self.pairs.cut_soft(row, corner, side)
        if soft is not None and random.random() < self.views.soft_share:
            low = soft
        turn = int(random.integers(8))
        high, low = turned(high, turn), turned(low, turn)
        if random.random() < self.views.jpeg_share:
            low = through_jpeg(low, int(random.integers(60, 96)))
        return high, low

    def _square(self, row: int, side: int, random: Random) -> tuple[tuple[int, int], Pixels, Pixels]:
        """A random square of the picture; up to three tries for one that is not of a single colour."""
        for _ in range(3):
            y, x = (int(c) for c in random.integers(0, (SIDE - side) // FACTOR + 1, 2))
            high, low = self.pairs.cut(row, (y, x), side)
            if (low != low[0, 0]).any():
                break
        return (y, x), high, low


def reduced(pixels: Pixels) -> Pixels:
    """Means of 4 x 4 pixels: uint8 [h, w, 3] to [h / 4, w / 4, 3]."""
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
    return ((blocks.sum((1, 3), dtype=np.uint16) + FACTOR**2 // 2) // FACTOR**2).astype(np.uint8)


def turned(pixels: Pixels, turn: int) -> Pixels:
    """One of the eight ways to lay a square picture down, `turn` 0..7; 0 leaves it as it is."""
    if turn & 1:
        pixels = pixels.swapaxes(0, 1)
    if turn & 2:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if turn & 4 else pixels


def through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    """uint8 [h, w, 3] written as JPEG and read again."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))
