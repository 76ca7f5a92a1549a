"""Whatever is sent, the door answers with a request or with a Problem, never with another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.datastructures import Headers

from app.errors import Problem
from app.payload import read_payload
from app.resolve import Uploads, choose_model, parse_body, resolve
from app.schemas import InpaintingBody, TextToImageBody
from app.uploads import MaskUpload, Upload, read_mask, read_upload
from models.region import Box
from models.request import REQUEST_ADAPTER, TASKS, UpscaleRequest
from tests.http_kit import ENTRY, encoded

NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0, 8, 64, 128]))
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["euler", "lcm", "karras", "default", "first", "png", "a pear", "plain", "a1111", "white"]),
    st.lists(st.sampled_from(["<lora:", "ink", ":1", ">", " ", "(", ":1.2)", "a pear", "BREAK"])).map("".join),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.lists(NUMBERS, max_size=2))
NAMES = st.sampled_from(
    ["task", "prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "sampler"]
    + ["noise_schedule", "seed", "num_images", "output_format", "previews", "model", "priority", "image", "strength"]
    + ["prompt_syntax", "clip_skip", "guidance_rescale", "loras", "controls", "noise_level", "mask_image", "mask_blur"]
    + [
        "mask_convention",
        "reproducibility",
        "padding_mask_crop",
        "outpaint_left",
        "outpaint_top",
        "outpaint_right",
        "outpaint_bottom",
    ]
)
LORAS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["ink", "gold", "iron", ""])}, optional={"weight": NUMBERS}),
    max_size=3,
)
VALUES = st.one_of(SCALARS, LORAS)
BODIES = st.builds(
    lambda base, changes: {**base, **changes},
    st.sampled_from(
        [
            {"prompt": "a pear"},
            {"prompt": "a pear", "task": "image-to-image", "image": "AAAA"},
            {"prompt": "a pear", "task": "inpainting", "image": "AAAA", "mask_image": "AAAA"},
            {"task": "upscale", "image": "AAAA"},
        ]
    ),
    st.dictionaries(st.one_of(NAMES, st.text(max_size=8)), VALUES, max_size=5),
)
UPLOADS = st.builds(Upload, st.just(b""), st.just("0" * 64), st.integers(1, 16384), st.integers(1, 16384))
SOUND = [
    encoded(Image.effect_noise((24, 16), 90).convert(mode), kind)
    for mode, kind in (("RGB", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("RGBA", "WEBP"), ("L", "JPEG"))
]


def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the call returns, or the Problem it raises."""
    try:
        return call(*args, **kwargs)
    except Problem as problem:
        return problem


EVERY_TASK = ENTRY.model_copy(update={"tasks": TASKS, "upscale_factor": 4, "max_noise_level": 50})


def understand(body: dict[str, Any], upload: Upload, box: Box) -> Any:
    parsed = parse_body(body)
    entry = choose_model(parsed, {"first": EVERY_TASK}, None)
    if isinstance(parsed, TextToImageBody):
        return resolve(parsed, entry, Uploads())
    mask = MaskUpload(b"", "1" * 64, upload.width, upload.height, box)
    return resolve(parsed, entry, Uploads(upload, mask if isinstance(parsed, InpaintingBody) else None))


@settings(max_examples=600, deadline=None)
@given(body=BODIES, upload=UPLOADS, corners=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4))
def test_any_fields_become_a_request_within_the_limits_or_a_problem(
    body: dict[str, Any], upload: Upload, corners: tuple[float, float, float, float]
) -> None:
    left, right = sorted(int(corner * upload.width) for corner in corners[:2])
    top, bottom = sorted(int(corner * upload.height) for corner in corners[2:])
    request = attempt(understand, body, upload, Box(left, top, right + 1, bottom + 1))
    if isinstance(request, Problem):
        assert request.status == 422
        return
    if isinstance(request, UpscaleRequest):
        assert (request.width, request.height) == (4 * upload.width, 4 * upload.height)
        assert max(request.width, request.height) <= ENTRY.max_size
    else:
        for side in (request.width, request.height):
            assert ENTRY.min_size <= side <= ENTRY.max_size
            assert side % 8 == 0
    assert request.num_images * request.width * request.height <= ENTRY.max_pixels * ENTRY.max_images
    again = REQUEST_ADAPTER.validate_json(request.model_dump_json())
    assert again == request
    if not request.loras:
        assert request.prompt == body.get("prompt", "")


@settings(max_examples=150, deadline=None)
@given(body=st.one_of(st.binary(max_size=200), st.recursive(VALUES, st.lists).map(lambda v: json.dumps(v).encode())))
@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_any_bytes_become_fields_or_a_problem(content_type: str, body: bytes) -> None:
    payload = attempt(read_payload, Headers({"content-type": content_type}), body)
    if isinstance(payload, Problem):
        assert payload.status in (400, 415, 422)
        return
    assert len(payload.digest) == 64


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.sampled_from(SOUND),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    length=st.floats(0.02, 1),
)
def test_any_damage_to_a_picture_gives_an_upload_or_a_problem(
    data: bytes, changes: list[tuple[float, int]], length: float
) -> None:
    damaged = bytearray(data[: int(len(data) * length)])
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    for read in (read_upload, read_mask):
        upload = attempt(read, bytes(damaged), 10**6)
        if isinstance(upload, Problem):
            assert upload.code.startswith(("image_", "mask_"))
            continue
        assert upload.width * upload.height <= 10**6
