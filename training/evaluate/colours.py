"""Which of the thirteen named colours a drawn object has, and which one a caption names.

A picture's object is what its border does not reach through pixels of the border's colour, so white parts inside an
outline belong to it. Each of its pixels gets the name of its hue, saturation and value; no network is involved.
"""

import re

import numpy as np
from numpy.typing import NDArray

from training.pictures import COLOURS, Pixels

NAMES = tuple(COLOURS)
_TOLERANCE = 24
"""Levels of 255 in any channel by which the background may differ from the border's median."""
_DOMINANT_SHARE = 0.2
_LEAST_OBJECT = 0.01
_OPENING = re.compile(r"(?:(?:an?|the|some|one|two)\s+)?(?:(?:small|large|big|medium|plain)\s+)?")


def named_colour(caption: str) -> str | None:
    """The colour that a caption gives to its subject ("a red apple", "an orange silhouette of a fox"), or None.

    Only a colour in front of the subject counts: the "black" of "a person with black hair" is not the picture's colour.
    """
    rest = _OPENING.sub("", caption.lower(), count=1)
    for name in sorted(NAMES, key=len, reverse=True):
        if re.match(rf"{name}\b(?![\s-]+(?:and|with|to)\b)\s+\w", rest):
            return name
    return None


def dominant_colours(picture: Pixels) -> dict[str, float]:
    """Names of the colours that cover at least a fifth of the object, at most two, with their shares, largest first.

    `picture` is uint8 [h, w, 3]. Empty when there is no object.
    """
    inside = object_mask(picture)
    if inside.mean() < _LEAST_OBJECT:
        return {}
    counts = np.bincount(name_pixels(picture[inside]), minlength=len(NAMES)) / inside.sum()
    largest = np.argsort(-counts, kind="stable")[:2]
    return {NAMES[i]: float(counts[i]) for i in largest if counts[i] >= _DOMINANT_SHARE}


def object_mask(picture: Pixels) -> NDArray[np.bool_]:
    """Pixels [h, w] that cannot be reached from the border over pixels of about the border's median colour."""
    ring = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3)])
    ring = np.concatenate([ring, picture[:, :2].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])
    border = np.median(ring, axis=0)
    is_like_border = np.abs(picture - border).max(-1) <= _TOLERANCE
    return ~_reached_from_border(is_like_border)


def _reached_from_border(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `free` [h, w] that are connected to the border through free pixels, side by side."""
    reached = np.zeros_like(free)
    reached[[0, -1]], reached[:, [0, -1]] = free[[0, -1]], free[:, [0, -1]]
    count = -1
    while count != (count := int(reached.sum())):
        reached[1:] |= reached[:-1] & free[1:]
        reached[:-1] |= reached[1:] & free[:-1]
        reached[:, 1:] |= reached[:, :-1] & free[:, 1:]
        reached[:, :-1] |= reached[:, 1:] & free[:, :-1]
    return reached


def name_pixels(pixels: Pixels) -> NDArray[np.int64]:
    """Index into NAMES of each pixel; `pixels` uint8 [n, 3]."""
    hue, saturation, value = _hue_saturation_value(pixels)
    warm = (hue < 45) | (hue >= 345)
    pale = (saturation < 0.55) & (value > 0.75)
    rules = [
        ("black", (value < 0.2) | ((value < 0.35) & (saturation < 0.3))),
        ("white", (saturation < 0.1) & (value > 0.88)),
        ("gray", saturation < 0.12),
        ("brown", (hue >= 8) & (hue < 45) & (value < 0.68)),
        ("brown", warm & (value < 0.4)),
        ("pink", ((hue < 14) | (hue >= 345)) & pale),
        ("red", (hue < 14) | (hue >= 345)),
        ("orange", hue < 42),
        ("yellow", (hue < 66) & (value > 0.5)),
        ("green", hue < 160),
        ("teal", (hue < 190) & ~(pale & (saturation < 0.4))),
        ("light blue", (hue < 250) & pale),
        ("blue", hue < 255),
        ("purple", (hue < 300) | (value < 0.5)),
        ("pink", hue < 345),
    ]
    return np.select([rule for _, rule in rules], [NAMES.index(name) for name, _ in rules])


def _hue_saturation_value(pixels: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hue in degrees, saturation and value in 0..1, each [n], of uint8 [n, 3]."""
    red, green, blue = (pixels / 255).T
    value, least = np.max([red, green, blue], 0), np.min([red, green, blue], 0)
    spread = np.maximum(value - least, 1e-9)
    hue = np.select(
        [value == red, value == green],
        [((green - blue) / spread) % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    return 60 * hue, (value - least) / np.maximum(value, 1e-9), value
