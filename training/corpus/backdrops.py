"""What lies behind composed scenes: a plain colour, a gradient, or a ground under a sky or a wall."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pictures import COLOURS, Pixels, Random

BACKDROP_CLASSES = ("plain", "day sky", "grass", "sand", "snow", "water", "night sky", "wall", "floor")
"""The first classes of the semantic map, by their number."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Backdrop:
    """Image float32 [s, s, 3] in 0..255, classes uint8 [s, s], the words for it, and the row where the ground begins
    (None without one).
    """

    image: NDArray[np.float32]
    classes: Pixels
    words: str
    horizon: int | None


@dataclass(frozen=True)
class _Land:
    """A two-part background: class and colour above and below the horizon."""

    words: str
    above: tuple[str, Colour]
    below: tuple[str, Colour]


_LANDS = (
    _Land("on the grass under a blue sky", ("day sky", (150, 205, 250)), ("grass", (96, 180, 80))),
    _Land("on the sand under a blue sky", ("day sky", (160, 210, 250)), ("sand", (238, 210, 150))),
    _Land("on the snow", ("day sky", (200, 220, 240)), ("snow", (246, 249, 255))),
    _Land("on the water under a sunset", ("day sky", (250, 170, 110)), ("water", (40, 110, 190))),
    _Land("in front of the night sky", ("night sky", (25, 25, 70)), ("grass", (30, 70, 50))),
    _Land("on a wooden floor", ("wall", (235, 220, 200)), ("floor", (170, 120, 75))),
    _Land("in a blue room", ("wall", (140, 180, 225)), ("floor", (110, 120, 140))),
)


def random_backdrop(random: Random, size: int) -> Backdrop:
    """A plain colour (60 %), a gradient from top to bottom (15 %) or a land (25 %)."""
    kind = random.random()
    if kind < 0.6:
        return _plain(random, size)
    return _gradient(random, size) if kind < 0.75 else _land(random, size)


def with_article(words: str) -> str:
    """ "a red background", "an orange background"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plain(random: Random, size: int) -> Backdrop:
    name = list(COLOURS)[random.integers(len(COLOURS))]
    image = np.full((size, size, 3), COLOURS[name], np.float32)
    return Backdrop(image, _classes("plain", size), f"on {with_article(name)} background", None)


def _gradient(random: Random, size: int) -> Backdrop:
    names = list(COLOURS)
    first, second = (names[index] for index in random.choice(len(names), 2, replace=False))
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    rows = np.array(COLOURS[first], np.float32) * (1 - down) + np.array(COLOURS[second], np.float32) * down
    image = np.broadcast_to(rows, (size, size, 3)).astype(np.float32)
    return Backdrop(image, _classes("plain", size), f"on {with_article(first)} to {second} gradient", None)


def _land(random: Random, size: int) -> Backdrop:
    """Sky and wall get lighter towards the horizon, the ground darker towards the viewer."""
    land = _LANDS[random.integers(len(_LANDS))]
    horizon = int(size * random.uniform(0.5, 0.72))
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    shade = np.where(down < horizon / size, (down - 0.3) * 30, (horizon / size - down) * 40)
    image = np.empty((size, size, 3), np.float32)
    classes = _classes("plain", size)
    for rows, (name, colour) in ((slice(0, horizon), land.above), (slice(horizon, size), land.below)):
        image[rows] = np.array(colour) + random.uniform(-12, 12, 3)
        classes[rows] = BACKDROP_CLASSES.index(name)
    return Backdrop((image + shade).clip(0, 255), classes, land.words, horizon)


def _classes(name: str, size: int) -> Pixels:
    return np.full((size, size), BACKDROP_CLASSES.index(name), np.uint8)
