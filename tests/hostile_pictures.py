"""Files that mean harm, or that nobody thought of, made by code: what an upload can be at its worst.

Owns the corpus: each file under its name, with the codes that may answer it. None of them is larger than MAX_BYTES.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image, ImageCms

from tests.http_kit import encoded

MAX_BYTES = 8_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF = b"Exif\0\0"

ACCEPTED = ""
BROKEN, FORMAT, LARGE = "image_broken", "image_format_unsupported", "image_too_large"
ANIMATED, MODE = "image_animated", "image_mode_unsupported"


class Hostile(NamedTuple):
    """make: builds the file. answers: codes that may refuse it; ACCEPTED when a job may come of it."""

    name: str
    make: Callable[[], bytes]
    answers: tuple[str, ...]


def corpus() -> list[Hostile]:
    """All of it, the same at every call."""
    return [*bombs(), *crowds(), *cut_short(), *disguises(), *bad_chunks(), *oddities(), *exif_blocks(), *harmless()]


# --- building blocks -------------------------------------------------------------------------------------------------


def noise(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 90).convert(mode)


def chunk(name: bytes, data: bytes = b"", crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png_of(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def idat(data: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(data, 9))


def rows(width: int, height: int, channels: int = 3) -> bytes:
    return (b"\0" + bytes(width * channels)) * height


def png_with(*chunks: bytes) -> bytes:
    """A sound picture with these between header and pixels."""
    return png_of(header(8, 8), *chunks, idat(rows(8, 8)))


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_with(*segments: bytes, **options: Any) -> bytes:
    data = encoded(noise(), "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def canvas(width: int, height: int, flags: int = 0) -> bytes:
    return riff_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def tiff(*entries: tuple[int, int, int, int], order: str = "<", start: int = 8) -> bytes:
    """An Exif block of (tag, type, count, value)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(
        struct.pack(f"{order}HHI", *entry[:3])
        + struct.pack(
            f"{order}HH" if entry[1] == 3 else f"{order}I", *((entry[3], 0) if entry[1] == 3 else (entry[3],))
        )
        for entry in entries
    )
    return mark + struct.pack(f"{order}IH", start, len(entries)) + body + bytes(4)


# --- what is much larger inside than outside ------------------------------------------------------------------------


def bombs() -> Iterator[Hostile]:
    large = (LARGE,)
    for side in (2**31 - 1, 100_000, 20_000):
        yield Hostile(f"PNG of {side} x {side}", lambda side=side: png_of(header(side, side), idat(bytes(99))), large)
    yield Hostile("PNG of 1 x 2^31", lambda: png_of(header(1, 2**31 - 1), idat(bytes(99))), large)
    yield Hostile("PNG of 2^32 - 1", lambda: png_of(header(2**32 - 1, 2**32 - 1), idat(b"")), (LARGE, BROKEN))
    yield Hostile("interlaced PNG of 50,000", lambda: png_of(header(50_000, 50_000, interlaced=1), idat(b"")), large)
    yield Hostile("1-bit PNG of 200,000", lambda: png_of(header(200_000, 200_000, 1, 0), idat(bytes(10**6))), large)
    yield Hostile("PNG that is large indeed", lambda: encoded(Image.new("L", (9000, 9000))), large)
    yield Hostile("JPEG of 65,500 x 65,500", lambda: resized_jpeg(65_500, 65_500), large)
    yield Hostile("progressive JPEG of 65,500", lambda: resized_jpeg(65_500, 65_500, progressive=True), large)
    yield Hostile("WebP canvas of 16 million", lambda: riff(canvas(2**24, 2**24), riff_chunk(b"VP8 ", b"")), large)
    yield Hostile("lossless WebP of 16,384", lambda: riff(riff_chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f")), large)
    yield Hostile("lossy WebP of 16,383", lambda: riff(riff_chunk(b"VP8 ", vp8_header(16_383, 16_383))), large)
    yield Hostile("WebP whose frame exceeds its canvas", frame_beyond_its_canvas, (BROKEN, LARGE))
    yield Hostile("WebP behind an unknown chunk", webp_behind_junk, (BROKEN, LARGE))
    yield Hostile("PNG of 8 x 8 with half a gigabyte", lambda: png_of(header(8, 8), idat_of(2**29)), (ACCEPTED, BROKEN))
    yield Hostile("text bomb", lambda: png_with(text_bomb(b"zTXt")), (ACCEPTED, BROKEN))
    yield Hostile("1,000 text bombs", lambda: png_with(*[text_bomb(b"zTXt", 2**20)] * 1000), (ACCEPTED, BROKEN))
    yield Hostile("1,000 profile bombs", lambda: png_with(*[text_bomb(b"iCCP", 2**20)] * 1000), (ACCEPTED, BROKEN))
    yield Hostile("profile bomb", lambda: png_with(text_bomb(b"iCCP")), (BROKEN,))
    yield Hostile(
        "international text bomb", lambda: png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + packed(2**26))), (ACCEPTED,)
    )
    yield Hostile("GIF of 65,535", lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), (FORMAT,))
    yield Hostile("TIFF of 2^31", lambda: tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31)), (FORMAT,))
    yield Hostile("ICO with a PNG of 100,000", lambda: icon(png_of(header(100_000, 100_000), idat(b""))), (FORMAT,))
    yield Hostile("BMP of 2^31", lambda: b"BM" + bytes(12) + struct.pack("<III", 40, 2**31 - 1, 2**31 - 1), (FORMAT,))


