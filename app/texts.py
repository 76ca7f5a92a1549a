"""The texts that a picture file has beside its pixels, such as what it was drawn with.

Owns where PNG, JPEG and WebP files keep them, and how much of them is read: a few bytes can stand for gigabytes.
Decodes no pixels and knows nothing of what the texts mean.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from app.parts import BYTE_ORDERS, EXIF, JPEG, PNG, chunks, is_webp, segments

MAX_TEXT_BYTES = 2**20
"""Of all texts of a file together; what exceeds it is passed over."""
PARAMETERS = "parameters"
"""The name by which a PNG file has the text that JPEG and WebP files have as a comment of the user."""
DESCRIPTION = "ImageDescription"
"""The text of an Exif block that has our recipe, and in files of others whatever they say of the picture."""
_IMAGE_DESCRIPTION, _EXIF_FOLDER, _USER_COMMENT = 0x010E, 0x8769, 0x9286
_UNICODE = b"UNICODE\0"


def texts_of(data: bytes) -> dict[str, str]:
    """Name -> text; empty for a file that has none or is no picture. Raises PartsRefused."""
    if data.startswith(PNG):
        return _bounded(_texts_of_png(data))
    if is_webp(data):
        blocks = [data[start + 8 : end] for name, start, end in chunks(data, 12, "<", tail=0) if name == b"EXIF"]
    elif data.startswith(JPEG):
        contents = (data[start + 4 : end] for marker, start, end in segments(data) if marker == 0xE1)
        blocks = [content for content in contents if content.startswith(EXIF)]
    else:
        return {}
    return _bounded(_texts_of_exif(blocks[0].removeprefix(EXIF))) if blocks else {}


def _bounded(texts: Iterator[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    size = 0
    for name, text in texts:
        size += len(text)
        if size > MAX_TEXT_BYTES:
            break
        found.setdefault(name, text)
    return found


def _texts_of_png(data: bytes) -> Iterator[tuple[str, str]]:
    """PNG, third edition, section 11.3.3: tEXt, zTXt and iTXt."""
    for kind, start, end in chunks(data, len(PNG), ">", tail=4):
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        keyword, _, rest = data[start + 8 : end - 4].partition(b"\0")
        is_compressed, encoding = kind == b"zTXt", "latin-1"
        if kind == b"iTXt":
            is_compressed, encoding = rest[:1] == b"\1", "utf-8"
            rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated keyword
        elif is_compressed:
            rest = rest[1:]
        content = _inflated(rest) if is_compressed else rest
        if content is None:
            return
        yield keyword.decode("latin-1"), content.decode(encoding, "replace")


def _inflated(data: bytes) -> bytes | None:
    """None where the text is damaged or too long: no others are looked at, each would cost as much."""
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        return None
    return None if reader.unconsumed_tail else content


def _texts_of_exif(exif: bytes) -> Iterator[tuple[str, str]]:
    """TIFF 6.0, section 2; Exif 2.3, section 4.6.5. Ends where something cannot be read."""
    order = BYTE_ORDERS.get(exif[:4])
    if order is None:
        return
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        if entry := _entry(exif, order, start, _IMAGE_DESCRIPTION):
            yield DESCRIPTION, _content(exif, entry).decode("utf-8", "replace").rstrip("\0")
        folder = _entry(exif, order, start, _EXIF_FOLDER)
        if folder and (entry := _entry(exif, order, folder[1], _USER_COMMENT)):
            yield PARAMETERS, _user_comment(_content(exif, entry))
    except struct.error:
        return


def _content(exif: bytes, entry: tuple[int, int]) -> bytes:
    count, offset = entry
    return exif[offset : offset + min(count, 2 * MAX_TEXT_BYTES)]


def _user_comment(content: bytes) -> str:
    if not content.startswith(_UNICODE):
        return content[8:].decode("utf-8", "replace").strip("\0 ")
    has_mark = content[8:10] in (b"\xff\xfe", b"\xfe\xff")
    return content[8:].decode("utf-16" if has_mark else "utf-16-be", "replace").strip("\0 ")


def _entry(exif: bytes, order: str, start: int, wanted: int) -> tuple[int, int] | None:
    """Count and value, or offset of the values, of a tag in the folder at `start`."""
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, length, value = struct.unpack_from(f"{order}HHII", exif, at)
        if tag == wanted:
            return length, value
    return None
