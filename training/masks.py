"""Random inpainting masks: boxes, ellipses, brush strokes, half pictures (arXiv:2109.07161, appendix: wide masks)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.pictures import Random


def random_mask(random: Random, size: int) -> NDArray[np.bool_]:
    """bool [size, size], True where the picture is to be drawn; between a few and all of its pixels, never none."""
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    kind = random.integers(5)
    if kind == 0:
        draw.rectangle(_box(random, size), fill=1)
    elif kind == 1:
        draw.ellipse(_box(random, size), fill=1)
    elif kind == 2:
        _strokes(draw, random, size)
    elif kind == 3:
        draw.rectangle(_half(random, size), fill=1)
    else:
        draw.rectangle((0, 0, size, size), fill=1)
    return np.asarray(canvas)


def _box(random: Random, size: int) -> tuple[int, int, int, int]:
    width, height = random.integers(size // 4, size * 4 // 5, 2)
    x, y = random.integers(0, size - width), random.integers(0, size - height)
    return int(x), int(y), int(x + width), int(y + height)


def _half(random: Random, size: int) -> tuple[int, int, int, int]:
    cut = int(random.integers(size // 4, size * 3 // 4))
    sides = [(0, 0, cut, size), (cut, 0, size, size), (0, 0, size, cut), (0, cut, size, size)]
    return sides[random.integers(4)]


def _strokes(draw: ImageDraw.ImageDraw, random: Random, size: int) -> None:
    for _ in range(random.integers(1, 4)):
        points = [tuple(int(c) for c in random.integers(0, size, 2)) for _ in range(random.integers(2, 6))]
        draw.line(points, fill=1, width=int(random.integers(size // 12, size // 4)), joint="curve")
