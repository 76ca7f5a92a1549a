"""Contact sheets as PNG: pictures in rows with words below them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.pictures import Pixels

_MARGIN = 6
_TEXT_SIZE = 11
_LINE_HEIGHT = 13
_MOST_LINES = 4
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def contact_sheet(pictures: Sequence[Pixels], texts: Sequence[str], columns: int = 8, side: int = 128) -> Image.Image:
    """`pictures` uint8 [h, w, 3] at `side` pixels, each with its text below, in rows of `columns`."""
    font = ImageFont.load_default(_TEXT_SIZE)
    wrapped = [_wrapped(text, font, side) for text in texts]
    lines = max([1, *(len(part) for part in wrapped)])
    cell_width, cell_height = side + _MARGIN, side + _MARGIN + lines * _LINE_HEIGHT
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, max(1, rows) * cell_height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (picture, part) in enumerate(zip(pictures, wrapped, strict=True)):
        left = _MARGIN + place % columns * cell_width
        top = _MARGIN + place // columns * cell_height
        sheet.paste(_at_side(picture, side), (left, top))
        draw.rectangle((left - 1, top - 1, left + side, top + side), outline=(225, 225, 225))
        for number, line in enumerate(part):
            draw.text((left, top + side + 2 + number * _LINE_HEIGHT), line, fill=_INK, font=font)
    return sheet


def numbered_sheet(pictures: Sequence[Pixels], columns: int = 10, side: int = 128) -> Image.Image:
    """`pictures` with nothing but their number below, for a person who is to say what they show."""
    return contact_sheet(pictures, [str(number) for number in range(1, len(pictures) + 1)], columns, side)


def _at_side(picture: Pixels, side: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, at most _MOST_LINES of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines[:_MOST_LINES]