def resized_jpeg(width: int, height: int, **options: Any) -> bytes:
    """A small JPEG whose header tells another size."""
    data = bytearray(encoded(noise(), "JPEG", **options))
    at = data.index(b"\xff\xc2" if options else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def vp8_header(width: int, height: int) -> bytes:
    return b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(64)


def frame_beyond_its_canvas() -> bytes:
    return riff(canvas(16, 16), riff_chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(64)))


def webp_behind_junk() -> bytes:
    return riff(riff_chunk(b"JUNK", bytes(16)), riff_chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(64)))


def packed(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def idat_of(size: int) -> bytes:
    return chunk(b"IDAT", packed(size))


def text_bomb(name: bytes, size: int = 2**26) -> bytes:
    return chunk(name, b"Comment\0\0" + packed(size))


def icon(picture: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(picture), 22) + picture


# --- what has far too many parts --------------------------------------------------------------------------------------


def crowds() -> Iterator[Hostile]:
    yield Hostile("PNG of 500,000 private chunks", lambda: png_with(chunk(b"prVt") * 500_000), (BROKEN,))
    yield Hostile("PNG of 500,000 texts", lambda: png_with(chunk(b"tEXt", b"a\0b") * 400_000), (BROKEN,))
    yield Hostile("PNG of 300,000 empty IDATs", lambda: png_with(chunk(b"IDAT") * 300_000), (BROKEN,))
    yield Hostile("JPEG of 1,500,000 segments", lambda: jpeg_with(segment(0xE5) * 1_500_000), (BROKEN,))
    yield Hostile("JPEG of 1,500,000 comments", lambda: jpeg_with(segment(0xFE) * 1_500_000), (BROKEN,))
    yield Hostile("JPEG with megabytes of filling", lambda: jpeg_with(b"\xff" * 6_000_000), (BROKEN,))
    yield Hostile(
        "JPEG with 100 segments of Exif", lambda: jpeg_with(segment(0xE1, EXIF + bytes(65_000)) * 100), (ACCEPTED,)
    )
    yield Hostile(
        "JPEG with megabytes of XMP", lambda: jpeg_with(segment(0xE1, XMP + b" " * 65_000) * 100), (ACCEPTED,)
    )
    yield Hostile("JPEG of 2,000 scans", many_scans, (BROKEN,))
    yield Hostile("JPEG of 2,000 scans behind a false end", lambda: many_scans(segment(0xFE, b"\xff\xd9")), (BROKEN,))
    yield Hostile("WebP of 300,000 chunks", lambda: riff(canvas(8, 8), riff_chunk(b"JUNK", b"") * 300_000), (BROKEN,))
    yield Hostile("animated PNG of 3,000 frames", lambda: animated("PNG", 300), (ANIMATED,))
    yield Hostile("animated WebP of 3,000 frames", lambda: animated("WEBP", 3000), (ANIMATED,))
    yield Hostile("animated GIF of 3,000 frames", lambda: animated("GIF", 3000), (FORMAT,))
    yield Hostile(
        "PNG that promises 2^31 frames",
        lambda: png_with(chunk(b"acTL", struct.pack(">II", 2**31, 0))),
        (ANIMATED, BROKEN, ACCEPTED),
    )


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>"


def many_scans(between: bytes = b"") -> bytes:
    """A progressive JPEG with the last scan again and again."""
    data = encoded(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + between + data[last:end] * 2000 + data[end:]


def animated(kind: str, frames: int) -> bytes:
    pictures = [Image.new("RGB", (4, 4), (index % 256, index // 256, 99)) for index in range(frames)]
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


# --- what ends too early ----------------------------------------------------------------------------------------------


def cut_short() -> Iterator[Hostile]:
    sound = {
        "PNG": encoded(noise()),
        "interlaced PNG": png_of(header(8, 8, interlaced=1), idat(bytes(1000))),
        "JPEG": encoded(noise(), "JPEG"),
        "progressive JPEG": encoded(noise(), "JPEG", progressive=True),
        "WebP": encoded(noise(), "WEBP"),
        "WebP with alpha": encoded(noise(mode="RGBA"), "WEBP", lossless=True),
    }
    for name, data in sound.items():
        places = {
            *range(4, 48, 3),
            len(data) - 1,
            len(data) - 2,
            len(data) - 13,
            *(len(data) * n // 12 for n in range(1, 12)),
        }
        for place in sorted(place for place in places if 0 < place < len(data)):
            yield Hostile(f"{name} cut at {place}", lambda d=data, at=place: d[:at], (BROKEN, FORMAT, ACCEPTED))


# --- what is something else than it says ------------------------------------------------------------------------------


def disguises() -> Iterator[Hostile]:
    page = b"<html><script>alert(1)</script></html>"
    for name, start in {
        "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) run\n",
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "AVIF": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
        "ZIP": b"PK\3\4",
        "HTML": page,
        "ELF": b"\x7fELF\2\1\1",
        "pickle": b"\x80\x04\x95",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "PSD": b"8BPS\0\1",
        "FLIF": b"FLIF",
        "MPO without its first picture": b"\xff\xd8\xfe",
        "WAVE": b"RIFF\x24\0\0\0WAVEfmt ",
    }.items():
        yield Hostile(name, lambda start=start: start + bytes(200), (FORMAT,))
    yield Hostile("HTML behind a PNG's signature", lambda: SIGNATURE + page, (BROKEN,))
    yield Hostile("PDF behind a PNG's signature", lambda: SIGNATURE + b"%PDF-1.7" + bytes(99), (BROKEN,))
    yield Hostile("JPEG behind a PNG's signature", lambda: SIGNATURE + encoded(noise(), "JPEG"), (BROKEN,))
    yield Hostile("PNG behind a JPEG's marker", lambda: b"\xff\xd8\xff" + encoded(noise()), (BROKEN,))
    yield Hostile("PNG inside a WebP", lambda: riff(encoded(noise())), (BROKEN,))
    yield Hostile("PNG and ZIP in one", lambda: encoded(noise()) + zipped(), (ACCEPTED,))
    yield Hostile("JPEG and ZIP in one", lambda: encoded(noise(), "JPEG") + zipped(), (ACCEPTED,))
    yield Hostile("PNG with a page in its text", lambda: png_with(chunk(b"tEXt", b"Comment\0" + page)), (ACCEPTED,))
    yield Hostile("JPEG with a page as its comment", lambda: jpeg_with(segment(0xFE, page)), (ACCEPTED,))
    yield Hostile("PNG with a line ending changed", lambda: encoded(noise()).replace(b"\r\n", b"\n", 1), (FORMAT,))


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil.sh", "rm -rf /" * 100)
    return stream.getvalue()


# --- what is put together wrongly -------------------------------------------------------------------------------------


def bad_chunks() -> Iterator[Hostile]:
    pixels = idat(rows(8, 8))
    broken = (BROKEN,)
    yield Hostile("PNG without a header", lambda: png_of(pixels), broken)
    yield Hostile("PNG whose pixels come first", lambda: png_of(pixels, header(8, 8)), broken)
    yield Hostile("PNG without pixels", lambda: png_of(header(8, 8)), broken)
    yield Hostile(
        "PNG with a wrong checksum of its header", lambda: png_of(header(8, 8)[:-4] + bytes(4), pixels), broken
    )
    yield Hostile(
        "PNG with a wrong checksum of pixels", lambda: png_of(header(8, 8), pixels[:-4] + bytes(4)), (BROKEN, ACCEPTED)
    )
    yield Hostile(
        "PNG with two headers", lambda: png_of(header(8, 8), header(30_000, 30_000), pixels), (ACCEPTED, *broken, LARGE)
    )
    yield Hostile(
        "PNG with a header behind its pixels",
        lambda: png_of(header(8, 8), pixels, header(9**5, 9**5)),
        (ACCEPTED, BROKEN),
    )
    yield Hostile("PNG with a short header", lambda: png_of(chunk(b"IHDR", bytes(5)), pixels), broken)
    yield Hostile(
        "PNG with a chunk of 4 GiB", lambda: SIGNATURE + header(8, 8) + b"\xff\xff\xff\xffIDAT" + bytes(99), broken
    )
    yield Hostile(
        "PNG with a chunk of 2 GiB", lambda: SIGNATURE + header(8, 8) + b"\x7f\xff\xff\xfftEXt" + bytes(99), broken
    )
    yield Hostile(
        "PNG with a palette behind its pixels",
        lambda: png_of(header(8, 8, 8, 3), idat(rows(8, 8, 1)), chunk(b"PLTE", bytes(9))),
        (ACCEPTED, BROKEN),
    )
    yield Hostile(
        "PNG that lacks its palette", lambda: png_of(header(8, 8, 8, 3), idat(rows(8, 8, 1))), (ACCEPTED, BROKEN)
    )
    yield Hostile(
        "PNG with half a colour",
        lambda: png_of(header(8, 8, 8, 3), chunk(b"PLTE", bytes(4)), idat(rows(8, 8, 1))),
        (ACCEPTED, BROKEN),
    )
    yield Hostile(
        "PNG with a huge palette",
        lambda: png_of(header(8, 8, 8, 3), chunk(b"PLTE", bytes(3 * 10**6)), idat(rows(8, 8, 1))),
        (ACCEPTED, BROKEN),
    )
    yield Hostile(
        "PNG with a huge transparency",
        lambda: png_of(header(8, 8, 8, 3), chunk(b"PLTE", bytes(9)), chunk(b"tRNS", bytes(10**6)), idat(rows(8, 8, 1))),
        (ACCEPTED, BROKEN),
    )
    yield Hostile("PNG with a short transparency", lambda: png_with(chunk(b"tRNS", b"\0")), (ACCEPTED, BROKEN))
    for depth, colour in ((3, 2), (8, 5), (0, 0), (255, 255), (2, 6)):
        yield Hostile(
            f"PNG of depth {depth} and colour type {colour}",
            lambda d=depth, c=colour: png_of(header(8, 8, d, c), pixels),
            (BROKEN, MODE),
        )
    for width, height in ((0, 0), (0, 8), (8, 0)):
        yield Hostile(f"PNG of {width} x {height}", lambda w=width, h=height: png_of(header(w, h), pixels), broken)
        yield Hostile(
            f"JPEG of {width} x {height}",
            lambda w=width, h=height: resized_jpeg(w, h),
            (BROKEN, ACCEPTED) if width else broken,
        )
    yield Hostile("PNG whose stream is no stream", lambda: png_of(header(8, 8), chunk(b"IDAT", b"hello")), broken)
    yield Hostile(
        "PNG with an unknown row filter",
        lambda: png_of(header(8, 8), idat(b"\x09" + rows(8, 8)[1:])),
        (BROKEN, ACCEPTED),
    )
    yield Hostile("JPEG without tables", lambda: b"\xff\xd8" + resized_jpeg(8, 8)[158:], (BROKEN, FORMAT))
    yield Hostile(
        "JPEG with a second header",
        lambda: jpeg_with(segment(0xC0, b"\x08\x40\0\x40\0\x01\x01\x11\0")),
        (BROKEN, LARGE),
    )
    yield Hostile("JPEG with 12 bits", lambda: jpeg_with(segment(0xC1, b"\x0c\0\x08\0\x08\x01\x01\x11\0")), (BROKEN,))
    yield Hostile(
        "JPEG of two channels", lambda: jpeg_with(segment(0xC0, b"\x08\0\x08\0\x08\x02\x01\x11\0\x02\x11\0")), (BROKEN,)
    )
    yield Hostile(
        "JPEG with a segment that is longer than the file", lambda: jpeg_with(b"\xff\xe5\xff\xff")[:3000], (BROKEN,)
    )
    yield Hostile(
        "JPEG with junk between its segments", lambda: jpeg_with(segment(0xFE), b"junk\xff\0junk"), (ACCEPTED, BROKEN)
    )
    yield Hostile(
        "WebP with a negative size",
        lambda: b"RIFF\xff\xff\xff\xffWEBP" + encoded(noise(), "WEBP")[12:],
        (ACCEPTED, BROKEN),
    )
    yield Hostile("WebP with an empty chunk", lambda: riff(riff_chunk(b"VP8 ", b"")), broken)


# --- what is allowed and seldom ---------------------------------------------------------------------------------------


def oddities() -> Iterator[Hostile]:
    yield Hostile("16-bit RGB", lambda: png_of(header(8, 8, 16, 2), idat(rows(8, 8, 6))), (MODE,))
    yield Hostile("16-bit grey", lambda: png_of(header(8, 8, 16, 0), idat(rows(8, 8, 2))), (MODE,))
    yield Hostile("CMYK JPEG", lambda: encoded(Image.new("CMYK", (8, 8)), "JPEG"), (MODE,))
    yield Hostile("1 bit a pixel", lambda: encoded(noise(mode="1")), (MODE,))
    for name, profile in {
        "no profile": b"x",
        "an empty one": b"",
        "one of zeros": bytes(4096),
        "one cut short": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:200],
        "one with sizes out of range": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:128]
        + b"\xff" * 900,
        "one of another kind of colours": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        "one of ten megabytes": bytes(10_000_000),
    }.items():
        packed_profile = b"icc\0\0" + zlib.compress(profile)
        yield Hostile(
            f"PNG with {name} as its profile",
            lambda data=packed_profile: png_with(chunk(b"iCCP", data)),
            (ACCEPTED, BROKEN),
        )
        first = b"ICC_PROFILE\0\1\1" + profile[:65_000]
        yield Hostile(
            f"JPEG with {name} as its profile", lambda data=first: jpeg_with(segment(0xE2, data)), (ACCEPTED,)
        )
    yield Hostile(
        "JPEG with profile part 9 of 3", lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\x09\x03abc")), (ACCEPTED,)
    )
    yield Hostile(
        "JPEG with no number of its profile", lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0")), (ACCEPTED, BROKEN)
    )


def exif_blocks() -> Iterator[Hostile]:
    blocks: dict[str, bytes] = {
        **{f"orientation {value}": tiff((0x0112, 3, 1, value)) for value in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535)},
        "orientation 6, other end first": tiff((0x0112, 3, 1, 6), order=">"),
        "an orientation of 2^32": tiff((0x0112, 4, 1, 2**32 - 1)),
        "an orientation in words": tiff((0x0112, 2, 4, 0x36363636)),
        "two orientations": tiff((0x0112, 3, 2, 6), (0x0112, 3, 1, 3)),
        "its directory beyond its end": tiff((0x0112, 3, 1, 6), start=2**31),
        "its directory in itself": tiff((0x8769, 4, 1, 8), (0x0112, 3, 1, 6)),
        "65,535 entries and none": b"II*\0\x08\0\0\0\xff\xff",
        "a bomb of entries": tiff(*[(tag, 7, 50_000, 8) for tag in range(1, 4000)])[:65_000],
        "a fraction by zero": tiff((0x011A, 5, 1, 30), (0x0112, 3, 1, 6)) + bytes(8),
        "nothing": b"",
        "no block": b"hello",
    }
    for name, block in blocks.items():
        yield Hostile(f"JPEG with {name}", lambda block=block: jpeg_with(segment(0xE1, EXIF + block)), (ACCEPTED,))
        yield Hostile(f"PNG with {name}", lambda block=block: png_with(chunk(b"eXIf", block)), (ACCEPTED,))
        yield Hostile(f"WebP with {name}", lambda block=block: encoded(noise(), "WEBP", exif=EXIF + block), (ACCEPTED,))


def harmless() -> Iterator[Hostile]:
    """What must be drawn from, odd as it is."""
    drawn = (ACCEPTED,)
    yield Hostile("one pixel", lambda: encoded(noise(1, 1)), drawn)
    yield Hostile("one column", lambda: encoded(noise(1, 3000)), drawn)
    yield Hostile("one row as JPEG", lambda: encoded(noise(3000, 1), "JPEG"), drawn)
    yield Hostile("one row as WebP", lambda: encoded(noise(3000, 1), "WEBP"), drawn)
    for mode in ("L", "LA", "RGB", "RGBA", "P"):
        yield Hostile(f"mode {mode}", lambda mode=mode: encoded(noise(mode=mode)), drawn)
    yield Hostile(
        "a palette with transparency", lambda: encoded(noise(mode="P"), transparency=bytes(range(256))), drawn
    )
    yield Hostile("interlaced", lambda: png_of(header(1, 1, interlaced=1), idat(rows(1, 1))), drawn)
    yield Hostile("a progressive JPEG", lambda: encoded(noise(), "JPEG", progressive=True), drawn)
    yield Hostile("filling before a segment", lambda: jpeg_with(b"\xff\xff\xff"), drawn)
    yield Hostile("a film behind a JPEG", lambda: encoded(noise(), "JPEG") + b"\xff\xda" * 500, drawn)
