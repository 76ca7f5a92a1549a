"""Picture files: pixels in, bytes with their recipe out.

Owns the file formats and what is written beside the pixels. Knows nothing of where the files go. A file says what was
drawn and with what, and never when, where or for whom: the same request gives the same bytes.

Beside the pixels lie two texts. `parameters` is the line format that other tools read, begun by the AUTOMATIC1111
web UI; `denoised` is the recipe of this one picture as canonical JSON. `app.texts` reads them back.

    PNG          text chunks `parameters` and `denoised`
    JPEG, WebP   EXIF UserComment (`parameters`) and ImageDescription (`denoised`)
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from models.request import PictureRequest
from workers.contract import CONTRACT_VERSION, OutputFormat, Provenance
from workers.titles import SAMPLER_TITLES, SCHEDULE_TITLES

Recipe = Mapping[str, Any]
"""A request as JSON, of one picture: its own seed, `num_images` 1, with `contract_version` and its Provenance."""

_IMAGE_DESCRIPTION, _EXIF_FOLDER, _USER_COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"
"""Begins a UserComment in UTF-16, big-endian."""
_MODEL_HASH_DIGITS = 10
_JPEG_EXIF_LIMIT = 65_000
"""Bytes. A JPEG's EXIF must fit into one segment of 65,533."""
_JPEG: Mapping[str, Any] = MappingProxyType({"format": "JPEG", "quality": 95, "subsampling": 0})
"""No chroma subsampling: text and thin coloured lines keep their colour."""


@dataclass(frozen=True)
class PictureFile:
    """An encoded picture. `extension` comes without the dot."""

    data: bytes
    media_type: str
    extension: str


def recipe_of(request: PictureRequest, index: int, provenance: Provenance) -> Recipe:
    """What draws picture `index` of the request again, alone, and what tells whether that succeeded."""
    return {
        **request.model_dump(mode="json"),
        "seed": request.seed_of(index),
        "num_images": 1,
        **provenance.model_dump(mode="json", exclude_none=True),
        "contract_version": CONTRACT_VERSION,
    }


def digest_of_pixels(pixels: np.ndarray) -> str:
    """SHA-256 over the size, as the text `<width>x<height>` and a newline, and (H, W, 3) uint8 row by row."""
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def as_jpeg_shows(pixels: np.ndarray) -> np.ndarray:
    """What is left of a picture (H, W, 3) uint8 in a JPEG of ours."""
    with Image.open(io.BytesIO(_saved(_image(pixels), **_JPEG))) as image:
        return np.asarray(image)


def encode_picture(pixels: np.ndarray, output_format: OutputFormat, recipe: Recipe) -> PictureFile:
    """The file of a picture (H, W, 3) uint8 sRGB. PNG and WebP are lossless. The same input gives the same bytes."""
    image = _image(pixels)
    writers: dict[OutputFormat, Callable[[Image.Image, Recipe], PictureFile]] = {
        "png": _png,
        "jpeg": _jpeg,
        "webp": _webp,
    }
    return writers[output_format](image, recipe)


def preview_bytes(pixels: np.ndarray) -> bytes:
    """A small lossy WebP, without a recipe, of a picture (H, W, 3) uint8."""
    return _saved(_image(pixels), format="WEBP", quality=70, method=0)


def infotext(recipe: Recipe) -> str:
    """The recipe as other tools read it: the prompt, the negative prompt, then one line of `name: value` pairs."""
    facts = {
        "Steps": recipe["num_inference_steps"],
        "Sampler": SAMPLER_TITLES.get(recipe["sampler"], recipe["sampler"]),
        "Schedule type": SCHEDULE_TITLES.get(recipe["noise_schedule"], recipe["noise_schedule"]),
        "CFG scale": f"{recipe['guidance_scale']:.12g}",
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Clip skip": recipe["clip_skip"] + 1 if recipe.get("clip_skip") else None,
        "Model hash": recipe["model_digest"][:_MODEL_HASH_DIGITS],
        "Model": recipe["model"],
        "Denoising strength": f"{recipe['strength']:.12g}" if "strength" in recipe else None,
        "Mask blur": recipe.get("mask_blur"),
        "Masked area padding": recipe.get("padding_mask_crop"),
        "Version": "denoised",
    }
    lines = [recipe["prompt"]]
    if recipe["negative_prompt"]:
        lines.append(f"Negative prompt: {recipe['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in facts.items() if value is not None))
    # A text chunk ends at a NUL, and half a surrogate pair has no bytes: the JSON beside it has both escaped.
    return "\n".join(lines).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _quoted(value: str) -> str:
    """Readers split the last line at commas and colons unless the value is a JSON string."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value


def _canonical(recipe: Recipe) -> str:
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _image(pixels: np.ndarray) -> Image.Image:
    assert pixels.dtype == np.uint8, f"Pixels are {pixels.dtype}, not uint8. This is a bug."
    assert pixels.ndim == 3, f"Pixels are {pixels.shape}, not (H, W, 3). This is a bug."
    assert pixels.shape[2] == 3, f"Pixels are {pixels.shape}, not (H, W, 3). This is a bug."
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image: Image.Image, recipe: Recipe) -> PictureFile:
    texts = PngImagePlugin.PngInfo()
    for keyword, text in (("parameters", infotext(recipe)), ("denoised", _canonical(recipe))):
        texts.add_text(keyword, text)  # tEXt, or iTXt when the text is not Latin-1
    # Measured on drawn 512x512 pictures: run lengths alone are as small as level 4 (71-405 KiB) in less than half of
    # its time (12-25 ms against 17-67 ms), and smaller than levels 1 to 3.
    data = _saved(image, format="PNG", pnginfo=texts, compress_level=1, compress_type=zlib.Z_RLE)
    return PictureFile(data, "image/png", "png")


def _jpeg(image: Image.Image, recipe: Recipe) -> PictureFile:
    ours, theirs = _canonical(recipe), infotext(recipe)
    # One segment holds both texts, or only ours, or none of an endless prompt; the job's document still has it.
    exif = next(exif for exif in (_exif(ours, theirs), _exif(ours), _exif()) if len(exif) <= _JPEG_EXIF_LIMIT)
    data = _saved(image, exif=exif, **_JPEG)
    return PictureFile(data, "image/jpeg", "jpg")


def _webp(image: Image.Image, recipe: Recipe) -> PictureFile:
    # Method 0 takes a fifth of the time of method 1 for a quarter more bytes, and is smaller than our PNG.
    exif = _exif(_canonical(recipe), infotext(recipe))
    data = _saved(image, format="WEBP", lossless=True, quality=20, method=0, exif=exif)
    return PictureFile(data, "image/webp", "webp")


def _exif(description: str | None = None, comment: str | None = None) -> bytes:
    exif = Image.Exif()
    if description is not None:
        exif[_IMAGE_DESCRIPTION] = description
    if comment is not None:
        exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _UNICODE + comment.encode("utf-16-be")
    return exif.tobytes()


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
