"""Composed scenes: one to three drawings on a background, with a caption, boxes, an instance mask and a semantic map.

All is known exactly, because it is put together here: what "left of" means in the caption holds in the boxes. Knows
nothing of how scenes are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.corpus.backdrops import BACKDROP_CLASSES, Backdrop, random_backdrop, with_article
from training.corpus.catalogue import Record
from training.corpus.recolour import HUES, recoloured
from training.pictures import COLOURS, Corpus, Pixels, Random, shrunk

_ANIMALS = ("mammal", "bird", "fish", "bug", "reptile", "creature")
_FOOD = ("plant", "flower", "fruit", "vegetable", "food", "drink", "dishware")
_LARGE = ("land vehicle", "boat", "aircraft", "building", "furniture", "household", "clothing", "instrument")
_SMALL = ("tool", "weapon", "office", "electronics", "science", "sport", "game", "sky", "heart")
_OTHERS = ("face", "person", "body part", "event", "clock")

CATEGORIES = (*_ANIMALS, *_FOOD, *_LARGE, *_SMALL, *_OTHERS)

SEMANTIC_CLASSES = (*BACKDROP_CLASSES, *CATEGORIES)
"""What the numbers of a semantic map mean: backgrounds, then categories of things."""

_RECOLOURED = {
    *(
        "land vehicle",
        "boat",
        "aircraft",
        "furniture",
        "household",
        "clothing",
        "instrument",
        "tool",
        "office",
        "sport",
    ),
    *("game", "heart", "flower", "bird", "fish", "bug", "dishware", "building"),
}
_NOT_MIRRORED = {"clock", "office"}
_FLAT_STYLES = {"silhouette", "duotone", "bold outline", "pictogram", "photo", "kameleon"}
_OTHER_COLOUR_WORDS = {"grey", "golden", "gold", "silver", "tan", "beige", "dark", "light", "rainbow", "colorful"}

_LEAST_STYLES = 3
_LEAST_PIXELS = 12


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene: its words in the caption, and box (left, top, right, bottom), the last two exclusive."""

    words: str
    concept: str
    category: str
    id: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """Image uint8 [s, s, 3]; `instance` uint8 [s, s]: 0 or the number of the object, counted from 1; `semantic`
    uint8 [s, s]: indices into SEMANTIC_CLASSES; `background` in words.
    """

    image: Pixels
    caption: str
    objects: tuple[SceneObject, ...]
    instance: Pixels
    semantic: Pixels
    background: str


@dataclass(frozen=True)
class _Slot:
    """A square for one object."""

    left: int
    top: int
    side: int


class Composer:
    """Composes scenes of the pictures of some splits: well-captioned, coloured things that exist in several styles."""

    def __init__(self, corpus: Corpus, splits: Sequence[str] = ("train",)) -> None:
        self._corpus = corpus
        styles: dict[str, set[str]] = {}
        for record in corpus.records:
            styles.setdefault(record["concept"], set()).add(record["style"])
        self._rows: dict[str, dict[str, list[int]]] = {}  # category -> concept -> rows
        for row, record in enumerate(corpus.records):
            is_common = len(styles[record["concept"]]) >= _LEAST_STYLES
            if is_common and record["split"] in splits and is_fit(record):
                self._rows.setdefault(record["category"], {}).setdefault(record["concept"], []).append(row)

        rows = [row for concepts in self._rows.values() for alike in concepts.values() for row in alike]
        self._styles = sorted({corpus.records[row]["style"] for row in rows})

    def sample(self, random: Random) -> Scene:
        """One scene of the corpus's size; the same for the same state of `random`. ValueError when nothing is fit."""
        if not self._rows:
            raise ValueError("No picture of the corpus is fit for scenes.")
        size = self._corpus.rgba.shape[1]
        backdrop = random_backdrop(random, size)
        relation, slots = _arrangement(random, size, has_ground=backdrop.horizon is not None)
        style = _one_of(self._styles, random) if random.random() < 0.8 else None
        image, semantic = backdrop.image.copy(), backdrop.classes.copy()
        instance = np.zeros((size, size), np.uint8)
        objects: list[SceneObject] = []
        for slot in slots:
            record, words, cutout = self._cutout(random, style, slot.side)
            left, top = slot.left, _on_the_ground(slot, backdrop, size, random)
            place = (slice(top, top + slot.side), slice(left, left + slot.side))
            alpha = cutout[..., 3:].astype(np.float32) / 255
            image[place] = cutout[..., :3] * alpha + image[place] * (1 - alpha)
            drawn = cutout[..., 3] > 128
            instance[place][drawn] = len(objects) + 1
            semantic[place][drawn] = SEMANTIC_CLASSES.index(record["category"])
            box = _box(drawn, left, top)
            objects.append(SceneObject(words, record["concept"], record["category"], record["id"], box))
        caption = f"{_described(relation, objects, size, random)} {backdrop.words}"
        pixels = image.round().clip(0, 255).astype(np.uint8)
        return Scene(pixels, caption, tuple(objects), instance, semantic, backdrop.words)

    def _cutout(self, random: Random, style: str | None, side: int) -> tuple[Record, str, Pixels]:
        """A thing at that size [side, side, 4], its record and its words; tried again if it is too thin to be seen."""
        for _ in range(50):
            row = self._row(random, style)
            record = self._corpus.records[row]
            rgba, words = _maybe_recoloured(np.asarray(self._corpus.rgba[row]), record, random)
            if random.random() < 0.3 and record["category"] not in _NOT_MIRRORED:
                rgba = rgba[:, ::-1]
            cutout = shrunk(rgba, side)
            if (cutout[..., 3] > 128).sum() >= _LEAST_PIXELS:
                return record, words, cutout
        raise ValueError("The pictures that are fit for scenes are too faint.")

    def _row(self, random: Random, style: str | None) -> int:
        """Category, then concept, then picture, so that rare things come as often as others. In `style` where it is."""
        concepts = self._rows[_one_of(list(self._rows), random)]
        rows = concepts[_one_of(list(concepts), random)]
        alike = [row for row in rows if self._corpus.records[row]["style"] == style]
        return (alike or rows)[int(random.integers(len(alike or rows)))]


