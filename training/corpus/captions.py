"""Captions to train with: the same picture is described differently each time, as people would ask for it.

A caption is a wording of what is drawn, put into one of five forms, now and then with keywords and colour names. What
lies behind the picture is the caller's: it puts a background there and appends its words.
"""

from collections.abc import Sequence

import numpy as np

from training.corpus.catalogue import Record

Random = np.random.Generator

FORMS = ("plain", "style after", "style of", "style first", "picture of")
_SHARE_OF_FORMS = (0.4, 0.25, 0.12, 0.13, 0.1)

_KEYWORDS_SHARE = 0.25
_COLOURS_SHARE = 0.15
_NOTABLE_SHARE_OF_PIXELS = 0.2
_OPENINGS = ("a picture of", "a drawing of", "an image of", "an icon of")
_UNCOUNTABLE_STYLES = ("clip art", "game art")


def caption_of(record: Record, random: Random) -> str:
    """One caption of the picture: "a red apple, flat icon", "a 3d render of a fox", "a car, vehicle, red and black"."""
    form = FORMS[int(random.choice(len(FORMS), p=_SHARE_OF_FORMS))]
    text = in_form(form, wording(record, random), record["style_text"], random)
    if record["tags"] and random.random() < _KEYWORDS_SHARE:
        text = ", ".join([text, *some_keywords(record["tags"], random)])
    colours = notable_colours(record)
    if colours and random.random() < _COLOURS_SHARE:
        text = f"{text}, {' and '.join(colours)}"
    return text


def wording(record: Record, random: Random) -> str:
    """What is drawn: mostly the caption with its article, else the bare name or one of two other names."""
    return _one_of([record["caption"]] * 3 + [record["name"]] + record["alt_names"][:2], random)


def in_form(form: str, text: str, style: str, random: Random) -> str:
    """`text` with the style's words in the given form; as it is when it already speaks of the style."""
    if form == "plain" or style in text:
        return text
    if form == "style after":
        return f"{text}, {style}"
    if form == "style of":
        return f"{with_article(style)} of {text}"
    if form == "style first":
        return f"{style}, {text}"
    return f"{_one_of(_OPENINGS, random)} {text}"


def with_article(style: str) -> str:
    """ "a flat icon", "an emoji", "clip art"."""
    if style in _UNCOUNTABLE_STYLES:
        return style
    return f"{'an' if style[0] in 'aeiou' else 'a'} {style}"


def some_keywords(keywords: Sequence[str], random: Random) -> list[str]:
    """One to three of the keywords in random order."""
    count = min(len(keywords), int(random.integers(1, 4)))
    return [keywords[index] for index in random.choice(len(keywords), count, replace=False)]


def notable_colours(record: Record) -> list[str]:
    """The one or two colours that cover at least a fifth of what is drawn."""
    return [colour for colour, share in record["colors"] if share >= _NOTABLE_SHARE_OF_PIXELS][:2]


def _one_of(choices: Sequence[str], random: Random) -> str:
    return choices[int(random.integers(len(choices)))]
