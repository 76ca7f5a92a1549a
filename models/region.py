"""Which part of a picture is shown to the network, and on a canvas of which size.

Owns the geometry of inpainting: integers in, integers out, so that the API, which chooses the size of the canvas, and
the worker, which cuts the picture, cannot disagree. Imports neither torch nor an image library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Size = tuple[int, int]
"""Width and height in pixels."""

_TOO_SMALL = 0.5
"""A region with less than this share of the model's own area is enlarged to that area: networks draw badly far below
the size they were trained on."""


@dataclass(frozen=True)
class Box:
    """Pixels `left` <= x < `right`, `top` <= y < `bottom`."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def padded(self, pixels: int, within: Size) -> Box:
        """Grown by `pixels` on each side, as far as the picture `within` goes."""
        return Box(
            max(0, self.left - pixels),
            max(0, self.top - pixels),
            min(within[0], self.right + pixels),
            min(within[1], self.bottom + pixels),
        )


def whole(size: Size) -> Box:
    return Box(0, 0, *size)


def box_after_outpainting(mask: Box | None, size: Size, outpaint: tuple[int, int, int, int]) -> Box | None:
    """Around everything that is drawn, in the enlarged picture; None when nothing is.

    mask: around the mask, in the picture of `size`, or None. outpaint: pixels added left, top, right, bottom.
    """
    left, top, right, bottom = outpaint
    width, height = size[0] + left + right, size[1] + top + bottom
    strips = [
        Box(0, 0, left, height) if left else None,
        Box(0, 0, width, top) if top else None,
        Box(width - right, 0, width, height) if right else None,
        Box(0, height - bottom, width, height) if bottom else None,
        mask and Box(mask.left + left, mask.top + top, mask.right + left, mask.bottom + top),
    ]
    drawn = [box for box in strips if box is not None]
    if not drawn:
        return None
    return Box(
        min(box.left for box in drawn),
        min(box.top for box in drawn),
        max(box.right for box in drawn),
        max(box.bottom for box in drawn),
    )


def canvas_for(region: Size, own: Size, max_pixels: int, min_size: int, max_size: int, multiple: int) -> Size:
    """Size of the canvas on which a region is drawn when nobody asks for one.

    The region's own, rounded up to `multiple`, where the model can draw that; else the region's aspect at the model's
    own area when it is far smaller, and at `max_pixels` when it is larger.
    """
    area = region[0] * region[1]
    sides = [_up(side, multiple) for side in region]
    fits = min(sides) >= min_size and max(sides) <= max_size and sides[0] * sides[1] <= max_pixels
    if fits and area >= _TOO_SMALL * own[0] * own[1]:
        return sides[0], sides[1]
    wanted = max_pixels if area > max_pixels else max(own[0] * own[1], area)
    low, high = _up(min_size, multiple), max_size // multiple * multiple
    scale = min(math.sqrt(wanted / area), high / max(region))
    sides = [min(max(round(side * scale / multiple) * multiple, low), high) for side in region]
    while sides[0] * sides[1] > max_pixels:  # rounding, or an extreme aspect, went over
        sides[sides.index(max(sides))] -= multiple
    return sides[0], sides[1]


def region_of(box: Box, picture: Size, canvas: Size) -> Box:
    """What of the picture the canvas shows: `box`, grown as far as the picture goes.

    To the canvas's own size where the box is at most a few pixels smaller, so that nothing is resampled; else to the
    canvas's aspect, so that nothing is distorted.
    """
    if is_copied(box, canvas):
        width, height = canvas
    elif box.width * canvas[1] < box.height * canvas[0]:
        width, height = round(box.height * canvas[0] / canvas[1]), box.height
    else:
        width, height = box.width, round(box.width * canvas[1] / canvas[0])
    left, right = _grown(box.left, box.right, width, picture[0])
    top, bottom = _grown(box.top, box.bottom, height, picture[1])
    return Box(left, top, right, bottom)


def is_copied(region: Box, canvas: Size) -> bool:
    """True when the canvas holds the region pixel for pixel, with less than 8 pixels to spare either way."""
    return 0 <= canvas[0] - region.width < 8 and 0 <= canvas[1] - region.height < 8


def _grown(first: int, last: int, length: int, limit: int) -> tuple[int, int]:
    """A span of `length`, or of the whole 0..limit, around first..last, moved inside."""
    length = max(last - first, min(length, limit))
    first = min(max(0, first - (length - (last - first)) // 2), limit - length)
    return first, first + length


def _up(pixels: int, multiple: int) -> int:
    return -(-pixels // multiple) * multiple