def is_fit(record: Record) -> bool:
    """Whether a picture shows one coloured thing by a short, reliable name."""
    return (
        record["category"] in CATEGORIES
        and record["caption_q"] >= 2
        and 0.12 < record["coverage"] < 0.9
        and record["style"] not in _FLAT_STYLES
        and len(record["name"].split()) <= 3
        and not (record["mono"] or record["crop"] or record["skin_tone"])
    )


def _arrangement(random: Random, size: int, has_ground: bool) -> tuple[str, list[_Slot]]:
    """How many things there are and where: "alone", "beside" (the first is left), "stacked" (the first is above) or
    "row". Slots never overlap. On a ground nothing is stacked.
    """
    count = (1, 1, 2, 2, 2, 3)[int(random.integers(6))]
    if count == 1:
        side = _between(random, size * 0.45, size * 0.85)
        return "alone", [_Slot(_between(random, 0, size - side), _between(random, 0, size - side), side)]
    third, half = size // 3, size // 2
    if count == 3:
        sides = [_between(random, size * 0.24, third) for _ in range(3)]
        return "row", [
            _Slot(n * third + _between(random, 0, third - side), _between(random, 0, size - side), side)
            for n, side in enumerate(sides)
        ]
    is_stacked = not has_ground and random.random() < 0.5
    slots = []
    for begin in (0, half):
        side = _between(random, size * 0.32, size * 0.48)
        along, across = begin + _between(random, 0, half - side), _between(random, 0, size - side)
        slots.append(_Slot(across, along, side) if is_stacked else _Slot(along, across, side))
    return ("stacked" if is_stacked else "beside"), slots


def _on_the_ground(slot: _Slot, backdrop: Backdrop, size: int, random: Random) -> int:
    """The slot's top, moved down where there is a ground and the thing would float above it."""
    if backdrop.horizon is None or slot.top + slot.side >= backdrop.horizon + size * 0.08:
        return slot.top
    standing = int(backdrop.horizon + size * 0.05 - slot.side * 0.85) + _between(random, 0, size * 0.2)
    return max(0, min(size - slot.side, standing))


def _maybe_recoloured(rgba: Pixels, record: Record, random: Random) -> tuple[Pixels, str]:
    """The picture and its words, in another colour for some of the things that come in many."""
    words = set(record["caption"].split())
    has_colour = bool(words & {*COLOURS, *_OTHER_COLOUR_WORDS})
    if record["category"] not in _RECOLOURED or has_colour or random.random() >= 0.6:
        return rgba, record["caption"]
    colour = _one_of(list(HUES), random)
    other = recoloured(rgba, colour)
    return (rgba, record["caption"]) if other is None else (other, coloured_words(record["caption"], colour))


def coloured_words(caption: str, colour: str) -> str:
    """ "an umbrella" becomes "a purple umbrella", "scissors" become "purple scissors"."""
    article, _, rest = caption.partition(" ")
    return with_article(f"{colour} {rest}") if article in ("a", "an") and rest else f"{colour} {caption}"


def _box(drawn: NDArray[np.bool_], left: int, top: int) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)


def _described(relation: str, objects: list[SceneObject], size: int, random: Random) -> str:
    """The things and how they stand to each other, or for one thing, now and then, where it is."""
    words = [thing.words for thing in objects]
    if relation == "row":
        return f"{words[0]}, {words[1]} and {words[2]}"
    if relation == "alone":
        return words[0] if random.random() < 0.6 else f"{words[0]} {_position(objects[0], size)}"
    forwards, backwards = ("left of", "right of") if relation == "beside" else ("above", "below")
    kind = random.random()
    if kind < 0.5:
        return f"{words[0]} {forwards} {words[1]}"
    return f"{words[1]} {backwards} {words[0]}" if kind < 0.8 else f"{words[0]} and {words[1]}"


def _position(thing: SceneObject, size: int) -> str:
    middle = (thing.box[0] + thing.box[2]) / 2 / size
    return "on the left" if middle < 0.4 else "on the right" if middle > 0.6 else "in the middle"


def _between(random: Random, least: float, most: float) -> int:
    """A whole number of both ends' range."""
    return int(random.integers(int(least), max(int(least), int(most)) + 1))


def _one_of(choices: Sequence[str], random: Random) -> str:
    return choices[int(random.integers(len(choices)))]
