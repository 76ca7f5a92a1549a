"""The A1111 dialect: what its requests become, what it refuses, and what its unmodified clients get.

The first half runs in this process, with a stand-in for the worker; the second asks a real server with the `webuiapi`
package.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import copy
import io
import json
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import pytest_asyncio
import uvicorn
import webuiapi
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from redis.exceptions import ConnectionError as RedisConnectionError

from app.dialects.a1111 import bodies, extras, translate
from app.dialects.a1111.infotext import values_of
from app.errors import ERRORS
from app.main import create_app
from models.request import TASKS
from tests.http_kit import (
    ALICE,
    BOB,
    ENTRY,
    KEYS,
    FakeWorker,
    encoded,
    is_let_go,
    is_untouched,
    png,
    serving,
    settings_for,
)
from workers.board import JobBoard
from workers.contract import JobView, SamplerEntry, key
from workers.store import LocalStore

ROOT = "/sdapi/v1"
MODEL = ENTRY.model_copy(
    update={
        "tasks": tuple(task for task in TASKS if task != "upscale"),
        "samplers": (
            *ENTRY.samplers,
            SamplerEntry(name="euler_ancestral", description="Euler a", noise_schedules=("default",), max_steps=999),
        ),
        "sampler_aliases": {**ENTRY.sampler_aliases, "euler_a": ("euler_ancestral", "default")},
        "upscalers": ("big",),
    }
)
OTHER = MODEL.model_copy(update={"name": "second", "digest": "e" * 64, "upscalers": ()})
UPSCALER = ENTRY.model_copy(
    update={"name": "big", "tasks": ("upscale",), "upscale_factor": 4, "max_pixels": 10**7, "max_size": 4096}
)


class Recorder(webuiapi.WebUIApi):  # type: ignore[misc]
    """What the package would send, without sending it."""

    def check_extensions(self) -> None:
        pass

    def post_and_get_api_result(self, url: str, json: dict[str, Any], use_async: bool) -> Any:
        return copy.deepcopy(json)


RECORDER = Recorder(baseurl="http://nowhere")


def base64_of(picture: Image.Image | bytes) -> str:
    return base64.b64encode(picture if isinstance(picture, bytes) else encoded(picture)).decode()


def picture_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def mask(box: tuple[int, int, int, int] = (16, 8, 32, 24), size: tuple[int, int] = (48, 32)) -> Image.Image:
    picture = Image.new("L", size)
    picture.paste(255, box)
    return picture


def txt2img(**changes: Any) -> dict[str, Any]:
    """All that the package sends for a prompt."""
    return RECORDER.txt2img(**{"prompt": "a pear", "width": 128, "height": 64, "alwayson_scripts": {}, **changes})


def img2img(**changes: Any) -> dict[str, Any]:
    always = {"images": [Image.open(io.BytesIO(png()))], "prompt": "a pear", "width": 128, "height": 64}
    return RECORDER.img2img(**{**always, "alwayson_scripts": {}, **changes})


@pytest_asyncio.fixture
async def client(redis_url: str, store: LocalStore, worker: FakeWorker) -> AsyncIterator[httpx2.AsyncClient]:
    for entry in (MODEL, OTHER, UPSCALER):
        worker.publish(entry)
    async with serving(redis_url, store) as client:
        yield client


async def drawn(client: httpx2.AsyncClient, worker: FakeWorker, path: str, body: Any) -> tuple[JobView, Any]:
    """The job that a call makes, and what it answers when the job is drawn."""
    call = asyncio.create_task(client.post(f"{ROOT}/{path}", json=body))
    waiting = asyncio.create_task(asyncio.to_thread(worker.next_job))
    done, _ = await asyncio.wait({call, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert waiting in done, call.result().text
    await asyncio.to_thread(worker.draw, waiting.result())
    answer = await call
    assert answer.status_code == 200, answer.text
    view = worker.board.get(waiting.result())
    assert view is not None
    return view, answer.json()


# --- what requests become --------------------------------------------------------------------------------------------

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "what the package sends",
        txt2img(seed=7),
        {"task": "text-to-image", "prompt": "a pear", "negative_prompt": None, "seed": 7, "width": 128, "height": 64}
        | {"sampler": "euler_ancestral", "noise_schedule": "default", "num_inference_steps": 20}
        | {"guidance_scale": 7.0, "num_images": 1, "clip_skip": 0, "upscaler": None, "prompt_syntax": "a1111"},
    ),
    (
        "what is left out is the model's",
        {"prompt": "a pear"},
        {"width": 128, "height": 128, "num_inference_steps": 20, "guidance_scale": 5.0, "sampler": "dpmpp_2m"},
    ),
    ("a negative prompt", txt2img(negative_prompt="blur"), {"negative_prompt": "blur"}),
    ("pictures are those of all batches", txt2img(batch_size=2, n_iter=2), {"num_images": 4}),
    ("a schedule in the sampler", txt2img(sampler_name="DPM++ 2M Karras"), {"noise_schedule": "karras"}),
    ("a schedule beside it", txt2img(sampler_name="Euler", scheduler="SGM Uniform"), {"noise_schedule": "trailing"}),
    ("a LoRA in the prompt", txt2img(prompt="a pear <lora:ink:0.5>"), {"loras": [{"name": "ink", "weight": 0.5}]}),
    (
        "settings of this request",
        txt2img(override_settings={"CLIP_stop_at_last_layers": 3, "sd_model_checkpoint": f"second [{'e' * 10}]"}),
        {"clip_skip": 2, "model": "second"},
    ),
    (
        "settings that are so already",
        txt2img(override_settings={"sd_vae": "Automatic", "eta_noise_seed_delta": 0, "sd_model_checkpoint": None}),
        {"model": "first"},
    ),
    (
        "enlarging without drawing over",
        txt2img(enable_hr=True, hr_scale=4, hr_upscaler="big", denoising_strength=0),
        {"upscaler": "big"},
    ),
    ("scripts that are switched off", txt2img(alwayson_scripts={"ADetailer": {"args": [False]}}), {"controls": []}),
    ("nothing but the prompt, all else null", dict.fromkeys(txt2img(), None) | {"prompt": "a pear"}, {"num_images": 1}),
    (
        "the example of the original's own pages",
        {"prompt": "a pear", "eta": 0, "s_noise": 0, "s_min_uncond": 0, "seed_resize_from_h": -1, "subseed": -1},
        {"prompt": "a pear"},
    ),
]
IMAGE_CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "a picture",
        img2img(denoising_strength=0.5),
        {"task": "image-to-image", "strength": 0.5, "width": 128, "height": 64},
    ),
    (
        "a mask, only what lies around it shown",
        img2img(mask_image=mask(), inpaint_full_res_padding=12, mask_blur=3),
        {"task": "inpainting", "padding_mask_crop": 12, "mask_blur": 3, "strength": 0.75, "width": 128},
    ),
    ("the whole picture shown", img2img(mask_image=mask(), inpaint_full_res=False), {"padding_mask_crop": None}),
    (
        "what lies under the mask forgotten",
        img2img(mask_image=mask(), inpainting_fill=2, denoising_strength=1),
        {"strength": 1.0},
    ),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [("txt2img", *case[1:]) for case in CASES] + [("img2img", *case[1:]) for case in IMAGE_CASES],
    ids=[case[0] for case in CASES + IMAGE_CASES],
)
async def test_a_request_becomes_a_job_of_ours(
    client: httpx2.AsyncClient, worker: FakeWorker, path: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    view, answer = await drawn(client, worker, path, body)
    request = view.record.submission.request.model_dump(mode="json")
    assert {name: request[name] for name in expected} == expected
    assert view.record.submission.dialect == "a1111"
    assert len(answer["images"]) == request["num_images"]


@pytest.mark.asyncio
@pytest.mark.parametrize("invert", [0, 1])
async def test_the_mask_can_be_inverted(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore, invert: int
) -> None:
    body = img2img(mask_image=mask(), inpainting_mask_invert=invert)
    view, _ = await drawn(client, worker, "img2img", body)
    request: Any = view.record.submission.request
    stored = Image.open(io.BytesIO(store.get(view.record.id, request.mask_image.removeprefix("sha256:") + ".png")))
    assert np.array_equal(np.asarray(stored) == 255, (np.asarray(mask()) == 255) != bool(invert))


@pytest.mark.asyncio
async def test_a_unit_of_controlnet_is_a_control(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    units = [
        webuiapi.ControlNetUnit(
            image=Image.open(io.BytesIO(png())), model="edges [0123abcd]", weight=0.5, guidance_end=0.8
        ),
        webuiapi.ControlNetUnit(enabled=False),
    ]
    view, _ = await drawn(client, worker, "txt2img", txt2img(controlnet_units=units))
    (control,) = view.record.submission.request.controls
    assert (control.name, control.weight, control.start, control.end) == ("edges", 0.5, 0.0, 0.8)


@pytest.mark.asyncio
async def test_the_answer_says_what_was_sent_and_what_was_drawn(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    body = txt2img(batch_size=2)
    view, answer = await drawn(client, worker, "txt2img", body)
    info = json.loads(answer["info"])
    seed = view.record.submission.request.seed
    assert answer["parameters"] == body
    assert info["all_seeds"] == [seed, seed + 1]
    assert (info["seed"], info["sampler_name"], info["sd_model_name"]) == (seed, "Euler a", "first")
    assert [picture_of(text).size for text in answer["images"]] == [(128, 64)] * 2
    assert info["job"] == view.record.id


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["img2img", "extra-single-image"])
async def test_who_waits_for_a_picture_does_not_hold_the_one_that_was_sent(
    client: httpx2.AsyncClient, worker: FakeWorker, route: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    image = base64_of(encoded(Image.fromarray(noise), compress_level=0))
    body = {"prompt": "a pear", "init_images": [image]} if route == "img2img" else {"image": image, "upscaler_1": "big"}
    tracemalloc.start(6)
    try:
        call = asyncio.create_task(client.post(f"{ROOT}/{route}", json=body))
        job_id = await asyncio.to_thread(worker.next_job)
        assert await is_let_go(len(image) // 2)
    finally:
        tracemalloc.stop()
    await asyncio.to_thread(worker.draw, job_id)
    answer = (await call).json()
    if route == "img2img":
        assert len(answer["images"]) == 1
        assert answer["parameters"]["init_images"] is None


@pytest.mark.asyncio
async def test_pictures_are_left_out_where_none_are_wanted(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    view, answer = await drawn(client, worker, "txt2img", txt2img(send_images=False))
    assert answer["images"] == []
    assert json.loads(answer["info"])["seed"] == view.record.submission.request.seed


@pytest.mark.asyncio
@pytest.mark.parametrize("include", [True, False])
async def test_the_pictures_that_were_sent_come_back_on_demand(
    client: httpx2.AsyncClient, worker: FakeWorker, include: bool
) -> None:
    body = img2img(mask_image=mask(), include_init_images=include)
    _, answer = await drawn(client, worker, "img2img", body)
    expected = (body["init_images"], body["mask"]) if include else (None, None)
    assert (answer["parameters"]["init_images"], answer["parameters"]["mask"]) == expected


# --- what it refuses -------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[str, str, Any, str, str]] = [
    ("a field nobody knows", "txt2img", txt2img() | {"stepz": 3}, "field_unknown", "stepz"),
    ("a text for a number", "txt2img", txt2img(steps="20"), "field_invalid", "steps"),
    ("no prompt", "txt2img", txt2img(prompt=""), "prompt_empty", "prompt"),
    ("an unknown sampler", "txt2img", txt2img(sampler_name="DPM fast"), "sampler_unknown", "sampler_name"),
    ("an unknown schedule", "txt2img", txt2img(scheduler="Beta"), "noise_schedule_unknown", "scheduler"),
    ("a size beyond the model", "txt2img", txt2img(width=512), "size_invalid", "width"),
    ("too many pictures", "txt2img", txt2img(batch_size=3, n_iter=3), "num_images_out_of_range", "batch_size"),
    ("no pictures", "txt2img", txt2img(batch_size=-1, n_iter=-1), "field_invalid", "batch_size"),
    ("too many steps", "txt2img", txt2img(steps=5000), "steps_out_of_range", "steps"),
    ("a negative seed", "txt2img", txt2img(seed=-2), "field_invalid", "seed"),
    ("a negative guidance", "txt2img", txt2img(cfg_scale=-1.0), "field_invalid", "cfg_scale"),
    ("a style", "txt2img", txt2img(styles=["oil"]), "field_unsupported", "styles"),
    ("better faces", "txt2img", txt2img(restore_faces=True), "field_unsupported", "restore_faces"),
    ("edges that fit", "txt2img", txt2img(tiling=True), "field_unsupported", "tiling"),
    ("mixed seeds", "txt2img", txt2img(subseed_strength=0.3), "field_unsupported", "subseed_strength"),
    ("churn", "txt2img", txt2img(s_churn=1), "field_unsupported", "s_churn"),
    ("another eta", "txt2img", txt2img(eta=0.5), "field_unsupported", "eta"),
    ("a script", "txt2img", txt2img(script_name="X/Y/Z plot"), "field_unsupported", "script_name"),
    (
        "an extension",
        "txt2img",
        txt2img(adetailer=[webuiapi.ADetailer()]),
        "field_unsupported",
        "alwayson_scripts/ADetailer",
    ),
    (
        "a map to be made",
        "txt2img",
        txt2img(controlnet_units=[webuiapi.ControlNetUnit(module="canny", model="edges")]),
        "field_unsupported",
        "alwayson_scripts/ControlNet/args/0/module",
    ),
    (
        "an unknown ControlNet",
        "txt2img",
        txt2img(controlnet_units=[webuiapi.ControlNetUnit(model="poses")]),
        "control_unknown",
        "alwayson_scripts/0",
    ),
    (
        "a word in a unit that nobody knows",
        "txt2img",
        txt2img(alwayson_scripts={"controlnet": {"args": [{"modell": "edges"}]}}),
        "field_unknown",
        "alwayson_scripts/controlnet/args/0/modell",
    ),
    ("an unknown upscaler", "txt2img", txt2img(enable_hr=True, hr_scale=4, denoising_strength=0), "upscaler_unknown",
     "hr_upscaler"),
    ("what is enlarged drawn over", "txt2img", txt2img(enable_hr=True, hr_scale=4), "field_unsupported",
     "denoising_strength"),
    ("enlarged twice", "txt2img", txt2img(enable_hr=True, denoising_strength=0), "field_unsupported", "hr_scale"),
    ("an unknown setting", "txt2img", txt2img(override_settings={"sd_vae": "pale"}), "field_unsupported",
     "override_settings/sd_vae"),
    ("an unknown model", "txt2img", txt2img(override_settings={"sd_model_checkpoint": "third"}), "model_unknown",
     "sd_model_checkpoint"),
    ("too many layers left out", "txt2img", txt2img(override_settings={"CLIP_stop_at_last_layers": 40}),
     "clip_skip_out_of_range", "CLIP_stop_at_last_layers"),
    ("no picture", "img2img", img2img(images=[]), "field_unsupported", "init_images"),
    ("two pictures", "img2img", img2img(images=[mask(), mask()]), "field_unsupported", "init_images"),
    ("a picture that is none", "img2img", img2img() | {"init_images": ["AAAA"]}, "image_format_unsupported",
     "init_images"),
    ("a mask that is none", "img2img", img2img() | {"mask": "%"}, "image_not_base64", "mask"),
    ("a mask of another size", "img2img", img2img(mask_image=mask(size=(40, 40))), "mask_size_mismatch", "mask"),
    ("a black mask", "img2img", img2img(mask_image=Image.new("L", (48, 32))), "mask_empty", "mask"),
    ("cropping", "img2img", img2img(resize_mode=1), "field_unsupported", "resize_mode"),
    ("another filling", "img2img", img2img(mask_image=mask(), inpainting_fill=3), "field_unsupported",
     "inpainting_fill"),
    ("no strength", "img2img", img2img(denoising_strength=0), "field_invalid", "denoising_strength"),
    ("a blur one way", "img2img", img2img(mask_image=mask()) | {"mask_blur_x": 9}, "field_unsupported", "mask_blur_x"),
    ("an unknown upscaler for a picture", "extra-single-image", {"image": base64_of(png()), "upscaler_1": "Lanczos"},
     "upscaler_unknown", "upscaler_1"),
    ("beyond the factor", "extra-single-image",
     {"image": base64_of(png()), "upscaler_1": "big", "upscaling_resize": 4.5}, "size_invalid", "upscaling_resize"),
    ("better faces in a picture", "extra-single-image", {"image": base64_of(png()), "gfpgan_visibility": 1},
     "field_unsupported", "gfpgan_visibility"),
    ("a broken picture in a batch", "extra-batch-images",
     {"imageList": [{"data": base64_of(png()), "name": "a"}, {"data": base64_of(png()[:-40]), "name": "b"}],
      "upscaler_1": "big"}, "image_broken", "imageList/1/data"),
    ("many pictures", "extra-batch-images",
     {"imageList": [{"data": base64_of(png()), "name": "a"}] * 5, "upscaler_1": "big"}, "num_images_out_of_range",
     "imageList"),
    ("no file", "png-info", {"image": "AAAA"}, "image_format_unsupported", "image"),
    ("an option that cannot be", "options", {"samples_format": "gif"}, "field_unsupported", "samples_format"),
    ("a model that is not there", "options", {"sd_model_checkpoint": "third"}, "model_unknown", "sd_model_checkpoint"),
    ("an upscaler to draw with", "options", {"sd_model_checkpoint": "big"}, "model_unknown", "sd_model_checkpoint"),
]  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "body", "code", "field"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
async def test_a_refusal_has_its_shape_and_names_its_fields(
    client: httpx2.AsyncClient,
    worker: FakeWorker,
    store: LocalStore,
    path: str,
    body: Any,
    code: str,
    field: str,
) -> None:
    answer = await client.post(f"{ROOT}/{path}", json=body)
    assert answer.json()["error"] == code, answer.text
    assert answer.status_code == ERRORS[code].status
    assert answer.json()["errors"].startswith(f"{field}: ")
    assert set(answer.json()) == {"error", "detail", "body", "errors", "request_id"}
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "code"),
    [
        ("POST", "txt2img", b"{", {"Content-Type": "application/json"}, "json_invalid"),
        ("POST", "txt2img", b"prompt=a", {"Content-Type": "text/plain"}, "content_type_unsupported"),
        ("POST", "txt2img", b"", {}, "content_type_unsupported"),
        ("GET", "txt2img", b"", {}, "method_not_allowed"),
        ("POST", "interrogate", b"", {}, "route_unknown"),
        ("GET", "progress?skip_current_image=perhaps", b"", {}, "field_invalid"),
    ],
)
async def test_what_is_no_request_is_refused_in_the_same_shape(
    client: httpx2.AsyncClient, method: str, path: str, content: bytes, headers: dict[str, str], code: str
) -> None:
    answer = await client.request(method, f"{ROOT}/{path}", content=content, headers=headers)
    assert answer.json()["error"] == code
    assert answer.status_code == ERRORS[code].status


def test_every_field_is_either_understood_or_passed_over_and_the_page_lists_it() -> None:
    page = Path("docs/a1111.md").read_text()
    known = {
        name
        for body in (bodies.TextToImage, bodies.ImageToImage, bodies.ExtraSingleImage, bodies.ControlUnit)
        for name in body.model_fields
    }
    assert [name for name in sorted(known | {"imageList"}) if f"`{name}`" not in page] == []
    fields = set(bodies.TextToImage.model_fields) | set(bodies.ImageToImage.model_fields)
    assert fields >= translate.PASSED_OVER
    assert set(bodies.Extras.model_fields) >= extras.PASSED_OVER
    refused = set(translate._ASKS_FOR_NOTHING)
    assert not refused & translate.PASSED_OVER
    source = Path(translate.__file__).read_text() + Path("app/dialects/a1111/routes.py").read_text()
    read = {name for name in fields if f"body.{name}" in source or f'"{name}"' in source}
    assert fields - read - refused - translate.PASSED_OVER == set()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
VALUES = JUNK | st.sampled_from([base64_of(png()), [base64_of(png())], {"ControlNet": {"args": [{}]}}, 0, 1, 2, "None"])
PATHS: dict[str, list[str]] = {
    "txt2img": sorted(bodies.TextToImage.model_fields),
    "img2img": sorted(bodies.ImageToImage.model_fields),
    "extra-single-image": sorted(bodies.ExtraSingleImage.model_fields),
    "extra-batch-images": sorted(bodies.ExtraBatchImages.model_fields),
    "png-info": ["image"],
    "options": ["sd_model_checkpoint", "live_previews_enable", "samples_format"],
}


@pytest.mark.asyncio
async def test_junk_is_refused_or_answered_but_never_a_fault_of_ours(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    """A prompt is never sent, so that nothing is drawn; `None` enlarges nothing."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def send(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(PATHS)))
        names = [name for name in PATHS[path] if name not in ("prompt", "upscaler_1")]
        body = data.draw(st.dictionaries(st.sampled_from(names) | st.text(max_size=9), VALUES, max_size=5))
        call = client.post(f"{ROOT}/{path}", json=body)
        answer = asyncio.run_coroutine_threadsafe(call, loop).result(20)
        assert answer.status_code < 500, (path, body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"] in ERRORS
        else:
            assert path not in ("txt2img", "img2img")

    await asyncio.to_thread(send)
    assert is_untouched(worker.client, store)


# --- extras ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"upscaling_resize": 4}, (192, 128)),
        ({"upscaling_resize": 2}, (96, 64)),
        ({}, (96, 64)),
        ({"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100}, (100, 100)),
        (
            {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100, "upscaling_crop": False},
            (150, 100),
        ),
    ],
)
async def test_a_picture_is_enlarged_to_what_was_asked_for(
    client: httpx2.AsyncClient, worker: FakeWorker, changes: dict[str, Any], size: tuple[int, int]
) -> None:
    body = {"image": base64_of(png()), "upscaler_1": "big", **changes}
    view, answer = await drawn(client, worker, "extra-single-image", body)
    assert view.record.submission.request.task == "upscale"
    assert picture_of(answer["image"]).size == size
    assert "big" in answer["html_info"]


@pytest.mark.asyncio
async def test_a_picture_enlarged_by_nothing_stays_as_it_is(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    answer = await client.post(f"{ROOT}/extra-single-image", json={"image": base64_of(png()), "upscaler_1": "None"})
    assert np.array_equal(np.asarray(picture_of(answer.json()["image"])), np.asarray(Image.open(io.BytesIO(png()))))
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_when_one_picture_of_a_batch_fails_the_others_are_canceled(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    images = [{"data": base64_of(png(colour=(shade, 0, 0))), "name": str(shade)} for shade in (1, 2)]
    call = asyncio.create_task(
        client.post(f"{ROOT}/extra-batch-images", json={"imageList": images, "upscaler_1": "big"})
    )
    first = await asyncio.to_thread(worker.next_job)
    jobs: list[Any] = []
    while len(jobs) < 2:
        jobs = (await client.get("/jobs")).json()["jobs"]
    await asyncio.to_thread(worker.fail, first)
    assert (await call).json()["error"] == "job_failed"
    (other,) = {job["id"] for job in jobs} - {first}
    assert (await client.get(f"/jobs/{other}")).json()["status"] == "canceled"


@pytest.mark.asyncio
async def test_who_hangs_up_on_a_batch_has_all_of_it_canceled(client: httpx2.AsyncClient) -> None:
    app: Any = client._transport.app  # type: ignore[attr-defined]
    images = [{"data": base64_of(png(colour=(shade, 0, 0))), "name": str(shade)} for shade in (1, 2)]
    body = json.dumps({"imageList": images, "upscaler_1": "big"}).encode()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": f"{ROOT}/extra-batch-images", "headers": headers}

    async def send(_message: Any) -> None:
        pass

    call = asyncio.create_task(app({**scope, "query_string": b""}, messages.get, send))
    found: dict[str, str] = {}
    while len(found) < 2:
        found = await statuses(client, {})
    messages.put_nowait({"type": "http.disconnect"})
    await call
    assert set((await statuses(client, {})).values()) == {"canceled"}


@pytest.mark.asyncio
async def test_a_batch_that_redis_interrupts_leaves_nothing_to_be_drawn(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, count = JobBoard.submit, 0

    def cut_at_the_third(board: JobBoard, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise RedisConnectionError("The line is cut.")
        return submit(board, *args)

    monkeypatch.setattr(JobBoard, "submit", cut_at_the_third)
    images = [{"data": base64_of(png(colour=(shade, 0, 0)))} for shade in (1, 2, 3)]
    answer = await client.post(f"{ROOT}/extra-batch-images", json={"imageList": images, "upscaler_1": "big"})
    assert (answer.status_code, answer.json()["error"]) == (503, "redis_unavailable")
    assert list((await statuses(client, {})).values()) == ["canceled", "canceled"]


# --- whose jobs ------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def shared(redis_url: str, store: LocalStore, worker: FakeWorker) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server with keys."""
    for entry in (MODEL, OTHER, UPSCALER):
        worker.publish(entry)
    async with serving(redis_url, store, api_keys=KEYS) as client:
        yield client


async def called(client: httpx2.AsyncClient, who: dict[str, str], body: Any) -> tuple[asyncio.Task[Any], str]:
    """A call that waits, and its job."""
    before = set(await statuses(client, who))
    call = asyncio.create_task(client.post(f"{ROOT}/txt2img", json=body, headers=who))
    new: set[str] = set()
    while not new:
        assert not call.done(), call.result().text
        new = set(await statuses(client, who)) - before
    return call, new.pop()


async def statuses(client: httpx2.AsyncClient, who: dict[str, str]) -> dict[str, str]:
    return {job["id"]: job["status"] for job in (await client.get("/jobs", headers=who)).json()["jobs"]}


@pytest.mark.asyncio
async def test_interrupt_ends_the_calls_of_this_caller_and_nothing_else(
    shared: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    first, first_id = await called(shared, ALICE, txt2img())
    second, second_id = await called(shared, ALICE, txt2img())
    foreign, foreign_id = await called(shared, BOB, txt2img())
    native = (await shared.post("/generate", json={"prompt": "a pear"}, headers=ALICE)).json()["id"]
    await asyncio.to_thread(worker.claim, first_id)
    assert (await shared.post(f"{ROOT}/interrupt", headers=ALICE)).json() == {}
    for call in (first, second):
        assert (await call).status_code == 200
        assert (await call).json()["images"] == []
        assert json.loads((await call).json()["info"])["all_seeds"] == []
    assert await statuses(shared, ALICE) == {first_id: "canceled", second_id: "canceled", native: "queued"}
    assert await statuses(shared, BOB) == {foreign_id: "queued"}
    await asyncio.to_thread(worker.draw, foreign_id)
    assert len((await foreign).json()["images"]) == 1


@pytest.mark.asyncio
async def test_skip_ends_the_call_that_runs(shared: httpx2.AsyncClient, worker: FakeWorker) -> None:
    running, running_id = await called(shared, ALICE, txt2img())
    await asyncio.to_thread(worker.claim, running_id)
    waiting, waiting_id = await called(shared, ALICE, txt2img())
    assert (await shared.post(f"{ROOT}/skip", headers=BOB)).json() is None
    assert (await statuses(shared, ALICE))[running_id] == "running"
    assert (await shared.post(f"{ROOT}/skip", headers=ALICE)).json() is None
    assert (await running).json()["images"] == []
    assert await statuses(shared, ALICE) == {running_id: "canceled", waiting_id: "queued"}
    await asyncio.to_thread(worker.draw, waiting_id)
    await waiting


@pytest.mark.asyncio
async def test_progress_is_that_of_this_callers_calls(shared: httpx2.AsyncClient, worker: FakeWorker) -> None:
    async def progress(who: dict[str, str], query: str = "") -> Any:
        return (await shared.get(f"{ROOT}/progress{query}", headers=who)).json()

    idle = await progress(ALICE)
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    call, job_id = await called(shared, ALICE, txt2img(override_settings={"live_previews_enable": True}))
    queued = await progress(ALICE)
    assert (queued["progress"], queued["state"]["job_count"], queued["textinfo"]) == (0.01, 1, "Waiting")
    await asyncio.to_thread(worker.claim, job_id)
    await asyncio.to_thread(worker.progress, job_id, 5, 20)
    await asyncio.to_thread(worker.preview, job_id, encoded(Image.new("RGB", (16, 16), "red"), "WEBP"))
    running = await progress(ALICE)
    assert (running["progress"], running["eta_relative"]) == (0.25, 1.5)
    assert (running["state"]["sampling_step"], running["state"]["sampling_steps"]) == (5, 20)
    preview = picture_of(running["current_image"])
    assert (preview.format, preview.size) == ("PNG", (16, 16))
    assert (await progress(ALICE, "?skip_current_image=true"))["current_image"] is None
    assert (await progress(BOB))["state"]["job_count"] == 0
    await asyncio.to_thread(worker.draw, job_id)
    await call
    assert (await progress(ALICE))["state"]["job_count"] == 0


@pytest.mark.asyncio
async def test_the_model_that_a_caller_sets_holds_for_that_caller(
    shared: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    async def model_of(who: dict[str, str]) -> str:
        return (await shared.get(f"{ROOT}/options", headers=who)).json()["sd_model_checkpoint"]

    everything = (await shared.get(f"{ROOT}/options", headers=ALICE)).json()
    wanted = {**everything, "sd_model_checkpoint": "second", "live_previews_enable": True}
    assert (await shared.post(f"{ROOT}/options", json=wanted, headers=ALICE)).json() is None
    assert await model_of(ALICE) == f"second [{'e' * 10}]"
    assert await model_of(BOB) == f"first [{'d' * 10}]"
    assert worker.client.ttl(key("choices", "alice")) > 0
    call, job_id = await called(shared, ALICE, txt2img())
    job = (await shared.get(f"/jobs/{job_id}", headers=ALICE)).json()["request"]
    assert (job["model"], job["previews"]) == ("second", True)
    await asyncio.to_thread(worker.draw, job_id)
    await call
    worker.client.hdel(key("catalogue"), "second")
    gone = (await shared.post(f"{ROOT}/txt2img", json=txt2img(), headers=ALICE)).json()
    assert (gone["error"], gone["errors"][:20]) == ("model_unknown", "sd_model_checkpoint:")
    assert await model_of(ALICE) == f"first [{'d' * 10}]"
    await shared.post(f"{ROOT}/options", json={"sd_model_checkpoint": "first"}, headers=ALICE)
    _, job_id = await called(shared, ALICE, txt2img())
    await shared.post(f"{ROOT}/interrupt", headers=ALICE)


@pytest.mark.asyncio
async def test_there_is_nothing_to_ask_before_a_worker_has_told_its_models(redis_client, redis_url, store) -> None:
    async with serving(redis_url, store) as client:
        assert (await client.get(f"{ROOT}/sd-models")).json() == []
        for path in ("options", "samplers"):
            answer = await client.get(f"{ROOT}/{path}")
            assert (answer.status_code, answer.json()["error"]) == (503, "no_worker")
            assert answer.headers["Retry-After"]


@pytest.mark.asyncio
async def test_open_webui_gets_what_it_reads(shared: httpx2.AsyncClient, worker: FakeWorker) -> None:
    """Its health check, its switch of the model and its call, in its order, with its header."""
    anybody = base64.b64encode(b"admin:" + ALICE["Authorization"].removeprefix("Bearer ").encode()).decode()
    header = {"authorization": f"Basic {anybody}"}
    assert (await shared.get(f"{ROOT}/options", headers={"authorization": "Basic "})).status_code == 401
    models = (await shared.get(f"{ROOT}/sd-models", headers=header)).json()
    assert [model["model_name"] for model in models] == ["first", "second"]
    options = (await shared.get(f"{ROOT}/options", headers=header)).json()
    options["sd_model_checkpoint"] = models[1]["title"]
    assert (await shared.post(f"{ROOT}/options", json=options, headers=header)).status_code == 200
    body = {"prompt": "a pear", "batch_size": 2, "width": 128, "height": 128, "steps": 9, "negative_prompt": "blur"}
    call, job_id = await called(shared, header, body)
    await asyncio.to_thread(worker.draw, job_id)
    answer = (await call).json()
    assert [picture_of(text).size for text in answer["images"]] == [(128, 128)] * 2
    assert json.loads(answer["info"])["sd_model_name"] == "second"


# --- the package, with keys ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The application's address, while it is served by a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_the_package_says_its_key_as_a_password(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    worker.publish(MODEL)
    alice = ALICE["Authorization"].removeprefix("Bearer ")
    app = create_app(settings_for(redis_url, store, api_keys=KEYS))
    with listening(app) as address, concurrent.futures.ThreadPoolExecutor(1) as pool:
        api = webuiapi.WebUIApi(baseurl=address + ROOT, username="alice", password=alice)
        call = pool.submit(api.txt2img, prompt="a pear", width=128, height=64)
        job_id = worker.next_job()
        worker.draw(job_id)
        assert call.result().image.size == (128, 64)
        view = worker.board.get(job_id)
        assert view is not None
        assert view.record.submission.tenant == "alice"
        stranger = webuiapi.WebUIApi(baseurl=address + ROOT, username="alice", password="a guess")
        with pytest.raises(RuntimeError, match="key_unknown"):
            stranger.txt2img(prompt="a pear")


# --- the package against a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(live_server: str) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=live_server + ROOT, steps=4)


@pytest.fixture(scope="module")
def pictures(api: webuiapi.WebUIApi) -> Any:
    """A batch of two."""
    return api.txt2img(prompt="a red apple", negative_prompt="blur", width=128, height=128, seed=5, batch_size=2)


def test_pictures_their_texts_and_their_seeds_agree(api: webuiapi.WebUIApi, pictures: Any) -> None:
    assert pictures.info["all_seeds"] == [5, 6]
    for picture, seed, text in zip(pictures.images, [5, 6], pictures.info["infotexts"], strict=True):
        assert picture.size == (128, 128)
        assert picture.info["parameters"] == text
        assert f"Seed: {seed}," in text
    told = api.png_info(pictures.images[1])
    assert told.info == pictures.info["infotexts"][1]
    assert json.loads(told.json["items"]["denoised"])["seed"] == 6
    expected = {"Prompt": "a red apple", "Negative prompt": "blur", "Seed": "6", "Sampler": "Euler a", "Size-1": "128"}
    assert expected.items() <= told.parameters.items()
    again = api.txt2img(prompt="a red apple", negative_prompt="blur", width=128, height=128, seed=6)
    difference = np.asarray(again.image).astype(int) - np.asarray(pictures.images[1])
    assert np.abs(difference).max() <= 1


def test_outside_the_mask_nothing_changes(api: webuiapi.WebUIApi, pictures: Any) -> None:
    box = (40, 40, 88, 88)
    answer = api.img2img(
        [pictures.image], prompt="a green pear", mask_image=mask(box, (128, 128)), width=128, height=128, seed=1
    )
    changed = (np.asarray(answer.image) != np.asarray(pictures.image)).any(axis=-1)
    inside = np.asarray(mask(box, (128, 128))) == 255
    assert changed[inside].any()
    assert not changed[~inside].any()


@pytest.mark.parametrize(("factor", "size"), [(2, (256, 256)), (4, (512, 512))])
def test_a_picture_is_enlarged(api: webuiapi.WebUIApi, pictures: Any, factor: int, size: tuple[int, int]) -> None:
    upscaler = api.get_upscalers()[1]["name"]
    enlarged = api.extra_single_image(pictures.image, upscaler_1=upscaler, upscaling_resize=factor).image
    assert enlarged.size == size
    back = np.asarray(enlarged.resize((128, 128), Image.Resampling.BOX)).astype(int)
    assert np.abs(back - np.asarray(pictures.image)).mean() < 8


def test_a_call_tells_its_progress_and_can_be_interrupted(api: webuiapi.WebUIApi, live_server: str) -> None:
    other = webuiapi.WebUIApi(baseurl=live_server + ROOT)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(other.txt2img, prompt="a red apple", width=128, height=128, steps=900)
        while not (state := api.get_progress()["state"])["sampling_step"]:
            assert not call.done()
        assert (state["job_count"], state["sampling_steps"]) == (1, 900)
        api.interrupt()
        assert call.result().images == []
    api.util_wait_for_ready(check_interval=0.1)


def test_everything_that_the_package_can_ask_is_answered(
    api: webuiapi.WebUIApi, capsys: pytest.CaptureFixture[str]
) -> None:
    (title,) = api.util_get_model_names()
    assert title.startswith("pictogram [")
    api.util_set_model("pictogram")
    assert api.util_get_current_model() == title
    assert "Euler a" in api.util_get_sampler_names()
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    assert api.skip() is None
    assert api.refresh_checkpoints() is None
    lists = ("sd_vae", "loras", "latent_upscale_modes", "hypernetworks", "face_restorers", "realesrgan_models")
    assert [getattr(api, f"get_{name}")() for name in (*lists, "prompt_styles")] == [[]] * 7
    assert set(api.get_embeddings()) == {"loaded", "skipped"}
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert set(api.get_scripts()) == {"txt2img", "img2img"}
    assert api.get_cmd_flags()["api"] is True
    with pytest.raises(RuntimeError, match="sampler_unknown"):
        api.txt2img(prompt="a red apple", sampler_name="DPM fast")


def test_the_lines_of_another_tool_are_read() -> None:
    text = 'a cat, (big:1.2)\nwith: hat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Model: "a, b", Size: 8x9'
    assert values_of(text) == {
        "Prompt": "a cat, (big:1.2)\nwith: hat",
        "Negative prompt": "dog",
        "Steps": "20",
        "Sampler": "Euler a",
        "Model": "a, b",
        "Size": "8x9",
        "Size-1": "8",
        "Size-2": "9",
    }
    assert values_of("a cat, just: this") == {"Prompt": "a cat, just: this", "Negative prompt": ""}
    assert values_of("") == {}
