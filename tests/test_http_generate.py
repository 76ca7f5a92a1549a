"""POST /generate: what is accepted, what it becomes, repeats and waiting."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading

import pytest
from PIL import Image
from starlette.datastructures import Headers

from app.intake import LARGE_BODY_BYTES
from app.payload import Payload, read_payload
from app.schemas import IMAGE_TO_IMAGE_EXAMPLE, TEXT_TO_IMAGE_EXAMPLE
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, is_untouched, png, serving

pytestmark = pytest.mark.asyncio


async def test_a_prompt_is_enough_and_every_default_is_told(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"prompt": "a red apple"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    assert answer.headers["x-request-id"]
    assert 0 <= job["request"].pop("seed") < 2**32
    assert job["request"] == {
        "task": "text-to-image",
        "model": "first",
        "prompt": "a red apple",
        "negative_prompt": None,
        "width": 128,
        "height": 128,
        "num_inference_steps": 20,
        "guidance_scale": 5.0,
        "sampler": "dpmpp_2m",
        "noise_schedule": "karras",
        "num_images": 1,
        "prompt_syntax": "a1111",
        "clip_skip": 0,
        "reproducibility": "standard",
        "loras": [],
        "upscaler": None,
        "controls": [],
        "guidance_rescale": 0.0,
        "output_format": "png",
        "previews": False,
        "priority": "normal",
        "deadline_s": None,
    }
    assert job["status"] == "queued"
    assert job["queue_position"] == 0
    assert (job["images"], job["error"], job["warnings"]) == ([], None, [])
    assert job["created_at"].endswith("Z")
    assert (job["started_at"], job["ended_at"]) == (None, None)


@pytest.mark.parametrize(("size", "is_apart"), [(100, False), (LARGE_BODY_BYTES, True)])
async def test_a_large_body_is_read_beside_the_event_loop(
    redis_url, store, worker, monkeypatch: pytest.MonkeyPatch, size: int, is_apart: bool
) -> None:
    threads: list[int] = []

    def noted(headers: Headers, body: bytes, max_files: int) -> Payload:
        threads.append(threading.get_ident())
        return read_payload(headers, body, max_files)

    monkeypatch.setattr("app.posting.read_payload", noted)
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"prompt": "a pear", "negative_prompt": "x" * size})
    assert answer.status_code == (422 if is_apart else 202)
    assert [thread != threading.get_ident() for thread in threads] == [is_apart]


async def test_the_request_of_a_document_can_be_sent_again_as_it_is(redis_url, store, worker) -> None:
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode(), "strength": 0.5}
    async with serving(redis_url, store) as client:
        for first_body in ({"prompt": "a pear", "num_images": 2}, body):
            first = (await client.post("/generate", json=first_body)).json()
            again = await client.post("/generate", json=first["request"])
            assert again.status_code == 202, again.text
            assert again.json()["request"] == first["request"]
            assert again.json()["id"] != first["id"]


async def test_the_examples_of_the_documentation_are_accepted(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        for example in (TEXT_TO_IMAGE_EXAMPLE, IMAGE_TO_IMAGE_EXAMPLE):
            answer = await client.post("/generate", json=example)
            assert answer.status_code == 202, answer.text
            assert answer.json()["request"]["seed"] == 42


@pytest.mark.parametrize(
    ("given", "sampler", "noise_schedule"),
    [
        ({"sampler": "euler"}, "euler", "default"),
        ({"sampler": "DPM++ 2M Karras"}, "dpmpp_2m", "karras"),
        ({"sampler": "k_euler", "noise_schedule": "trailing"}, "euler", "trailing"),
        ({"noise_schedule": "exponential"}, "dpmpp_2m", "exponential"),
        ({"sampler": "dpmpp_2m_karras", "noise_schedule": "karras"}, "dpmpp_2m", "karras"),
        ({"sampler": "dpmpp_2m"}, "dpmpp_2m", "default"),
    ],
)
async def test_sampler_names_are_resolved(redis_url, store, worker, given, sampler, noise_schedule) -> None:
    async with serving(redis_url, store) as client:
        request = (await client.post("/generate", json={"prompt": "a pear", **given})).json()["request"]
    assert (request["sampler"], request["noise_schedule"]) == (sampler, noise_schedule)


async def test_default_steps_stay_within_the_samplers_limit(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        request = (await client.post("/generate", json={"prompt": "a pear", "sampler": "lcm"})).json()["request"]
    assert request["num_inference_steps"] == 12


async def test_without_a_model_the_first_by_name_that_serves_the_task_is_taken(redis_url, store, worker) -> None:
    worker.publish(ENTRY.model_copy(update={"name": "abc", "tasks": ("image-to-image",)}))
    worker.publish(ENTRY.model_copy(update={"name": "zzz"}))
    picture = {"task": "image-to-image", "image": base64.b64encode(png()).decode()}
    async with serving(redis_url, store) as client:
        for extra, model in (({}, "first"), (picture, "abc"), ({"model": "zzz"}, "zzz")):
            answer = await client.post("/generate", json={"prompt": "a pear", **extra})
            assert answer.json()["request"]["model"] == model
    async with serving(redis_url, store, default_model="zzz") as client:
        assert (await client.post("/generate", json={"prompt": "a pear"})).json()["request"]["model"] == "zzz"


# --- uploads ---------------------------------------------------------------------------------------------------------


async def test_every_way_to_send_a_picture_gives_the_same_upload(redis_url, store, worker) -> None:
    data = png(48, 32)
    text = base64.b64encode(data).decode()
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    base = {"task": "image-to-image", "prompt": "a pear"}
    async with serving(redis_url, store) as client:
        jobs = [
            (await client.post("/generate", json={**base, "image": image})).json()
            for image in (text, wrapped, f"data:image/png;base64,{text}")
        ]
        form = {**base, "strength": "0.25", "seed": "7", "previews": "true", "num_inference_steps": "8"}
        jobs.append((await client.post("/generate", data=form, files={"image": ("a.png", data)})).json())
        jobs.append((await client.post("/generate", json={**base, "image": jobs[0]["request"]["image"]})).json())
    references = {job["request"]["image"] for job in jobs}
    assert len(references) == 1
    name = references.pop().removeprefix("sha256:")
    for job in jobs:
        stored = store.get(job["id"], f"{name}.png")
        assert hashlib.sha256(stored).hexdigest() == name
        picture = Image.open(io.BytesIO(stored))
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (48, 32), (200, 30, 30))
    form_request = jobs[3]["request"]
    assert (form_request["strength"], form_request["seed"], form_request["previews"]) == (0.25, 7, True)


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        ((480, 320), {}, (160, 104)),
        ((320, 480), {}, (104, 160)),
        ((480, 320), {"width": 96}, (96, 64)),
        ((480, 320), {"height": 96}, (144, 96)),
        ((4000, 10), {}, (256, 64)),
        ((480, 320), {"width": 64, "height": 192}, (64, 192)),
    ],
)
async def test_the_default_size_follows_the_uploads_aspect(redis_url, store, worker, size, asked, expected) -> None:
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png(*size)).decode(), **asked}
    async with serving(redis_url, store) as client:
        request = (await client.post("/generate", json=body)).json()["request"]
    assert (request["width"], request["height"]) == expected


async def test_an_upload_of_another_tenant_is_unknown(redis_url, store, worker) -> None:
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode()}
    async with serving(redis_url, store, api_keys=KEYS) as client:
        request = (await client.post("/generate", json=body, headers=ALICE)).json()["request"]
        refused = await client.post("/generate", json=request, headers=BOB)
        accepted = await client.post("/generate", json=request, headers=ALICE)
    assert (refused.status_code, refused.json()["code"]) == (422, "upload_unknown")
    assert accepted.status_code == 202


async def test_an_erased_jobs_upload_is_unknown(redis_url, store, worker) -> None:
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode()}
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json=body)).json()
        await client.delete(job["links"]["self"])
        assert (await client.delete(job["links"]["self"])).status_code == 204
        again = await client.post("/generate", json=job["request"])
    assert again.json()["code"] == "upload_unknown"


# --- repeats ---------------------------------------------------------------------------------------------------------


async def test_an_idempotency_key_gives_one_job_for_one_body(redis_url, store, worker) -> None:
    headers = {"Idempotency-Key": "order 1"}
    async with serving(redis_url, store) as client:
        first = await client.post("/generate", json={"prompt": "a pear", "seed": 1}, headers=headers)
        spaced = b'{ "seed": 1,\n "prompt": "a pear" }'
        repeat = await client.post("/generate", content=spaced, headers={**headers, "Content-Type": "application/json"})
        other = await client.post("/generate", json={"prompt": "a pear", "seed": 2}, headers=headers)
        new = await client.post("/generate", json={"prompt": "a pear", "seed": 2}, headers={"Idempotency-Key": "2"})
    assert (first.status_code, repeat.status_code, new.status_code) == (202, 202, 202)
    assert repeat.json()["id"] == first.json()["id"] != new.json()["id"]
    assert repeat.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_an_idempotency_key_holds_for_multipart_and_leaves_no_second_upload(redis_url, store, worker) -> None:
    form = {"task": "image-to-image", "prompt": "a pear"}
    headers = {"Idempotency-Key": "k"}
    async with serving(redis_url, store) as client:
        posts = [
            await client.post("/generate", data=form, files={"image": ("a.png", png())}, headers=headers)
            for _ in range(2)
        ]
        other = await client.post(
            "/generate", data=form, files={"image": ("a.png", png(colour=(1, 2, 3)))}, headers=headers
        )
    assert posts[0].json()["id"] == posts[1].json()["id"]
    assert other.json()["code"] == "idempotency_conflict"
    assert len(list(store.root.rglob("*.png"))) == 1


async def test_tenants_do_not_share_idempotency_keys(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        jobs = [
            (await client.post("/generate", json={"prompt": "a pear"}, headers={**who, "Idempotency-Key": "k"})).json()
            for who in (ALICE, BOB)
        ]
    assert jobs[0]["id"] != jobs[1]["id"]


async def test_concurrent_posts_with_one_key_become_one_job(redis_url, store, worker, redis_client) -> None:
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode()}
    async with serving(redis_url, store) as client:
        answers = await asyncio.gather(
            *(client.post("/generate", json=body, headers={"Idempotency-Key": "k"}) for _ in range(12))
        )
        listed = (await client.get("/jobs")).json()["jobs"]
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["id"] for answer in answers} == {job["id"] for job in listed}
    assert len(listed) == 1
    assert len(list(store.root.rglob("*.png"))) == 1


# --- a full queue ----------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_leaves_nothing_behind(redis_url, store, worker) -> None:
    worker.beat(cost_per_s=10.0)
    image = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode()}
    async with serving(redis_url, store, max_queued=3, api_keys=KEYS) as client:
        answers = await asyncio.gather(*(client.post("/generate", json=image, headers=ALICE) for _ in range(8)))
        other = await client.post("/generate", json={"prompt": "a pear"}, headers=BOB)
        listed = (await client.get("/jobs", headers=ALICE)).json()["jobs"]
    refused = [answer for answer in answers if answer.status_code != 202]
    assert len(refused) == 5
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(429, "queue_full")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert other.status_code == 202
    assert len(listed) == 3
    assert len(list(store.root.rglob("*.png"))) == 3


async def test_a_canceled_job_makes_room(redis_url, store, worker) -> None:
    async with serving(redis_url, store, max_queued=1) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        assert (await client.post("/generate", json={"prompt": "a pear"})).status_code == 429
        await client.delete(job["links"]["self"])
        assert (await client.post("/generate", json={"prompt": "a pear"})).status_code == 202


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_prefer_wait_answers_200_as_soon_as_the_job_has_ended(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        waiting = asyncio.create_task(
            client.post("/generate", json={"prompt": "a pear"}, headers={"Prefer": "respond-async, wait=30"})
        )
        await asyncio.to_thread(lambda: worker.draw(worker.next_job()))
        answer = await asyncio.wait_for(waiting, 20)
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=30"
    job = answer.json()
    assert (job["status"], len(job["images"])) == ("succeeded", 1)
    assert job["timings"]["denoise_s"] == 0.3


async def test_prefer_wait_is_capped_and_answers_202_when_the_time_is_over(redis_url, store, worker) -> None:
    async with serving(redis_url, store, max_wait_s=0.2) as client:
        answer = await client.post("/generate", json={"prompt": "a pear"}, headers={"Prefer": "wait=1000"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0.2")
    assert answer.json()["status"] == "queued"


async def test_a_repeated_post_can_wait_for_the_first_ones_job(redis_url, store, worker) -> None:
    headers = {"Idempotency-Key": "k", "Prefer": "wait=20"}
    async with serving(redis_url, store, max_wait_s=20) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"}, headers={"Idempotency-Key": "k"})).json()
        worker.draw(job["id"])
        answer = await client.post("/generate", json={"prompt": "a pear"}, headers=headers)
    assert (answer.status_code, answer.json()["id"], answer.json()["status"]) == (200, job["id"], "succeeded")


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "handling=strict", ""])
async def test_other_preferences_are_ignored(redis_url, store, worker, prefer) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"prompt": "a pear"}, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_without_a_catalogue_there_is_nothing_to_check_against(redis_url, store, redis_client) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"prompt": "a pear"})
        models = await client.get("/models")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
    assert int(answer.headers["retry-after"]) >= 1
    assert models.json() == {"models": [], "faults": []}
    assert is_untouched(redis_client, store)


@pytest.mark.parametrize("body", [{"task": "upscale", "image": "AAAA"}, {"prompt": "a pear", "model": "second"}])
async def test_what_may_be_served_once_the_workers_have_loaded_is_not_refused_for_good(
    redis_url, redis_client, store, worker, body
) -> None:
    worker.beat("loading")
    async with serving(redis_url, store) as client:
        early = await client.post("/generate", json=body)
        worker.beat("running")
        late = await client.post("/generate", json=body)
    assert (early.status_code, early.json()["code"], late.status_code) == (503, "not_ready", 422)
    assert int(early.headers["retry-after"]) >= 1
    assert is_untouched(redis_client, store)


async def test_loras_are_named_in_their_field_in_the_prompt_or_in_a_form(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        bodies = [
            {"prompt": "a pear", "loras": [{"name": "ink", "weight": 0.5}, {"name": "gold"}], "seed": 1},
            {"prompt": "a pear <lora:ink:0.5> <lora:gold>", "seed": 1},
            {"prompt": "<lora:gold:1:extra>", "loras": [{"name": "ink"}], "seed": 1},
        ]
        jobs = [(await client.post("/generate", json=body)).json() for body in bodies]
        form = {"prompt": "a pear", "seed": "1", "loras": '[{"name": "ink", "weight": 0.5}, {"name": "gold"}]'}
        parts = {name: (None, value) for name, value in form.items()}
        jobs.append((await client.post("/generate", files=parts)).json())
        plain = (await client.post("/generate", json={**bodies[1], "prompt_syntax": "plain"})).json()
        again = (await client.post("/generate", json=jobs[1]["request"])).json()
    assert jobs[0]["request"]["loras"] == [{"name": "ink", "weight": 0.5}, {"name": "gold", "weight": 1.0}]
    assert jobs[0]["request"] == jobs[1]["request"] == jobs[3]["request"] == again["request"]
    assert jobs[2]["code"] == "prompt_empty"
    assert plain["request"]["prompt"] == bodies[1]["prompt"]
    assert plain["request"]["loras"] == []


async def test_the_pictures_of_controlnets_are_stored_and_may_be_sent_again(redis_url, store, worker) -> None:
    edges, depth = (base64.b64encode(png(colour=colour)).decode() for colour in ((1, 2, 3), (4, 5, 6)))
    body = {
        "prompt": "a pear",
        "seed": 1,
        "controls": [{"name": "edges", "image": edges}, {"name": "edges", "image": depth, "weight": 0.5, "end": 0.8}],
    }
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json=body)).json()
        again = (await client.post("/generate", json=job["request"])).json()
        twice = {**body, "controls": [{"name": "edges", "image": edges}] * 2}
        assert (await client.post("/generate", json=twice)).status_code == 202
    controls = job["request"]["controls"]
    assert [(used["weight"], used["start"], used["end"]) for used in controls] == [(1.0, 0.0, 1.0), (0.5, 0.0, 0.8)]
    assert again["request"] == job["request"]
    for used, colour in zip(controls, ((1, 2, 3), (4, 5, 6)), strict=True):
        stored = Image.open(io.BytesIO(store.get(again["id"], f"{used['image'].removeprefix('sha256:')}.png")))
        assert stored.getpixel((0, 0)) == colour
