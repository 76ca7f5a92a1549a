"""Picture files: the pixels, the recipe beside them, and the recipe as other programs read it."""

from __future__ import annotations

import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from app.recipes import find_recipe
from models.request import MAX_SEED, ImageToImageRequest, TextToImageRequest
from models.samplers import NOISE_SCHEDULES, SAMPLERS
from workers.contract import CONTRACT_VERSION, Making, Provenance
from workers.pictures import (
    digest_of_pixels,
    encode_picture,
    infotext,
    preview_bytes,
    recipe_of,
)
from workers.titles import SAMPLER_TITLES, SCHEDULE_TITLES

DIGEST = hashlib.sha256(b"weights").hexdigest()
PROVENANCE = Provenance(
    model_digest=DIGEST,
    pixels_sha256=hashlib.sha256(b"pixels").hexdigest(),
    made_with=Making(contract="strict", hardware="cpu", dtype="float32", software={"torch": "2.13.0"}),
)
FORMATS = ["png", "jpeg", "webp"]
PROMPTS = {
    "plain": "a red apple",
    "commas and colons": "a red apple, on a table: still life, (8k:1.2)",
    "newlines": "a red apple\n\non a table\nat noon",
    "quotes": "an \"apple\", as they say, in 'quotes' \\ and backslashes",
    "emoji": "une pomme 🍎 rouge, 赤いりんご",
    "latin-1": "ein Äpfelchen für zwölf",
    "empty": "",
    "words of the format": "Steps: 3, a stairway",
}


def pixels(width: int = 40, height: int = 24) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def request_for(prompt: str = "a red apple", **changes: object) -> TextToImageRequest:
    values = {
        "model": "first",
        "prompt": prompt,
        "width": 40,
        "height": 24,
        "num_inference_steps": 20,
        "guidance_scale": 7.0,
        "sampler": "euler_ancestral",
        "noise_schedule": "default",
        "seed": 1,
        "num_images": 2,
    }
    return TextToImageRequest.model_validate(values | changes)


def parse_infotext(text: str) -> dict[str, str]:
    """What another program does with the text: the last line is pairs, the lines above are the two prompts."""
    *lines, last = text.split("\n")
    pairs = re.findall(r'\s*([\w ]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)', last)
    fields = {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}
    start = next((number for number, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines))
    fields["prompt"] = "\n".join(lines[:start])
    fields["negative"] = "\n".join(lines[start:]).removeprefix("Negative prompt: ")
    return fields


