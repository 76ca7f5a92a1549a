"""The recipe in a picture file, as text: where it stands and how it is found.

Owns which part of a PNG, JPEG or WebP file holds which text. Knows neither what a recipe says nor how files are
written, and decodes no pixels.

Beside the pixels lie two texts. `parameters` is the line format that other tools read, begun by the AUTOMATIC1111
web UI; `denoised` is the recipe of this one picture as canonical JSON.

    PNG          text chunks `parameters` and `denoised`
    JPEG, WebP   EXIF UserComment (`parameters`) and ImageDescription (`denoised`)
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

IMAGE_DESCRIPTION, EXIF_FOLDER, USER_COMMENT = 0x010E, 0x8769, 0x9286
UNICODE = b"UNICODE\0"
"""Begins a UserComment in UTF-16, big-endian."""

Recipe = Mapping[str, Any]
"""A request as JSON, of one picture: its own seed, `num_images` 1, with `contract_version` and its Provenance."""

_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    TypeError,
    RecursionError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def recipe_text(data: bytes) -> str | None:
    """The text in the place of a recipe, whatever it says; None when there is none, or the file cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            text = image.info.get("denoised") if image.format == "PNG" else image.getexif().get(IMAGE_DESCRIPTION)
    except _UNREADABLE:
        return None
    return text if isinstance(text, str) else None


def has_parameters(data: bytes) -> bool:
    """True when other tools find something to read in the file."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.format == "PNG":
                return "parameters" in image.info
            return USER_COMMENT in image.getexif().get_ifd(EXIF_FOLDER)
    except _UNREADABLE:
        return False


def read_recipe(data: bytes) -> Recipe | None:
    """The recipe in a picture file of ours; None when it has none or is no picture."""
    try:
        recipe = json.loads(recipe_text(data) or "null")
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) and "contract_version" in recipe else None
