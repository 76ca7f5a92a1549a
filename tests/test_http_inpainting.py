"""POST /generate for inpainting: masks of every kind, sizes, defaults, and what is refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import redis
from PIL import Image

from app.schemas import INPAINTING_EXAMPLE
from app.uploads import MaskConvention, read_mask
from models.region import Box
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, FakeWorker, encoded, is_untouched, png, serving
from tests.test_http_errors import animated, assert_problem
from workers.store import LocalStore

pytestmark = pytest.mark.asyncio

WIDTH, HEIGHT = 112, 96
BOX = Box(40, 24, 60, 32)


@pytest.fixture
def worker(redis_client: redis.Redis, store: LocalStore) -> FakeWorker:
    fake = FakeWorker(redis_client, store)
    fake.publish(ENTRY.model_copy(update={"tasks": ("text-to-image", "image-to-image", "inpainting")}))
    return fake


def selected() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[BOX.top : BOX.bottom, BOX.left : BOX.right] = True
    return mask


def grey_mask(drawn: int = 255, kept: int = 0) -> Image.Image:
    return Image.fromarray(np.where(selected(), drawn, kept).astype(np.uint8))


def rgba_mask(drawn: tuple[int, ...], kept: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(selected()[..., None], np.uint8(drawn), np.uint8(kept)).astype(np.uint8))


def text_of(picture: Image.Image | bytes) -> str:
    return base64.b64encode(picture if isinstance(picture, bytes) else encoded(picture)).decode()


def body_of(mask: Image.Image | bytes | None = None, **changes: Any) -> dict[str, Any]:
    body = {"task": "inpainting", "prompt": "a pear", "image": text_of(png(WIDTH, HEIGHT))}
    if mask is not None:
        body["mask_image"] = text_of(mask)
    return body | changes


PALETTE = grey_mask().convert("P")
MASKS: list[tuple[str, Image.Image | bytes, MaskConvention]] = [
    ("grey", grey_mask(), "auto"),
    ("grey in the middle", grey_mask(128, 127), "auto"),
    ("1-bit", grey_mask().convert("1"), "auto"),
    ("palette", PALETTE, "auto"),
    ("RGB", grey_mask().convert("RGB"), "auto"),
    ("JPEG", encoded(grey_mask().convert("RGB"), "JPEG", quality=95, subsampling=0), "auto"),
    ("lossless WebP", encoded(grey_mask().convert("RGB"), "WEBP", lossless=True), "auto"),
    ("opaque RGBA", rgba_mask((255, 255, 255, 255), (0, 0, 0, 255)), "auto"),
    ("nearly opaque RGBA", rgba_mask((255, 255, 255, 254), (0, 0, 0, 254)), "auto"),
    ("a hole, as in OpenAI's API", rgba_mask((9, 9, 9, 0), (200, 100, 0, 255)), "auto"),
    ("a hole in white", rgba_mask((255, 255, 255, 0), (255, 255, 255, 255)), "auto"),
    ("grey and a hole", rgba_mask((9, 9, 9, 0), (200, 100, 0, 255)).convert("LA"), "transparent"),
    ("white strokes on nothing", rgba_mask((255, 255, 255, 255), (255, 255, 255, 0)), "white"),
    ("black in white", grey_mask(0, 255), "black"),
    ("dark grey in light grey", grey_mask(127, 128), "black"),
    ("a hole in white, where black counts", rgba_mask((255, 255, 255, 0), (255, 255, 255, 255)), "black"),
    ("white strokes on transparent black", rgba_mask((255, 255, 255, 255), (0, 0, 0, 0)), "white"),
]


@pytest.mark.parametrize(("mask", "convention"), [case[1:] for case in MASKS], ids=[case[0] for case in MASKS])
async def test_every_kind_of_mask_selects_the_same_pixels(
    mask: Image.Image | bytes, convention: MaskConvention
) -> None:
    upload = read_mask(mask if isinstance(mask, bytes) else encoded(mask), 10**6, convention)
    stored = Image.open(io.BytesIO(upload.png))
    assert stored.mode == "L"
    assert np.array_equal(np.asarray(stored), selected() * np.uint8(255))
    assert (upload.width, upload.height, upload.box) == (WIDTH, HEIGHT, BOX)


async def test_a_rotated_jpeg_mask_is_turned_like_a_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90 degrees clockwise puts it right
    turned = grey_mask().transpose(Image.Transpose.ROTATE_90)
    upload = read_mask(encoded(turned, "JPEG", quality=95, exif=exif), 10**6)
    assert (upload.width, upload.height, upload.box) == (WIDTH, HEIGHT, BOX)


async def test_picture_and_mask_are_stored_and_every_default_is_told(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json=body_of(grey_mask()))).json()
    request = job["request"]
    assert request["task"] == "inpainting"
    assert (request["strength"], request["mask_blur"], request["padding_mask_crop"]) == (1.0, 4, None)
    assert (request["width"], request["height"]) == (WIDTH, HEIGHT)
    assert [request[f"outpaint_{side}"] for side in ("left", "top", "right", "bottom")] == [0, 0, 0, 0]
    for name, mode in (("image", "RGB"), ("mask_image", "L")):
        stored = Image.open(io.BytesIO(store.get(job["id"], request[name].replace("sha256:", "") + ".png")))
        assert (stored.mode, stored.size) == (mode, (WIDTH, HEIGHT))


async def test_the_example_of_the_documentation_is_accepted(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json=INPAINTING_EXAMPLE)
    assert answer.status_code == 202, answer.text


async def test_every_way_to_send_a_mask_gives_the_same_request(redis_url, store, worker) -> None:
    mask = encoded(grey_mask())
    form = {"task": "inpainting", "prompt": "a pear", "seed": "1", "mask_blur": "7", "padding_mask_crop": "16"}
    files = {"image": ("a.png", png(WIDTH, HEIGHT)), "mask_image": ("m.png", mask)}
    common = {"seed": 1, "mask_blur": 7, "padding_mask_crop": 16}
    async with serving(redis_url, store) as client:
        by_form = (await client.post("/generate", data=form, files=files)).json()["request"]
        by_text = (await client.post("/generate", json=body_of(mask, **common))).json()["request"]
        url = f"data:image/png;base64,{text_of(mask)}"
        by_url = (await client.post("/generate", json=body_of(**common, mask_image=url))).json()["request"]
        again = (await client.post("/generate", json=by_text)).json()["request"]
    assert by_form == by_text == by_url == again


async def test_without_a_mask_the_transparency_of_the_picture_is_drawn(redis_url, store, worker) -> None:
    holed = encoded(rgba_mask((9, 9, 9, 0), (200, 100, 0, 255)))
    async with serving(redis_url, store) as client:
        sent = (await client.post("/generate", json=body_of(image=text_of(holed), seed=1))).json()["request"]
        same = (await client.post("/generate", json=body_of(grey_mask(), seed=1))).json()["request"]
        again = (await client.post("/generate", json=sent)).json()["request"]
    assert sent["mask_image"] == same["mask_image"]
    assert again == sent, "the stored picture has lost its transparency; the mask beside it has not"


async def test_without_a_mask_only_what_is_added_is_drawn(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        request = (await client.post("/generate", json=body_of(outpaint_left=30, outpaint_bottom=9))).json()["request"]
    assert request["mask_image"] is None
    assert (request["width"], request["height"]) == (144, 112), "its own size, rounded up"


async def test_transparency_and_what_is_added_are_drawn_together(redis_url, store, worker) -> None:
    holed = encoded(rgba_mask((9, 9, 9, 0), (200, 100, 0, 255)))
    async with serving(redis_url, store) as client:
        body = body_of(image=text_of(holed), outpaint_left=30)
        request = (await client.post("/generate", json=body)).json()["request"]
    assert request["mask_image"] is not None
    assert request["outpaint_left"] == 30


async def test_a_stored_mask_counts_by_its_white_whatever_the_convention(redis_url, store, worker) -> None:
    holed = rgba_mask((9, 9, 9, 0), (200, 100, 0, 255))
    async with serving(redis_url, store) as client:
        first = (await client.post("/generate", json=body_of(holed, mask_convention="transparent"))).json()["request"]
        again = body_of(mask_image=first["mask_image"], mask_convention="transparent")
        assert (await client.post("/generate", json=again)).json()["request"]["mask_image"] == first["mask_image"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (112, 96)),
        ({"padding_mask_crop": 0}, (200, 80)),  # 20 x 8 pixels, enlarged to the area of 128 x 128
        ({"padding_mask_crop": 64}, (112, 96)),
        ({"padding_mask_crop": 30}, (144, 112)),  # 80 x 62 pixels, less than half of it
        ({"width": 192, "height": 64}, (192, 64)),
        ({"width": 192}, (192, 168)),
        ({"padding_mask_crop": 20, "height": 96}, (120, 96)),
    ],
)
async def test_the_canvas_follows_what_the_network_is_to_see(redis_url, store, worker, asked, expected) -> None:
    async with serving(redis_url, store) as client:
        request = (await client.post("/generate", json=body_of(grey_mask(), **asked))).json()["request"]
    assert (request["width"], request["height"]) == expected


async def test_a_mask_of_another_tenant_is_unknown(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        request = (await client.post("/generate", json=body_of(grey_mask()), headers=ALICE)).json()["request"]
        own = {**body_of(), "mask_image": request["mask_image"]}
        document = assert_problem(await client.post("/generate", json=own, headers=BOB), "upload_unknown")
    assert document.errors is not None
    assert document.errors[0].pointer == "/mask_image"


HOLED_BLACK = rgba_mask((0, 0, 0, 255), (0, 0, 0, 255))
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("no mask", body_of(), "mask_missing", "/mask_image"),
    ("a black mask", body_of(grey_mask(0, 0)), "mask_empty", "/mask_image"),
    ("an opaque mask", body_of(HOLED_BLACK, mask_convention="transparent"), "mask_empty", "/mask_image"),
    ("no alpha at all", body_of(grey_mask(), mask_convention="transparent"), "mask_empty", "/mask_image"),
    ("a smaller mask", body_of(png(WIDTH, HEIGHT - 1, (255, 255, 255))), "mask_size_mismatch", "/mask_image"),
    ("no base64", body_of(mask_image="not base64!"), "image_not_base64", "/mask_image"),
    ("an empty mask", body_of(mask_image=""), "image_not_base64", "/mask_image"),
    ("a GIF", body_of(encoded(grey_mask(), "GIF")), "image_format_unsupported", "/mask_image"),
    ("half a mask", body_of(encoded(Image.effect_noise((WIDTH, HEIGHT), 90))[:-900]), "image_broken", "/mask_image"),
    ("an animated mask", body_of(animated("WEBP")), "image_animated", "/mask_image"),
    ("a deep mask", body_of(encoded(Image.new("I;16", (8, 8)))), "image_mode_unsupported", "/mask_image"),
    ("a huge mask", body_of(encoded(Image.new("L", (9000, 9000)))), "image_too_large", "/mask_image"),
    ("an unknown digest", body_of(mask_image=f"sha256:{'0' * 64}"), "upload_unknown", "/mask_image"),
    ("a number for a mask", body_of(mask_image=7), "field_invalid", "/mask_image"),
    ("no picture", {"task": "inpainting", "prompt": "a pear"}, "field_invalid", "/image"),
    ("an unknown convention", body_of(grey_mask(), mask_convention="grey"), "field_invalid", "/mask_convention"),
    ("a negative blur", body_of(grey_mask(), mask_blur=-1), "field_invalid", "/mask_blur"),
    ("a wide blur", body_of(grey_mask(), mask_blur=65), "field_invalid", "/mask_blur"),
    ("a negative padding", body_of(grey_mask(), padding_mask_crop=-1), "field_invalid", "/padding_mask_crop"),
    ("a negative border", body_of(outpaint_left=-1), "field_invalid", "/outpaint_left"),
    ("an endless border", body_of(outpaint_top=4097), "field_invalid", "/outpaint_top"),
    ("a huge answer", body_of(outpaint_top=4096, outpaint_right=4095), "image_too_large", "/outpaint_top"),
    (
        "an answer too wide for its format",
        body_of(image=text_of(png(16384, 8)), outpaint_top=8, output_format="webp"),
        "size_invalid",
        "/output_format",
    ),
    ("strength 0", body_of(grey_mask(), strength=0), "field_invalid", "/strength"),
    ("no step", body_of(grey_mask(), strength=0.01), "steps_out_of_range", "/strength"),
    ("a mask elsewhere", {**body_of(grey_mask()), "task": "image-to-image"}, "field_unknown", "/mask_image"),
]


@pytest.mark.parametrize(("body", "code", "pointer"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_a_bad_mask_gets_its_code_and_leaves_nothing(redis_url, store, worker, body, code, pointer) -> None:
    async with serving(redis_url, store, max_upload_pixels=4_000_000) as client:
        document = assert_problem(await client.post("/generate", json=body), code)
    assert document.errors is not None
    assert document.errors[0].pointer == pointer
    assert is_untouched(worker.client, store)


async def test_a_third_file_is_refused(redis_url, store, worker) -> None:
    files = {name: (f"{name}.png", png(8, 8)) for name in ("image", "mask_image", "third")}
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", data={"task": "inpainting", "prompt": "a pear"}, files=files)
    assert_problem(answer, "multipart_invalid")
    assert is_untouched(worker.client, store)


async def test_a_model_that_only_inpaints_draws_nothing_from_text(redis_url, store, worker) -> None:
    worker.publish(ENTRY.model_copy(update={"tasks": ("inpainting",)}))
    async with serving(redis_url, store) as client:
        assert_problem(await client.post("/generate", json={"prompt": "a pear"}), "task_unavailable")
        assert (await client.post("/generate", json=body_of(grey_mask()))).status_code == 202
