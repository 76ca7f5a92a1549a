"""POST /generate for upscaling: sizes, defaults, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import redis

from app.schemas import UPSCALE_EXAMPLE
from tests.http_kit import ENTRY, FakeWorker, is_untouched, png, serving
from tests.test_http_errors import assert_problem
from workers.store import LocalStore

pytestmark = pytest.mark.asyncio

X4 = ENTRY.model_copy(
    update={
        "name": "x4",
        "tasks": ("upscale",),
        "upscale_factor": 4,
        "max_noise_level": 50,
        "max_size": 800,
        "max_pixels": 800 * 800,
    }
)


@pytest.fixture
def worker(redis_client: redis.Redis, store: LocalStore) -> FakeWorker:
    fake = FakeWorker(redis_client, store)
    for entry in (ENTRY, X4):
        fake.publish(entry)
    return fake


def body_of(width: int = 45, height: int = 31) -> dict[str, Any]:
    return {"task": "upscale", "image": base64.b64encode(png(width, height)).decode()}


async def test_a_picture_alone_is_enough_and_every_default_is_told(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json=body_of())).json()
        again = (await client.post("/generate", json=job["request"])).json()
        assert (await client.post("/generate", json=UPSCALE_EXAMPLE)).status_code == 202
    request = job["request"]
    assert (request["task"], request["model"], request["prompt"]) == ("upscale", "x4", "")
    assert (request["width"], request["height"], request["noise_level"]) == (180, 124, 20)
    assert again["request"] == request


async def test_a_form_carries_the_noise_level(redis_url, store, worker) -> None:
    form = {"task": "upscale", "noise_level": "7"}
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", data=form, files={"image": ("a.png", png(8, 8))})
    assert answer.json()["request"]["noise_level"] == 7


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"noise_level": 51}, "noise_level_out_of_range", "/noise_level"),
        ({"noise_level": -1}, "field_invalid", "/noise_level"),
        ({"width": 184}, "size_invalid", "/width"),
        ({"height": 31}, "size_invalid", "/height"),
        ({"strength": 0.5}, "field_unknown", "/strength"),
        ({"mask_image": "x"}, "field_unknown", "/mask_image"),
        ({"image": "not base64!"}, "image_not_base64", "/image"),
        ({"model": "first"}, "task_unavailable", "/task"),
    ],
)
async def test_a_bad_field_gets_its_code_and_leaves_nothing(redis_url, store, worker, changes, code, pointer) -> None:
    async with serving(redis_url, store) as client:
        document = assert_problem(await client.post("/generate", json=body_of() | changes), code)
    assert document.errors is not None
    assert document.errors[0].pointer == pointer
    assert is_untouched(worker.client, store)


async def test_a_model_without_noise_levels_is_told_none(redis_url, store, worker) -> None:
    worker.publish(X4.model_copy(update={"name": "a4", "max_noise_level": None}))
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json=body_of())).json()
        again = (await client.post("/generate", json=job["request"])).json()
        refused = await client.post("/generate", json=body_of() | {"model": "a4", "noise_level": 0})
        (told,) = [model for model in (await client.get("/models")).json()["models"] if model["name"] == "a4"]
    assert (job["request"]["model"], job["request"]["noise_level"]) == ("a4", None)
    assert again["request"] == job["request"]
    document = assert_problem(refused, "noise_level_out_of_range")
    assert document.errors is not None
    assert document.errors[0].pointer == "/noise_level"
    assert "leave noise_level out" in document.detail
    assert (told["limits"]["upscale_factor"], told["limits"]["max_noise_level"]) == (4, None)


async def test_an_answer_that_would_be_too_large_is_refused(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        document = assert_problem(await client.post("/generate", json=body_of(201, 10)), "size_invalid")
    assert "more than 800 pixels" in document.detail
    assert is_untouched(worker.client, store)


async def test_many_large_answers_are_refused_together(redis_url, store, worker) -> None:
    body = body_of(190, 190) | {"num_images": 2}
    async with serving(redis_url, store) as client:
        document = assert_problem(await client.post("/generate", json=body), "size_invalid")
        assert (await client.post("/generate", json=body | {"num_images": 1})).status_code == 202
    assert document.errors is not None
    assert document.errors[0].pointer == "/num_images"


async def test_an_upscaler_draws_nothing_from_text(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        body = {"prompt": "a pear", "model": "x4"}
        assert_problem(await client.post("/generate", json=body), "task_unavailable")


async def test_what_is_drawn_may_be_enlarged_in_the_same_job(redis_url, store, worker) -> None:
    worker.publish(ENTRY.model_copy(update={"upscalers": ("a4", "x4")}))
    async with serving(redis_url, store) as client:
        asked = [{"upscale": True}, {"upscaler": "x4"}, {"upscale": False}, {"upscale": True, "upscaler": "x4"}]
        jobs = [(await client.post("/generate", json={"prompt": "a pear", "seed": 1} | own)).json() for own in asked]
        again = (await client.post("/generate", json=jobs[0]["request"])).json()
        alone = (await client.post("/generate", json=body_of())).json()
    assert [job["request"]["upscaler"] for job in jobs] == ["a4", "x4", None, "x4"]
    assert again["request"] == jobs[0]["request"]
    assert alone["request"]["upscaler"] is None


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"prompt": "a pear", "upscaler": "b4"}, "upscaler_unknown", "/upscaler"),
        ({"prompt": "a pear", "upscale": "yes"}, "field_invalid", "/upscale"),
        (body_of() | {"upscale": True}, "upscaler_unknown", "/upscale"),
    ],
)
async def test_an_upscaler_that_is_not_there_is_refused(redis_url, store, worker, body, code, pointer) -> None:
    worker.publish(ENTRY.model_copy(update={"upscalers": ("x4",)}))
    async with serving(redis_url, store) as client:
        document = assert_problem(await client.post("/generate", json=body), code)
    assert document.errors is not None
    assert document.errors[0].pointer == pointer
    assert is_untouched(worker.client, store)


async def test_without_an_upscaler_nothing_is_enlarged(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        assert_problem(await client.post("/generate", json={"prompt": "a pear", "upscale": True}), "upscaler_unknown")
