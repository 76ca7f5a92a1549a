"""A picture file as the parts that it is made of: what decides about pixels goes on to the decoder, nothing else does.

Owns how PNG, JPEG and WebP files are divided, how many parts one may have, and where its orientation is told. Texts,
thumbnails, Exif and XMP reach no decoder, so no bomb in them goes off. Decodes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MAX_PARTS = 20_000
"""Chunks or segments of a file: each costs microseconds and memory, and 32 MiB hold millions. A PNG of that size has
some thousand."""
MAX_SCANS = 100
"""Scans of a JPEG: each costs a pass over all pixels, and a few bytes. Progressive ones have about ten."""
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"acTL"})
EXIF = b"Exif\0\0"
BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION = 0x0112


class PartsRefused(ValueError):
    """The file is divided as no sound one is."""


@dataclass(frozen=True)
class Parts:
    """data: the file without what does not decide about pixels. orientation: 1 to 8, as Exif counts."""

    data: bytes
    orientation: int = 1


def parts_of(data: bytes) -> Parts:
    """What of a file the decoder needs; one of an unknown format comes back as it is. Raises PartsRefused."""
    if data.startswith(PNG):
        return _of_png(data)
    if data.startswith(JPEG):
        return _of_jpeg(data)
    if is_webp(data):
        return Parts(data, _webp_orientation(data))  # its decoder goes over chunks in C, and by itself reads no texts
    return Parts(data)


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


# --- PNG (third edition, section 5) ----------------------------------------------------------------------------------


def _of_png(data: bytes) -> Parts:
    if data[12:16] != b"IHDR":
        raise PartsRefused("the header is not the first chunk")
    kept, seen, orientation = [PNG], set(), 1
    for name, start, end in chunks(data, len(PNG), ">", tail=4):
        if name == b"eXIf":
            orientation = orientation_of(data[start + 8 : end - 4])
        if name in _PNG_KEPT and (name == b"IDAT" or name not in seen):
            kept.append(data[start:end])
        seen.add(name)
        if name == b"IEND":
            break
    return Parts(b"".join(kept), orientation)


def chunks(data: bytes, start: int, order: str, tail: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk; the last one may be cut short. tail: bytes behind the content."""
    size_at, name_at = (0, 4) if order == ">" else (4, 0)
    for _ in range(MAX_PARTS):
        if start + 8 > len(data):
            return
        (size,) = struct.unpack_from(f"{order}I", data, start + size_at)
        end = start + 8 + size + (tail if order == ">" else size % 2)
        yield data[start + name_at : start + name_at + 4], start, min(end, len(data))
        start = end
    raise PartsRefused(f"it has more than {MAX_PARTS} chunks")


# --- JPEG (ITU T.81, annex B) ----------------------------------------------------------------------------------------


def _of_jpeg(data: bytes) -> Parts:
    kept, orientation, has_exif = [data[:2]], 1, False
    for marker, start, end in segments(data):
        content = data[start + 4 : min(end, start + 4 + len(EXIF) + 12)]
        if marker == 0xE1 and content.startswith(EXIF) and not has_exif:
            orientation, has_exif = orientation_of(data[start + 4 : end]), True
        if marker == 0xDA:
            kept.append(_scans(data, start))
            return Parts(b"".join(kept), orientation)
        if _decides_about_pixels(marker, content):
            kept.append(data[start:end])
    raise PartsRefused("there is no picture in it")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the picture itself, and where that starts; what is between two
    segments is passed over, as decoders do."""
    at = 2
    for _ in range(MAX_PARTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # no marker; filling
            at += 1 + (marker == 0x00)
            continue
        if marker == 0xDA:
            yield marker, at, len(data)
            return
        bare = marker == 0x01 or 0xD0 <= marker <= 0xD9
        end = at + 2 if bare else at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield marker, at, min(end, len(data))
        at = max(end, at + 2)
    raise PartsRefused(f"it has more than {MAX_PARTS} segments")


def _decides_about_pixels(marker: int, content: bytes) -> bool:
    """All but texts and applications' own segments; of these JFIF's and Adobe's tell the kind of colours."""
    if marker == 0xE2:
        return content.startswith(b"ICC_PROFILE\0")
    return marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _scans(data: bytes, start: int) -> bytes:
    """The picture itself, to its end; what some cameras put behind that is another one, or a film."""
    end = data.find(b"\xff\xd9", start)
    picture = data[start:] if end < 0 else data[start : end + 2]
    if picture.count(b"\xff\xda") > MAX_SCANS:
        raise PartsRefused(f"it has more than {MAX_SCANS} scans")
    return picture


# --- WebP (RFC 9649) and Exif ----------------------------------------------------------------------------------------


def is_lossless(data: bytes) -> bool:
    """True for a PNG, and for a WebP whose pixels are kept as they were."""
    if is_webp(data):
        return any(name == b"VP8L" for name, _, _ in chunks(data, 12, "<", tail=0))
    return data.startswith(PNG)


def _webp_orientation(data: bytes) -> int:
    for name, start, end in chunks(data, 12, "<", tail=0):
        if name == b"EXIF":
            return orientation_of(data[start + 8 : end])
    return 1


def orientation_of(exif: bytes) -> int:
    """1 to 8 of an Exif block (TIFF 6.0, section 2); 1, upright, where it tells nothing readable."""
    exif = exif.removeprefix(EXIF)
    order = BYTE_ORDERS.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
