"""The metadata of our files as a program reads it that has nothing to do with us: sd-parsers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from models.request import ImageToImageRequest
from tests.test_pictures import DIGEST, FORMATS, PROMPTS, PROVENANCE, pixels, request_for
from workers.pictures import encode_picture, recipe_of

sd_parsers = pytest.importorskip("sd_parsers")


Read = Callable[[bytes], Any]


@pytest.fixture(scope="module")
def read() -> Read:
    """What it finds in a file. It knows a picture that it has just read by the address of the object, so none of them
    may go before all are read."""
    kept: list[Image.Image] = []

    def read_file(data: bytes) -> Any:
        kept.append(Image.open(io.BytesIO(data)))
        return sd_parsers.ParserManager().parse(kept[-1])

    return read_file


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_another_program_reads_what_was_drawn_and_with_what(output_format, prompt: str, read: Read) -> None:
    request = request_for(prompt, negative_prompt="blurry, text", sampler="dpmpp_2m", noise_schedule="karras", seed=99)
    found = read(encode_picture(pixels(), output_format, recipe_of(request, 0, PROVENANCE)).data)
    assert found.generator.value == "AUTOMATIC1111"
    assert (found.full_prompt, found.full_negative_prompt) == (prompt, "blurry, text")
    (sampler,) = found.samplers
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ("DPM++ 2M", "first", DIGEST[:10])
    assert sampler.parameters == {"scheduler": "Karras", "cfg_scale": "7", "seed": "99", "steps": "20"}
    assert found.metadata == {"Size": "40x24", "Version": "denoised"}


@pytest.mark.parametrize("output_format", FORMATS)
def test_another_program_reads_what_one_task_has_and_others_have_not(output_format, read: Read) -> None:
    fields = request_for(negative_prompt=None).model_dump(exclude={"task"})
    request = ImageToImageRequest.model_validate(fields | {"image": "sha256:" + "0" * 64, "strength": 0.6})
    found = read(encode_picture(pixels(), output_format, recipe_of(request, 0, PROVENANCE)).data)
    assert (found.full_prompt, found.full_negative_prompt) == ("a red apple", "")
    assert found.metadata["Denoising strength"] == "0.6"
