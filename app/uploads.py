"""An uploaded picture -> an 8-bit sRGB RGB PNG and its digest; an uploaded mask -> a grey one of black and white.

Owns what is accepted and the checks that come before anything is decoded. Knows nothing of jobs, tenants or tasks.
Every function here works on bytes, holds no state and may run in any thread.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageCms, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from app.errors import field_problem
from app.parts import JPEG, PNG, Parts, is_webp, parts_of
from models.region import Box

REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")
_DATA_URL = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow raises, by format and by place, for bytes that are no sound picture."""
_MODES = ("L", "LA", "RGB", "RGBA", "P", "PA")
_MASK_MODES = (*_MODES, "1")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by the orientation that Exif tells."""
_DRAWN_FROM = 128
"""Level from which a mask's pixel is drawn anew."""

MaskConvention = Literal["auto", "white", "black", "transparent"]
"""Which pixels of a mask are drawn anew: white ones, all but those, transparent ones (as in OpenAI's API), or
transparent ones where there are any, else white ones."""


@dataclass(frozen=True)
class Upload:
    """A picture fit for the store: `png` holds `width` x `height` RGB pixels, `digest` is its SHA-256 in hex."""

    png: bytes
    digest: str
    width: int
    height: int

    @property
    def name(self) -> str:
        """Of the file in a job's folder."""
        return f"{self.digest}.png"

    @property
    def reference(self) -> str:
        return f"sha256:{self.digest}"


@dataclass(frozen=True)
class MaskUpload(Upload):
    """A mask fit for the store: `png` is grey, 255 where the picture is drawn anew, else 0. `box`: around the 255s."""

    box: Box


