"""Gives drawings another colour, so that colour words can be taught apart from things: a purple trumpet."""

import numpy as np
from numpy.typing import NDArray

from training.pictures import Pixels

Plane = NDArray[np.float32]

HUES = {
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.14,
    "green": 0.34,
    "teal": 0.48,
    "blue": 0.6,
    "purple": 0.77,
    "pink": 0.91,
}
"""The hue of a colour word, 0 to 1 around the circle."""

_BINS = 24
_NEAR = 0.12  # of the circle: what moves along with the main hue
_LEAST_COLOURED = 0.45
_LEAST_OF_ONE_HUE = 0.75
_LEAST_VALUE = 0.55


def recoloured(rgba: Pixels, colour: str) -> Pixels | None:
    """`rgba` [h, w, 4] with its main hue turned to the colour word's; None when it has no one main hue.

    It has one when most of the drawing is coloured, most of that is close to one hue, and it is bright: a dark orange
    would be called brown.
    """
    hue, saturation, value = _hue_saturation_value(rgba[..., :3].astype(np.float32) / 255)
    drawn = rgba[..., 3] > 128
    coloured = drawn & (saturation > 0.3) & (value > 0.2)
    if coloured.sum() < max(1, _LEAST_COLOURED * drawn.sum()):
        return None
    counts = np.bincount((hue[coloured] * _BINS).astype(int) % _BINS, minlength=_BINS)
    fullest = int(counts.argmax())
    around = counts[[fullest - 1, fullest, (fullest + 1) % _BINS]].sum()
    main = (fullest + 0.5) / _BINS
    away = (hue - main + 0.5) % 1 - 0.5
    moves = (np.abs(away) < _NEAR) & (saturation > 0.15)
    if around < _LEAST_OF_ONE_HUE * coloured.sum() or np.median(value[moves & drawn]) < _LEAST_VALUE:
        return None
    turned = np.where(moves, (HUES[colour] + away / 2) % 1, hue)
    rgb = _rgb(turned, saturation, value) * 255
    return np.concatenate([rgb.round().clip(0, 255).astype(np.uint8), rgba[..., 3:]], axis=-1)


def _hue_saturation_value(rgb: NDArray[np.floating]) -> tuple[Plane, Plane, Plane]:
    """Of [h, w, 3] in 0..1, each [h, w] in 0..1; the hue of grey is 0."""
    value, least = rgb.max(-1), rgb.min(-1)
    span = value - least
    divisor = np.where(span > 1e-6, span, 1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    sixth = np.select(
        [span <= 1e-6, value == red, value == green],
        [np.zeros_like(span), (green - blue) / divisor % 6, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    saturation = np.where(value > 0, span / np.maximum(value, 1e-6), 0)
    return (sixth / 6).astype(np.float32), saturation.astype(np.float32), value.astype(np.float32)


def _rgb(hue: Plane, saturation: Plane, value: Plane) -> Plane:
    """[h, w, 3] in 0..1. Each channel is `value` less a piece of a trapezium around the circle (Smith 1978)."""
    channels = []
    for offset in (5, 3, 1):
        place = (offset + hue * 6) % 6
        channels.append(value - value * saturation * np.minimum(place, 4 - place).clip(0, 1))
    return np.stack(channels, axis=-1).astype(np.float32)
