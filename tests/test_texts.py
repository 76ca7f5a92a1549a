"""The texts in picture files: what is read of them, and what is not, however it was made."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.parts import MAX_PARTS, PartsRefused
from app.texts import MAX_TEXT_BYTES, texts_of
from tests.hostile_pictures import corpus
from tests.http_kit import encoded, png
from workers.pictures import encode_picture

RECIPE = {
    **{"prompt": "un café 🍎", "negative_prompt": None, "num_inference_steps": 3, "sampler": "ddim", "seed": 4},
    **{"noise_schedule": "default", "guidance_scale": 1.5, "width": 8, "height": 8, "model": "first"},
    "model_digest": "d" * 64,
}
PICTURE = Image.new("RGB", (8, 8))


def with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    data = png(8, 8)
    made = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return data[:33] + made + data[33:]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_lines_for_other_tools_are_found_in_every_file_of_ours(output_format) -> None:
    file = encode_picture(np.zeros((8, 8, 3), np.uint8), output_format, RECIPE)
    assert texts_of(file.data)["parameters"].startswith("un café 🍎\nSteps: 3, Sampler: DDIM")


def test_every_kind_of_text_in_a_png_is_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "café")
    info.add_text("packed", "a" * 5000, zip=True)
    info.add_itxt("wide", "🍎", "en", "wide")
    info.add_itxt("wide and packed", "🍎" * 500, zip=True)
    texts = {"plain": "café", "packed": "a" * 5000, "wide": "🍎", "wide and packed": "🍎" * 500}
    assert texts_of(encoded(PICTURE, pnginfo=info)) == texts


@pytest.mark.parametrize(
    ("prefix", "text"),
    [(b"UNICODE\0", "Steps: 3".encode("utf-16-be")), (b"UNICODE\0", "Steps: 3".encode("utf-16"))]
    + [(b"ASCII\0\0\0", b"Steps: 3"), (b"\0" * 8, b"Steps: 3\0\0")],
)
def test_comments_are_read_in_every_encoding(prefix: bytes, text: bytes) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = prefix + text
    assert texts_of(encoded(PICTURE, "JPEG", exif=exif)) == {"parameters": "Steps: 3"}


def test_files_without_texts_have_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (png(), encoded(PICTURE, "JPEG"), encoded(PICTURE, "JPEG", exif=exif), encoded(PICTURE, "WEBP"), b""):
        assert texts_of(data) == {}


def test_what_unpacks_to_too_much_ends_the_reading() -> None:
    bomb = b"bomb\0\0" + zlib.compress(bytes(2 * MAX_TEXT_BYTES), 9)
    damaged = b"damaged\0\0" + zlib.compress(b"a" * 999)[:-9]
    for chunk in (bomb, b"damaged\0\0" + b"no zlib"):
        assert texts_of(with_chunks((b"tEXt", b"first\0text"), (b"zTXt", chunk), (b"tEXt", b"last\0text"))) == {
            "first": "text"
        }
    assert "first" in texts_of(with_chunks((b"tEXt", b"first\0text"), (b"zTXt", damaged)))
    long = b"x" * (MAX_TEXT_BYTES // 2 + 1)
    assert set(texts_of(with_chunks((b"tEXt", b"one\0" + long), (b"tEXt", b"two\0" + long)))) == {"one"}
    with pytest.raises(PartsRefused):
        texts_of(with_chunks(*[(b"tEXt", b"k\0v")] * (MAX_PARTS + 1)))


SMALL = [hostile for hostile in corpus() if "gigabyte" not in hostile.name]
"""Their pixels, which others take seconds to make, are not looked at here."""


@pytest.mark.parametrize("hostile", SMALL, ids=lambda hostile: hostile.name)
def test_no_file_is_a_fault_of_ours(hostile) -> None:
    try:
        texts = texts_of(hostile.make())
    except PartsRefused:
        return
    assert sum(map(len, texts.values())) <= MAX_TEXT_BYTES


def test_every_cut_of_a_file_is_read_as_far_as_it_goes() -> None:
    for output_format in ("png", "jpeg", "webp"):
        data = encode_picture(np.zeros((8, 8, 3), np.uint8), output_format, RECIPE).data
        for end in range(len(data)):
            texts_of(data[:end])
