"""Pictures as arrays: an SVG text or a bitmap file becomes uint8 [size, size, 4], cut out and centred.

Straight alpha, white where alpha is 0. The drawing keeps its aspect and is scaled so that its longest side reaches the
margin of size / 32 on both sides. SVGs are drawn anew for every size, so that 512 holds what 128 does not; bitmaps are
scaled, at most fourfold.
"""

import io
import re
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

FAINT = 12
"""Alpha up to this does not count as drawn when the drawing is cut out of its page."""

_LARGEST_ENLARGEMENT = 4.0
_MOST_PAGE_PIXELS = 12.5  # of the page's side, as a multiple of the picture's
_PIXELS_PER_UNIT = {"px": 1, "": 1, "pt": 1.25, "pc": 15, "in": 90, "cm": 35.433, "mm": 3.5433}


def picture_of_svg(svg: str, size: int) -> Pixels | None:
    """[size, size, 4], None when nothing is drawn. ValueError when the SVG cannot be read.

    Drawn twice when the page is much larger than the drawing: the second time so large that no detail is invented.
    """
    svg = with_view_box(svg)
    page = _drawn(svg, 2 * size)
    box = drawn_box(page)
    if box is None:
        return None
    longest = max(box[2] - box[0], box[3] - box[1])
    if longest < 0.92 * size:
        width = min(int(_MOST_PAGE_PIXELS * size), int(2 * size * (size + 2) / max(8, longest)) + 1)
        page = _drawn(svg, width)
    return centred(page, size)


def picture_of_bitmap(content: bytes, size: int, crop: Any = None, is_pixel_art: bool = False) -> Pixels | None:
    """[size, size, 4] of a bitmap file, None when nothing is drawn. ValueError when the file cannot be read.

    `crop` takes an opaque square instead of cutting the drawing out: "square" the one in the middle, [left, top, side]
    that one. Pixel art is enlarged by whole numbers without smoothing and touches the edge.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGBA")
    except OSError as error:
        raise ValueError(f"This is no picture: {error}.") from error
    if crop is not None:
        return _square(picture, size, crop)
    if is_pixel_art:
        return _enlarged_pixels(picture, size)
    return centred(picture, size)


def with_view_box(svg: str) -> str:
    """`svg` with a viewBox. Drawings of the nineties have only width and height, in points at 90 units to the inch;
    without a viewBox they are not scaled but cut off.
    """
    root = re.search(r"<svg\b[^>]*>", svg, re.DOTALL)
    if root is None or "viewBox" in root.group():
        return svg
    tag = root.group()
    width, height = (_length(re.search(rf'\s{side}="([^"]*)"', tag)) for side in ("width", "height"))
    if not width or not height:
        width = height = 1000.0
    without = re.sub(r'\s(?:width|height)="[^"]*"', "", tag)
    repaired = f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}"{without[4:]}'
    return svg[: root.start()] + repaired + svg[root.end() :]


def drawn_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of what is drawn in an RGBA picture, the last two exclusive; None when nothing is."""
    return picture.getchannel("A").point(lambda alpha: 255 if alpha > FAINT else 0).getbbox()


def drawn_bounds(pixels: Pixels) -> list[int]:
    """[left, top, right, bottom] of what is drawn in [h, w, 4], right and bottom exclusive; all 0 when nothing is."""
    drawn = pixels[..., 3] > FAINT
    columns, rows = np.flatnonzero(drawn.any(0)), np.flatnonzero(drawn.any(1))
    if len(rows) == 0:
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def centred(picture: Image.Image, size: int) -> Pixels | None:
    """The drawing in an RGBA picture, cut out, scaled and centred in [size, size, 4]; None when nothing is drawn."""
    box = drawn_box(picture)
    if box is None:
        return None
    drawing = picture.crop(box)
    margin = size // 32
    factor = min((size - 2 * margin) / max(drawing.size), _LARGEST_ENLARGEMENT)
    scaled = (max(1, round(drawing.width * factor)), max(1, round(drawing.height * factor)))
    return _on_canvas(resized(drawing, scaled), size)


def resized(picture: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """An RGBA picture at (width, height). Colours are weighted by alpha: no edge takes up the colour of the void."""
    if picture.size == shape:
        return picture
    pixels = np.asarray(picture).astype(np.float32)
    alpha = pixels[..., 3:] / 255
    planes = np.concatenate([pixels[..., :3] * alpha, pixels[..., 3:]], axis=-1)
    scaled = np.stack([_scaled_plane(planes[..., channel], shape) for channel in range(4)], axis=-1)
    opacity = scaled[..., 3:].clip(0, 255)
    colours = np.where(opacity > 0.5, scaled[..., :3] / np.maximum(opacity / 255, 1e-3), 255).clip(0, 255)
    return Image.fromarray(np.concatenate([colours, opacity], axis=-1).round().astype(np.uint8))


def _drawn(svg: str, width: int) -> Image.Image:
    """The page at that width. Text is left out: which fonts there are differs from machine to machine."""
    content = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(content))).convert("RGBA")


def _scaled_plane(plane: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(shape, Image.Resampling.LANCZOS))


def _square(picture: Image.Image, size: int, crop: Any) -> Pixels:
    if crop == "square":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
    else:
        left, top, side = crop
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def _enlarged_pixels(picture: Image.Image, size: int) -> Pixels | None:
    box = drawn_box(picture)
    if box is None:
        return None
    drawing = picture.crop(box)
    factor = size // max(drawing.size)
    if factor < 1:
        return centred(picture, size)
    shape = (drawing.width * factor, drawing.height * factor)
    return _on_canvas(drawing.resize(shape, Image.Resampling.NEAREST), size)


def _on_canvas(drawing: Image.Image, size: int) -> Pixels:
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    canvas.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    pixels = np.array(canvas)
    pixels[pixels[..., 3] == 0, :3] = 255
    return pixels


def _length(match: re.Match[str] | None) -> float | None:
    """A length of an SVG attribute in user units, None when there is none or it is a percentage."""
    parts = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", match.group(1)) if match else None
    if parts is None or parts.group(2) not in _PIXELS_PER_UNIT:
        return None
    return float(parts.group(1)) * _PIXELS_PER_UNIT[parts.group(2)]