def texts_of(data: bytes) -> dict[str, str]:
    """Both texts of a file, by Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.format == "PNG":
            return dict(image.text)
        exif = image.getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"UNICODE\0")
        return {"denoised": exif[0x010E], "parameters": comment[8:].decode("utf-16-be")}


@pytest.mark.parametrize(
    ("output_format", "media_type", "extension"),
    [("png", "image/png", "png"), ("jpeg", "image/jpeg", "jpg"), ("webp", "image/webp", "webp")],
)
def test_a_file_has_the_picture_and_says_what_it_is(output_format, media_type: str, extension: str) -> None:
    file = encode_picture(pixels(), output_format, recipe_of(request_for(), 0, PROVENANCE))
    assert (file.media_type, file.extension) == (media_type, extension)
    with Image.open(io.BytesIO(file.data)) as image:
        assert Image.MIME[image.format] == media_type
        assert (image.size, image.mode) == ((40, 24), "RGB")
        decoded = np.asarray(image).astype(int)
    if output_format == "jpeg":
        assert np.abs(decoded - pixels()).mean() < 8
    else:
        assert np.array_equal(decoded, pixels())


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_recipe_comes_back_whole_whatever_the_prompt(output_format, prompt: str) -> None:
    request = request_for(prompt, negative_prompt=prompt or None)
    file = encode_picture(pixels(), output_format, recipe_of(request, 1, PROVENANCE))
    recipe = find_recipe(file.data)
    assert recipe is not None
    assert recipe["model_digest"] == DIGEST
    assert recipe["contract_version"] == CONTRACT_VERSION
    told = {name: recipe[name] for name in Provenance.model_fields}
    assert Provenance.model_validate(told) == PROVENANCE
    again = {name: value for name, value in recipe.items() if name not in {*told, "contract_version"}}
    assert TextToImageRequest.model_validate(again) == request.model_copy(update={"seed": 2, "num_images": 1})


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_other_programs_read_the_parameters(output_format, prompt: str) -> None:
    request = request_for(prompt, negative_prompt="blurry, text", model="studio, large: v2", sampler="dpmpp_2m")
    file = encode_picture(pixels(), output_format, recipe_of(request, 0, PROVENANCE))
    assert parse_infotext(texts_of(file.data)["parameters"]) == {
        "prompt": prompt,
        "negative": "blurry, text",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Schedule type": "Automatic",
        "CFG scale": "7",
        "Seed": "1",
        "Size": "40x24",
        "Model hash": DIGEST[:10],
        "Model": "studio, large: v2",
        "Version": "denoised",
    }


def test_the_parameters_have_the_well_known_form_to_the_letter() -> None:
    request = ImageToImageRequest.model_validate(
        request_for(negative_prompt="blurry", guidance_scale=7.5, noise_schedule="trailing").model_dump(
            exclude={"task"}
        )
        | {"image": "sha256:" + "0" * 64, "strength": 0.6}
    )
    assert infotext(recipe_of(request, 0, PROVENANCE)) == (
        "a red apple\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 7.5, Seed: 1, Size: 40x24, "
        f"Model hash: {DIGEST[:10]}, Model: first, Denoising strength: 0.6, Version: denoised"
    )


@pytest.mark.parametrize("negative", [None, ""])
def test_no_negative_prompt_means_no_line_for_it(negative: str | None) -> None:
    assert "Negative" not in infotext(recipe_of(request_for(negative_prompt=negative), 0, PROVENANCE))


def test_text_beyond_latin_1_goes_into_an_international_chunk_and_other_text_does_not() -> None:
    def chunks(prompt: str) -> list[bytes]:
        data = encode_picture(pixels(), "png", recipe_of(request_for(prompt), 0, PROVENANCE)).data
        return re.findall(rb"(tEXt|iTXt)(?:parameters|denoised)\0", data)

    assert chunks(PROMPTS["latin-1"]) == [b"tEXt", b"tEXt"]
    assert chunks(PROMPTS["emoji"]) == [b"iTXt", b"tEXt"]


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_same_request_gives_the_same_bytes_and_another_seed_does_not(output_format) -> None:
    first, again, other = (
        encode_picture(pixels(), output_format, recipe_of(request_for(PROMPTS["emoji"], seed=seed), 0, PROVENANCE)).data
        for seed in (5, 5, 6)
    )
    assert first == again != other


def test_the_json_is_canonical_and_has_the_request_and_what_decides_about_pixels() -> None:
    text = texts_of(encode_picture(pixels(), "png", recipe_of(request_for(), 0, PROVENANCE)).data)["denoised"]
    recipe = json.loads(text)
    assert text == json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    assert set(recipe) == set(TextToImageRequest.model_fields) | set(Provenance.model_fields) | {"contract_version"}


def test_the_digest_of_pixels_tells_sizes_apart() -> None:
    one = np.zeros((2, 6, 3), np.uint8)
    assert digest_of_pixels(one) == hashlib.sha256(b"6x2\n" + bytes(36)).hexdigest()
    assert digest_of_pixels(one) != digest_of_pixels(one.reshape(6, 2, 3))
    turned = pixels().transpose(1, 0, 2)
    assert digest_of_pixels(turned) == digest_of_pixels(turned.copy())


def test_seeds_wrap_as_the_request_says() -> None:
    assert recipe_of(request_for(seed=MAX_SEED), 1, PROVENANCE)["seed"] == 0


@pytest.mark.parametrize("output_format", FORMATS)
def test_characters_that_no_text_field_can_hold_do_no_harm(output_format) -> None:
    whole = {**recipe_of(request_for(), 0, PROVENANCE), "prompt": "nul \0"}
    assert find_recipe(encode_picture(pixels(), output_format, whole).data) == whole
    recipe = {**whole, "prompt": "nul \0 and half a pair \ud800"}
    data = encode_picture(pixels(), output_format, recipe).data
    assert parse_infotext(texts_of(data)["parameters"])["prompt"] == "nul \ufffd and half a pair ?"


@pytest.mark.parametrize(("length", "is_kept"), [(10_000, True), (40_000, True), (100_000, False)])
def test_an_endless_prompt_in_a_jpeg_leaves_out_what_does_not_fit(length: int, is_kept: bool) -> None:
    recipe = recipe_of(request_for("x" * length), 0, PROVENANCE)
    assert find_recipe(encode_picture(pixels(), "jpeg", recipe).data) == (recipe if is_kept else None)
    for lossless in ("png", "webp"):
        assert find_recipe(encode_picture(pixels(), lossless, recipe).data) == recipe


def test_every_sampler_and_noise_schedule_has_a_title() -> None:
    assert set(SAMPLERS) <= set(SAMPLER_TITLES)
    assert set(NOISE_SCHEDULES) == set(SCHEDULE_TITLES)
    assert len(set(SAMPLER_TITLES.values())) == len(SAMPLER_TITLES)


def plain(image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, image_format, **options)
    return buffer.getvalue()


def with_text(text: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = text
    return plain("JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        plain("PNG"),
        plain("JPEG"),
        plain("WEBP"),
        plain("GIF"),
        with_text("a holiday"),
        with_text("[1, 2]"),
        with_text('{"prompt": "not ours"}'),
        with_text("[" * 50_000),
        with_text("{}")[:60],
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\x01\x86\xa0" * 2 + b"\x08\x02\0\0\0\x6a\x81\x2d\x0f",
    ],
    ids=lambda data: data[:12].hex() + str(len(data)),
)
def test_other_files_have_no_recipe(data: bytes) -> None:
    assert find_recipe(data) is None


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_cut_anywhere_is_read_or_refused_quietly(output_format) -> None:
    recipe = recipe_of(request_for(), 0, PROVENANCE)
    data = encode_picture(pixels(), output_format, recipe).data
    assert find_recipe(data) == recipe
    assert all(find_recipe(data[:end]) in (None, recipe) for end in range(0, len(data), 7))


def test_a_preview_is_a_small_picture_without_a_recipe() -> None:
    data = preview_bytes(pixels())
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("WEBP", (40, 24))
    assert find_recipe(data) is None
    assert len(data) < len(encode_picture(pixels(), "webp", recipe_of(request_for(), 0, PROVENANCE)).data)


@pytest.mark.parametrize("wrong", [pixels().astype(np.float32), pixels()[..., 0], pixels().transpose(2, 0, 1)])
def test_anything_but_rgb_bytes_is_a_bug(wrong: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="This is a bug"):
        preview_bytes(wrong)
