"""A picture in overlapping tiles of one size, and the enlarged tiles put together again.

Owns where tiles lie and how their overlaps are mixed. Knows nothing of networks or latents.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.region import Box, Size

Pixels = NDArray[np.uint8]
Span = tuple[int, int]
_SCALE = 256
_BAND = 256
"""Rows that are converted at once."""


@dataclass(frozen=True)
class Tiling:
    """size: of the picture, both sides filled up to what the network needs. columns, rows: spans (first, last), of one
    length each, evenly spread, neighbours overlapping."""

    size: Size
    columns: tuple[Span, ...]
    rows: tuple[Span, ...]
    overlap: int

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The tiles, row by row."""
        return tuple(Box(left, top, right, bottom) for top, bottom in self.rows for left, right in self.columns)


def tile(size: Size, side: int, overlap: int, multiple: int) -> Tiling:
    """A picture of `size`, filled up to `multiple`, in as few tiles of at most `side` pixels a side as there can be.

    Neighbours share at least `overlap` pixels. What fits into one tile is one.
    """
    width, height = (-(-pixels // multiple) * multiple for pixels in size)
    return Tiling((width, height), _spans(width, side, overlap), _spans(height, side, overlap), overlap)


def _spans(length: int, side: int, overlap: int) -> tuple[Span, ...]:
    if length <= side:
        return ((0, length),)
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(number * (length - side) / (count - 1)) for number in range(count)]
    return tuple((start, start + side) for start in starts)


class Shares:
    """How much each tile counts at each of its pixels, `factor` times as many a side as the tiling has; at each pixel
    the shares of all tiles sum to one."""

    def __init__(self, tiling: Tiling, factor: int) -> None:
        width, height = (factor * pixels for pixels in tiling.size)
        self._across = shares_of(tiling.columns, width, factor, tiling.overlap)
        self._down = shares_of(tiling.rows, height, factor, tiling.overlap)

    def of(self, number: int) -> NDArray[np.float32]:
        """(h, w) of the tile `number`."""
        row, column = divmod(number, len(self._across))
        return np.asarray(self._down[row][:, None] * self._across[column][None])


@dataclass(frozen=True)
class MosaicState:
    """What has come in: numbers of the tiles that are missing, and the sum of the others, (H, W, 3) uint16."""

    missing: frozenset[int]
    sum: NDArray[np.uint16]


class Mosaic:
    """The enlarged picture while its tiles come in, in any order. Its state can be read and taken by any thread.

    Where tiles overlap each fades out towards its edge, and their shares sum to one, so that nothing jumps. Memory: six
    bytes a pixel of the enlarged picture, whatever the number of tiles, and three more when it is asked for.
    """

    def __init__(self, tiling: Tiling, factor: int) -> None:
        self._boxes = tiling.boxes
        self._factor = factor
        self._missing = set(range(len(self._boxes)))
        width, height = (factor * pixels for pixels in tiling.size)
        self._shares = Shares(tiling, factor)
        self._sum = np.zeros((height, width, 3), np.uint16)
        """Levels times _SCALE."""
        self._lock = threading.Lock()

    @property
    def is_complete(self) -> bool:
        return not self._missing

    def add(self, number: int, pixels: Pixels) -> None:
        """The enlarged tile `number`, (h, w, 3)."""
        box, factor = self._boxes[number], self._factor
        shares = self._shares.of(number)[..., None]
        there = self._sum[factor * box.top : factor * box.bottom, factor * box.left : factor * box.right]
        counted = np.rint(_SCALE * shares * pixels).astype(np.uint16)
        with self._lock:
            self._missing.remove(number)
            there += counted

    def state(self) -> MosaicState:
        """A copy of what has come in."""
        with self._lock:
            return MosaicState(frozenset(self._missing), self._sum.copy())

    def resume(self, state: MosaicState) -> None:
        """Go on from what had come in before; of the same tiling. Raises ValueError for any other state."""
        if state.sum.shape != self._sum.shape or not state.missing <= self._missing or not state.missing:
            raise ValueError(f"a state of {state.sum.shape} and {len(state.missing)} tiles is of another mosaic")
        with self._lock:
            self._missing, self._sum = set(state.missing), state.sum.copy()

    def picture(self, size: Size) -> Pixels:
        """The picture cut to `size`, (height, width, 3), once it is complete."""
        assert self.is_complete, "A picture with holes was asked for. This is a bug."
        cut = self._sum[: size[1], : size[0]]
        picture = np.empty(cut.shape, np.uint8)
        for top in range(0, len(cut), _BAND):
            band = slice(top, top + _BAND)
            # The largest sum is 255 * 256 and a rounding for each tile: with half a level more it fits into 16 bits.
            picture[band] = (cut[band] + _SCALE // 2) >> 8
        return picture


def shares_of(spans: tuple[Span, ...], length: int, factor: int, overlap: int) -> list[NDArray[np.float32]]:
    """For each span, the share of it at each of its pixels; at each pixel the shares of all spans sum to one.

    Inside the picture the outermost quarter of the overlap counts nothing: there a network sees that the tile ends.
    """
    margin = np.float32(factor * overlap / 4)
    hats: list[NDArray[np.float32]] = []
    for first, last in spans:
        count = factor * (last - first)
        places = np.arange(count, dtype=np.float32) + 0.5
        from_left = places if first else np.full(count, np.inf, np.float32)
        from_right = count - places if factor * last < length else np.full(count, np.inf, np.float32)
        depth = np.minimum(np.minimum(from_left, from_right), np.float32(factor * max(1, overlap)))
        hats.append(np.maximum(depth - margin, 0))
    total = np.zeros(length, np.float32)
    for (first, last), hat in zip(spans, hats, strict=True):
        total[factor * first : factor * last] += hat
    parts = zip(spans, hats, strict=True)
    return [np.asarray(hat / total[factor * first : factor * last]) for (first, last), hat in parts]