def decode_base64(text: str, name: str = "image") -> bytes:
    """Bytes of base64 or of a data URL in the field `name`; white space between is allowed. Raises Problem."""
    prefix = _DATA_URL.match(text)
    payload = text[prefix.end() :] if prefix else text
    try:
        data = base64.b64decode("".join(payload.split()).encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise field_problem("image_not_base64", name, f"`{name}` cannot be decoded.") from error
    if not data:
        raise field_problem("image_not_base64", name, f"`{name}` is empty.")
    return data


def read_upload(data: bytes, max_pixels: int, name: str = "image") -> Upload:
    """Checks by header, then decodes: EXIF-rotated, ICC profile -> sRGB, transparency on white. Raises Problem, about
    the field `name`."""
    with _damage_told(name):
        return _as_upload(_on_white(_to_srgb(_decoded(data, max_pixels, name, _MODES))))


def read_mask(
    data: bytes, max_pixels: int, convention: MaskConvention = "auto", name: str = "mask_image"
) -> MaskUpload:
    """Checks by header, then decodes, EXIF-rotated: grey, 1-bit, coloured or transparent as `convention` says.

    With `name` "image" the mask is read from a picture's own transparency. Raises Problem, also for an empty mask.
    """
    with _damage_told(name):
        drawn = _drawn_pixels(_decoded(data, max_pixels, name, _MASK_MODES), convention)
    box = drawn.getbbox()
    if box is None:
        raise field_problem("mask_empty", name, f"No pixel of the {'mask' if name != 'image' else 'picture'} counts.")
    upload = _as_upload(drawn)
    return MaskUpload(upload.png, upload.digest, upload.width, upload.height, Box(*box))


def has_transparency(data: bytes, max_pixels: int) -> bool:
    """True when some pixel of the picture `image` is more transparent than not. Raises Problem."""
    with _damage_told("image"):
        if not _has_alpha(_open(parts_of(data).data, max_pixels, "image")):
            return False
        alpha = _alpha(_decoded(data, max_pixels, "image", _MODES))
    return alpha is not None and _lowest(alpha) < _DRAWN_FROM


def upright_size(data: bytes, max_pixels: int, name: str = "image") -> tuple[int, int]:
    """Width and height of a picture, by its header alone, turned as its EXIF says. Raises Problem."""
    with _damage_told(name):
        parts = parts_of(data)
        width, height = _open(parts.data, max_pixels, name).size
    return (height, width) if parts.orientation >= 5 else (width, height)


@contextlib.contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Also what is only found when colours are converted."""
    try:
        yield
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise field_problem("image_broken", name, "The file cannot be decoded to its end.") from error


def _decoded(data: bytes, max_pixels: int, name: str, modes: tuple[str, ...]) -> Image.Image:
    parts = parts_of(data)
    picture = _open(parts.data, max_pixels, name)
    _check_header(picture, parts.data, max_pixels, name, modes)
    picture.load()
    return _upright(picture, parts)


def _upright(picture: Image.Image, parts: Parts) -> Image.Image:
    turn = _TURNS.get(parts.orientation)
    return picture if turn is None else picture.transpose(turn)


def _drawn_pixels(picture: Image.Image, convention: MaskConvention) -> Image.Image:
    """Grey, 255 where it is drawn anew, else 0."""
    alpha = _alpha(picture) if convention in ("auto", "transparent") else None
    if convention == "auto" and alpha is not None and _lowest(alpha) >= _DRAWN_FROM:
        alpha = None
    if alpha is not None:
        return alpha.point([255 if level < _DRAWN_FROM else 0 for level in range(256)])
    if convention == "transparent":
        return Image.new("L", picture.size, 0)
    # What is transparent is not white: it is laid on black.
    ground = Image.new("RGBA", picture.size, "black")
    grey = Image.alpha_composite(ground, picture.convert("RGBA")).convert("L")
    return grey.point([255 if (level >= _DRAWN_FROM) != (convention == "black") else 0 for level in range(256)])


def _alpha(picture: Image.Image) -> Image.Image | None:
    return picture.convert("RGBA").getchannel("A") if _has_alpha(picture) else None


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info


def known_upload(png: bytes, digest: str) -> Upload:
    """An Upload from bytes that an earlier `read_upload` made."""
    width, height = struct.unpack(">II", png[16:24])
    return Upload(png, digest, width, height)


def _lowest(grey: Image.Image) -> int:
    return next(level for level, count in enumerate(grey.histogram()) if count)


def _open(data: bytes, max_pixels: int, name: str) -> ImageFile.ImageFile:
    """The header alone. The classes are called directly: no other format's reader ever sees the bytes."""
    stream = io.BytesIO(data)
    if data.startswith(PNG):
        return PngImagePlugin.PngImageFile(stream)
    if data.startswith(JPEG):
        return JpegImagePlugin.JpegImageFile(stream)
    if is_webp(data):
        _check_pixels(_webp_size(data), max_pixels, name)  # its reader allocates the canvas at once
        return WebPImagePlugin.WebPImageFile(stream)
    raise field_problem("image_format_unsupported", name, "The file starts like none of the formats read here.")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk (RFC 9649, section 2)."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    if size[0] * size[1] > max_pixels:
        what = f"It has {size[0]} x {size[1]} pixels; at most {max_pixels} are read."
        raise field_problem("image_too_large", name, what)


def _check_header(
    picture: ImageFile.ImageFile, data: bytes, max_pixels: int, name: str, modes: tuple[str, ...]
) -> None:
    _check_pixels(picture.size, max_pixels, name)
    if getattr(picture, "is_animated", False):
        raise field_problem("image_animated", name, f"It has {getattr(picture, 'n_frames', 'several')} frames.")
    if picture.format == "PNG" and data[24] == 16:
        raise field_problem("image_mode_unsupported", name, "It has 16 bits a channel.")
    if picture.mode not in modes:
        raise field_problem("image_mode_unsupported", name, f"{_MODE_NAMES.get(picture.mode, picture.mode)}.")


_MODE_NAMES = {"1": "It has 1 bit a pixel", "CMYK": "It is CMYK", "I": "It has 32 bits a pixel"}


def _to_srgb(picture: Image.Image) -> Image.Image:
    """RGB, or RGBA where something is transparent, with an embedded profile applied. An unreadable one is ignored."""
    has_alpha = _has_alpha(picture)
    profile = picture.info.get("icc_profile")
    is_grey = picture.mode in ("L", "LA")
    colour = picture.convert("RGBA" if has_alpha else "RGB")
    if not profile:
        return colour
    alpha = colour.getchannel("A") if has_alpha else None
    source = picture.convert("L") if is_grey else colour.convert("RGB")
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(source, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return colour
    assert converted is not None, "profileToProfile without inPlace returns a picture. This is a bug."
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode != "RGBA":
        return picture
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


def _as_upload(picture: Image.Image) -> Upload:
    picture.info = {}  # no profile, no text of the sender goes into the file
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    png = stream.getvalue()
    return Upload(png, hashlib.sha256(png).hexdigest(), *picture.size)
