"""The canvas of an inpainting request: what the network is shown of an upload, and how its answer is put back.

Owns the promise that outside the mask the answer is the upload, byte for byte. Knows nothing of latents, networks,
queues or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.region import Box, box_after_outpainting, is_copied, region_of, whole
from models.request import InpaintingRequest

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_BAND = 256
"""Rows that are mixed at once."""
COVERS_ALL = "The mask covers the whole picture, so nothing of it is kept."


@dataclass(frozen=True)
class Canvas:
    """reference: (h, w, 3), the upload and the edge pixels repeated where it was enlarged. mask: (h, w), True where it
    is drawn. region: what the network sees, in pixels of the reference. size: width and height of what it draws."""

    reference: Pixels
    mask: Mask
    region: Box
    size: tuple[int, int]
    mask_blur: int
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels of the reference that are not the upload's: left, top, right, bottom."""

    @property
    def warnings(self) -> tuple[str, ...]:
        return (COVERS_ALL,) if self.mask.all() else ()

    @cached_property
    def picture(self) -> Image.Image:
        """RGB, `size`: the region, with its edge pixels repeated or resampled (Lanczos) to fill the canvas."""
        return self._shown(self._cut(self.reference))

    def beside(self, image: Image.Image) -> Image.Image:
        """RGB, `size`: of a picture that goes with the upload, what lies where the region does. One that has not the
        upload's size is stretched over the whole of it."""
        left, top, right, bottom = self.outpaint
        inner = self.reference.shape[1] - left - right, self.reference.shape[0] - top - bottom
        if image.size != inner:
            image = image.resize(inner, Image.Resampling.LANCZOS)
        whole_picture = np.pad(np.asarray(image.convert("RGB")), ((top, bottom), (left, right), (0, 0)), mode="edge")
        return self._shown(self._cut(whole_picture))

    def _shown(self, cut: Pixels) -> Image.Image:
        if is_copied(self.region, self.size):
            return Image.fromarray(np.pad(cut, (*self._missing, (0, 0)), mode="edge"))
        return Image.fromarray(np.ascontiguousarray(cut)).resize(self.size, Image.Resampling.LANCZOS)

    @cached_property
    def canvas_mask(self) -> Mask:
        """(height, width) of `size`. Resampled, a pixel belongs to it that covers any of it: thin lines stay."""
        cut = self._cut(self.mask)
        if is_copied(self.region, self.size):
            return np.pad(cut, self._missing, mode="edge")
        shares = Image.fromarray(cut.astype(np.float32)).resize(self.size, Image.Resampling.BOX)
        return np.asarray(shares) > 0

    def preview(self, drawn: Pixels) -> Pixels:
        """`drawn` (height, width, 3) of `size` where it is drawn, the rest as it was: the canvas alone, and cheap."""
        return np.where(self.canvas_mask[..., None], drawn, np.asarray(self.picture))

    def paste(self, drawn: Pixels) -> Pixels:
        """The answer (h, w, 3): the reference, with `drawn` (height, width, 3) of `size` where the mask is."""
        if is_copied(self.region, self.size):
            fresh = drawn[: self.region.height, : self.region.width]
        else:
            image = Image.fromarray(np.ascontiguousarray(drawn))
            fresh = np.asarray(image.resize((self.region.width, self.region.height), Image.Resampling.LANCZOS))
        answer = self.reference.copy()
        there, weights = self._cut(answer), self._weights
        for top in range(0, self.region.height, _BAND):  # in bands, so that little is held in floating point
            band = slice(top, top + _BAND)
            share, kept = weights[band][..., None], there[band]
            there[band] = np.rint(kept + share * (fresh[band].astype(np.float32) - kept)).astype(np.uint8)
        return answer

    @cached_property
    def _weights(self) -> NDArray[np.float32]:
        """Of the region; 0 outside the mask, where the sum above is therefore what was there, to the bit."""
        return self._cut(feather(self.mask, self.mask_blur))

    def _cut(self, array: NDArray[np.generic]) -> NDArray:
        box = self.region
        return array[box.top : box.bottom, box.left : box.right]

    @property
    def _missing(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns that the canvas has below and right of the region."""
        return (0, self.size[1] - self.region.height), (0, self.size[0] - self.region.width)


def make_canvas(request: InpaintingRequest, image: Image.Image, mask_image: Image.Image | None) -> Canvas:
    """The canvas of a request. image: RGB. mask_image: of the same size, drawn from 128 on; None draws only what is
    added. ValueError when the sizes differ or nothing is to be drawn."""
    left, top, right, bottom = request.outpaint
    inner = np.zeros((image.height, image.width), np.bool_)
    if mask_image is not None:
        if mask_image.size != image.size:
            raise ValueError(f"The mask has {mask_image.size} pixels and the picture {image.size}.")
        inner = np.asarray(mask_image.convert("L")) >= 128
    sides = (top, bottom), (left, right)
    mask = np.pad(inner, sides, constant_values=True)
    reference = np.pad(np.asarray(image.convert("RGB")), (*sides, (0, 0)), mode="edge")
    box = box_after_outpainting(box_of(inner), image.size, request.outpaint)
    if box is None:
        raise ValueError("The mask selects nothing.")
    picture, canvas = (mask.shape[1], mask.shape[0]), (request.width, request.height)
    if request.padding_mask_crop is None:
        region = whole(picture)
    else:
        region = region_of(box.padded(request.padding_mask_crop, picture), picture, canvas)
    return Canvas(reference, mask, region, canvas, request.mask_blur, request.outpaint)


def feather(mask: Mask, pixels: int) -> NDArray[np.float32]:
    """Share of the drawn picture, (h, w) in 0..1: 0 outside the mask, rising to 1 over so many `pixels` inside.

    Where the mask is thinner than that it rises faster, so that the middle of a thin line is drawn, too.
    """
    weights = mask.astype(np.float32)
    box = box_of(mask)
    if pixels <= 1 or box is None:
        return weights
    around = box.padded(1, (mask.shape[1], mask.shape[0]))
    part = slice(around.top, around.bottom), slice(around.left, around.right)
    eroded = mask[part].astype(np.uint8)
    depth = eroded.copy()
    for _ in range(pixels - 1):
        eroded = _of_neighbours(eroded, np.minimum)
        depth += eroded
    deepest = depth
    for _ in range(pixels - 1):
        deepest = _of_neighbours(deepest, np.maximum)
    weights[part] = depth / np.maximum(deepest.astype(np.float32), 1)
    return weights


def _of_neighbours(values: Pixels, choose: np.ufunc) -> Pixels:
    """The least or the greatest of each 3 x 3 neighbourhood, (h, w); nothing lies beyond the edge."""
    found = values.copy()
    choose(found[1:], values[:-1], out=found[1:])
    choose(found[:-1], values[1:], out=found[:-1])
    values = found.copy()
    choose(found[:, 1:], values[:, :-1], out=found[:, 1:])
    choose(found[:, :-1], values[:, 1:], out=found[:, :-1])
    return found


def box_of(mask: Mask) -> Box | None:
    """Around all that is True in (h, w), or None."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
