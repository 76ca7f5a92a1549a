"""Replicate's API: what its requests mean here, what its documents say, and its own client against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import replicate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput
from replicate.webhook import InvalidSignatureError

from app.dialect import dialect_of, installed_dialects
from app.dialects.replicate import DIALECT, predictions
from app.dialects.replicate.inputs import PASSED_OVER, PredictionBody, PredictionInput, native_fields
from app.schemas import InpaintingBody, UpscaleBody
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, FakeWorker, encoded, is_untouched, png, serving
from tests.receiver import FakeReceiver
from workers.store import LocalStore

EVERY_TASK = ENTRY.model_copy(update={"tasks": ("text-to-image", "image-to-image", "inpainting")})
ENLARGER = ENTRY.model_copy(
    update={"name": "enlarger", "tasks": ("upscale",), "upscale_factor": 4, "max_noise_level": 50}
    | {"digest": "e" * 64, "max_size": 1024, "max_pixels": 512 * 512}
)
CREATE = "/v1/models/anybody/first/predictions"
PICTURE = f"data:image/png;base64,{base64.b64encode(png(64, 64)).decode()}"
MASK = Image.new("L", (64, 64))
MASK.paste(255, (0, 0, 32, 64))


@pytest_asyncio.fixture
async def client(redis_url: str, store: LocalStore, worker: FakeWorker) -> AsyncIterator[httpx2.AsyncClient]:
    worker.publish(EVERY_TASK)
    worker.publish(ENLARGER)
    async with serving(redis_url, store) as client:
        yield client


async def create(client: httpx2.AsyncClient, path: str = CREATE, **input_: Any) -> dict[str, Any]:
    answer = await client.post(path, json={"input": {"prompt": "a cat", **input_}})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def request_of(worker: FakeWorker, document: dict[str, Any]) -> Any:
    view = worker.board.get(document["id"])
    assert view is not None
    return view.record.submission.request


def assert_refused(answer: httpx2.Response, status: int, code: str, *fields: str) -> dict[str, Any]:
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["status"]) == (status, status), answer.text
    assert document["type"] == f"urn:denoised:error:{code}"
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["X-Request-ID"]
    assert [entry["field"] for entry in document.get("invalid_fields", [])] == list(fields)
    return document


# --- what a request means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ({}, {"task": "text-to-image", "model": "first", "prompt": "a cat", "num_inference_steps": 20}),
        ({"num_outputs": 3, "width": 64, "height": 96}, {"num_images": 3, "width": 64, "height": 96}),
        ({"negative_prompt": "dogs", "seed": 7, "guidance_scale": 3}, {"negative_prompt": "dogs", "seed": 7}),
        ({"scheduler": "K_EULER"}, {"sampler": "euler", "noise_schedule": "default"}),
        ({"scheduler": "KarrasDPM"}, {"sampler": "dpmpp_2m", "noise_schedule": "karras"}),
        ({"scheduler": "DPM++ 2M Karras"}, {"sampler": "dpmpp_2m", "noise_schedule": "karras"}),
        ({"prompt_strength": 0.8, "seed": None, "image": None}, {"task": "text-to-image"}),
        ({"image": PICTURE, "prompt_strength": 0.5}, {"task": "image-to-image", "strength": 0.5}),
        ({"image": PICTURE, "outpaint_left": 8}, {"task": "inpainting"}),
        ({"loras": [{"name": "ink"}], "clip_skip": 1}, {"clip_skip": 1}),
        (
            {"disable_safety_checker": True, "apply_watermark": False, "refine": "no_refiner", "high_noise_frac": 0.8}
            | {"lora_scale": 0.6, "output_quality": 80},
            {"task": "text-to-image"},
        ),
    ],
)
@pytest.mark.asyncio
async def test_an_input_means_what_it_says_there(
    client: httpx2.AsyncClient, worker: FakeWorker, sent: dict[str, Any], meant: dict[str, Any]
) -> None:
    request = request_of(worker, await create(client, **sent))
    assert {name: getattr(request, name) for name in meant} == meant


@pytest.mark.asyncio
async def test_white_in_a_mask_is_drawn_anew_even_where_some_of_it_is_transparent(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    text = f"data:image/png;base64,{base64.b64encode(encoded(mask)).decode()}"
    document = await create(client, image=PICTURE, mask=text)
    request = request_of(worker, document)
    assert request.task == "inpainting"
    kept = Image.open(io.BytesIO(store.get(document["id"], f"{request.mask_image.removeprefix('sha256:')}.png")))
    assert kept.tobytes() == MASK.tobytes()


@pytest.mark.asyncio
async def test_a_model_that_only_enlarges_is_given_a_picture_alone(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    body = {"input": {"image": PICTURE, "scale": 4}}
    answer = await client.post("/v1/models/denoised/enlarger/predictions", json=body)
    assert request_of(worker, answer.json()).task == "upscale"
    body = {"input": {"image": PICTURE, "scale": 2}}
    assert_refused(
        await client.post("/v1/models/denoised/enlarger/predictions", json=body),
        422,
        "field_unsupported",
        "input.scale",
    )


def test_every_field_of_ours_can_be_sent_under_one_name() -> None:
    names = {
        DIALECT.field_names.get(name, name) for body in (InpaintingBody, UpscaleBody) for name in body.model_fields
    }
    elsewhere = {"task", "model", "previews", "webhook"}
    assert names - elsewhere == set(PredictionInput.model_fields) - PASSED_OVER


@pytest.mark.parametrize(
    ("version", "owner"),
    [("d" * 64, "denoised"), ("somebody/first", "somebody"), (f"somebody/first:{'d' * 64}", "somebody")]
    + [("first", "denoised")],
)
@pytest.mark.asyncio
async def test_a_version_is_a_digest_or_a_name(client: httpx2.AsyncClient, version: str, owner: str) -> None:
    answer = await client.post("/v1/predictions", json={"version": version, "input": {"prompt": "a cat"}})
    assert (answer.status_code, answer.json()["model"]) == (201, f"{owner}/first")
    assert answer.json()["version"] == "d" * 64


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        ({"webhook": "https://a.example"}, ["ended"]),
        ({"webhook_completed": "https://a.example"}, ["ended"]),
        ({"webhook": "https://a.example", "webhook_events_filter": ["start", "completed"]}, ["started", "ended"]),
        (
            {"webhook": "https://a.example", "webhook_events_filter": ["output", "logs", "completed"]},
            ["ended", "progress"],
        ),
    ],
)
def test_a_webhook_is_told_of_the_events_that_it_wants(sent: dict[str, Any], events: list[str]) -> None:
    body = PredictionBody.model_validate({"input": {"prompt": "a cat"}, **sent})
    assert native_fields(body, ENTRY)["webhook"] == {"url": "https://a.example", "events": events}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code", "field"),
    [
        ({"widht": 64}, "field_unknown", "input.widht"),
        ({"num_images": 2}, "field_unknown", "input.num_images"),
        ({"width": "64"}, "field_invalid", "input.width"),
        ({"width": 65}, "size_invalid", "input.width"),
        ({"num_outputs": 9}, "num_images_out_of_range", "input.num_outputs"),
        ({"scheduler": "KLMS"}, "sampler_unknown", "input.scheduler"),
        ({"prompt": None}, "field_invalid", "input.prompt"),
        ({"prompt": " "}, "prompt_empty", "input.prompt"),
        ({"mask": PICTURE}, "field_invalid", "input.image"),
        ({"image": PICTURE, "prompt_strength": 2}, "field_invalid", "input.prompt_strength"),
        ({"image": PICTURE, "mask": "!"}, "image_not_base64", "input.mask"),
        ({"image": "https://example.com/cat.png"}, "field_unsupported", "input.image"),
        ({"image": "file:///etc/passwd"}, "field_unsupported", "input.image"),
        ({"image": PICTURE, "mask": "http://10.0.0.1/v1/files/"}, "field_unsupported", "input.mask"),
        (
            {"controls": [{"name": "edges", "image": "http://a.example/"}]},
            "field_unsupported",
            "input.controls.0.image",
        ),
        ({"image": f"http://localhost/v1/files/{'0' * 44}"}, "upload_unknown", "input.image"),
        ({"image": f"http://localhost/jobs/{'0' * 44}/images/0"}, "upload_unknown", "input.image"),
        ({"output_format": "webp", "output_quality": 80}, "field_unsupported", "input.output_quality"),
        ({"disable_safety_checker": False}, "field_unsupported", "input.disable_safety_checker"),
        ({"apply_watermark": True}, "field_unsupported", "input.apply_watermark"),
        ({"refine": "expert_ensemble_refiner"}, "field_unsupported", "input.refine"),
        ({"replicate_weights": "https://a.example/lora.tar"}, "field_unsupported", "input.replicate_weights"),
        ({"scale": 2}, "field_unsupported", "input.scale"),
        ({"face_enhance": True}, "field_unsupported", "input.face_enhance"),
    ],
)
@pytest.mark.asyncio
async def test_what_cannot_be_done_is_refused_by_name(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore, sent: dict[str, Any], code: str, field: str
) -> None:
    answer = await client.post(CREATE, json={"input": {"prompt": "a cat", **sent}})
    assert_refused(answer, 422, code, field)
    assert is_untouched(worker.client, store)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "fields"),
    [
        ("POST", "/v1/predictions", {"input": {}}, 422, "field_invalid", ["version"]),
        ("POST", "/v1/predictions", {"version": "f" * 64, "input": {}}, 422, "model_unknown", ["version"]),
        ("POST", "/v1/models/a/nothing/predictions", {"input": {}}, 404, "model_absent", []),
        ("POST", CREATE, {"version": "first", "input": {}}, 422, "field_unknown", ["version"]),
        ("POST", CREATE, {"input": 7}, 422, "field_invalid", ["input"]),
        ("POST", CREATE, {"input": {}, "speed": 1}, 422, "field_unknown", ["speed"]),
        (
            "POST",
            CREATE,
            {"input": {}, "webhook_events_filter": ["end"]},
            422,
            "field_invalid",
            ["webhook_events_filter.0"],
        ),
        ("GET", "/v1/models/a/nothing", None, 404, "model_absent", []),
        ("GET", "/v1/models/a/first/versions/nothing", None, 404, "model_absent", []),
        ("GET", "/v1/predictions/nothing", None, 404, "job_unknown", []),
        ("GET", "/v1/predictions?cursor=nothing", None, 400, "cursor_invalid", []),
        ("POST", f"/v1/predictions/{'0' * 44}/cancel", None, 404, "job_gone", []),
        ("GET", "/v1/files/nothing", None, 404, "file_unknown", []),
        ("GET", "/v1/collections", None, 404, "route_unknown", []),
        ("DELETE", "/v1/predictions", None, 405, "method_not_allowed", []),
    ],
)
@pytest.mark.asyncio
async def test_refusals_have_the_shape_and_the_status_that_its_clients_know(
    client: httpx2.AsyncClient, method: str, path: str, body: Any, status: int, code: str, fields: list[str]
) -> None:
    answer = await client.request(method, path, json=body) if body is not None else await client.request(method, path)
    assert_refused(answer, status, code, *fields)
    assert answer.headers.get("Allow") == ("GET, POST" if status == 405 else None)


@pytest.mark.asyncio
async def test_the_detail_says_what_is_wrong_because_the_client_shows_no_more(client: httpx2.AsyncClient) -> None:
    document = (await client.post(CREATE, json={"input": {"prompt": "a cat", "width": "64"}})).json()
    assert document["detail"].startswith("input.width: Input should be a valid integer.")
    assert "`errors`" not in document["detail"]


@pytest.mark.asyncio
async def test_a_full_queue_says_when_to_come_back(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    async with serving(redis_url, store, max_queued=1) as client:
        await create(client)
        answer = await client.post(CREATE, json={"input": {"prompt": "a cat"}})
        assert assert_refused(answer, 429, "queue_full")["retry_after"] == int(answer.headers["Retry-After"])


@pytest.mark.asyncio
async def test_a_header_that_would_cancel_is_refused(client: httpx2.AsyncClient) -> None:
    answer = await client.post(CREATE, json={"input": {"prompt": "a cat"}}, headers={"Cancel-After": "1m"})
    assert_refused(answer, 422, "field_unsupported", "Cancel-After")


def test_no_path_of_openai_is_ours() -> None:
    for path in ("/v1/models", "/v1/models/first", "/v1/images/generations", "/v1/images/edits", "/v1"):
        assert DIALECT.paths.fullmatch(path) is None
    for path in ("/v1/models/a/b", "/v1/predictions", "/v1/files/1", "/v1/webhooks/default/secret", "/v1/hardware"):
        assert dialect_of(path, installed_dialects()) is DIALECT


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_prediction_tells_its_life(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    document = await create(client, seed=7, image=PICTURE, num_outputs=2)
    address = f"http://localhost/v1/predictions/{document['id']}"
    assert document["status"] == "starting"
    assert document["urls"] == {"get": address, "cancel": f"{address}/cancel", "stream": f"{address}/stream"}
    assert (document["output"], document["error"], document["started_at"]) == (None, None, None)
    assert document["input"]["prompt"] == "a cat"
    assert document["logs"] == "Using seed: 7\n"
    worker.claim(document["id"])
    worker.progress(document["id"], 5, 20, ("The prompt was cut.",))
    document = (await client.get(address)).json()
    assert document["status"] == "processing"
    assert document["logs"] == "Using seed: 7\nThe prompt was cut.\n 25%|██        | 5/20\n"
    files = worker.draw(document["id"])
    document = (await client.get(address)).json()
    assert document["status"] == "succeeded"
    assert [(await client.get(output)).content for output in document["output"]] == files
    assert document["metrics"]["image_count"] == 2
    assert 0 <= document["metrics"]["predict_time"] <= document["metrics"]["total_time"]
    assert document["created_at"].endswith("Z")
    assert document["completed_at"].endswith("Z")


@pytest.mark.asyncio
async def test_a_failed_prediction_tells_why(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    document = await create(client)
    worker.fail(document["id"])
    document = (await client.get(document["urls"]["get"])).json()
    assert (document["status"], document["output"]) == ("failed", None)
    assert document["error"] == "not_finite: The latents turned NaN."


@pytest.mark.asyncio
async def test_the_input_is_told_as_it_was_sent_but_for_pictures(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    picture = base64.b64encode(encoded(Image.effect_noise((64, 64), 90))).decode()
    sent = {"scheduler": "K_EULER", "image": picture, "mask": None, "controls": [{"name": "edges", "image": picture}]}
    document = await create(client, **sent)
    request = request_of(worker, document)
    assert document["input"] == {
        **{"prompt": "a cat", "scheduler": "K_EULER", "image": request.image, "mask": None},
        "controls": [{"name": "edges", "image": request.controls[0].image}],
    }
    again = await client.post(CREATE, json={"input": document["input"]})
    assert request_of(worker, again.json()).image == request.image


@pytest.mark.asyncio
async def test_a_prediction_is_canceled_once_and_stays_so(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    document = await create(client)
    for _ in range(2):
        answer = await client.post(document["urls"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    drawn = await create(client)
    worker.draw(drawn["id"])
    assert (await client.post(drawn["urls"]["cancel"])).json()["status"] == "succeeded"


@pytest.mark.asyncio
async def test_pictures_that_are_gone_are_told_as_removed(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    call = asyncio.create_task(client.post(CREATE, json={"input": {"prompt": "a cat"}}, headers={"Prefer": "wait"}))
    job_id = await asyncio.to_thread(worker.next_job)
    await asyncio.to_thread(worker.draw, job_id)
    assert (await call).json()["data_removed"] is False
    store.erase(job_id)
    document = (await client.get(f"/v1/predictions/{job_id}")).json()
    assert (document["status"], document["output"], document["data_removed"]) == ("succeeded", None, True)
    assert (await events_of(client, document["urls"]["stream"]))[0][0] == "error"


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "begins"), [("http", "data:image/png;base64,"), ("https", "https://localhost/jobs/")]
)
@pytest.mark.asyncio
async def test_who_waits_gets_what_its_client_makes_files_of(
    client: httpx2.AsyncClient, worker: FakeWorker, scheme: str, begins: str
) -> None:
    body = {"input": {"prompt": "a cat"}}
    call = asyncio.create_task(client.post(f"{scheme}://localhost{CREATE}", json=body, headers={"Prefer": "wait"}))
    job_id = await asyncio.to_thread(worker.next_job)
    files = await asyncio.to_thread(worker.draw, job_id)
    answer = await call
    document = answer.json()
    assert (answer.status_code, document["status"]) == (201, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=60"
    assert document["output"][0].startswith(begins)
    if scheme == "http":
        assert base64.b64decode(document["output"][0].partition(",")[2]) == files[0]
    later = (await client.get(f"{scheme}://localhost/v1/predictions/{job_id}")).json()
    assert later["output"] == document["output"]
    listed = (await client.get("/v1/predictions")).json()["results"][0]
    assert listed["output"] == [f"http://localhost/jobs/{job_id}/images/0"]


@pytest.mark.asyncio
async def test_a_wait_that_runs_out_says_starting_so_that_clients_go_on_asking(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    async with serving(redis_url, store, max_wait_s=0.3) as client:
        body = {"input": {"prompt": "a cat"}}
        call = asyncio.create_task(client.post(CREATE, json=body, headers={"Prefer": "wait=5"}))
        job_id = await asyncio.to_thread(worker.next_job)
        await asyncio.to_thread(worker.claim, job_id)
        answer = await call
        assert (answer.status_code, answer.json()["status"]) == (201, "starting")
        assert answer.headers["Preference-Applied"] == "wait=0.3"
        assert (await client.get(f"/v1/predictions/{job_id}")).json()["status"] == "processing"
        worker.draw(job_id)
        document = (await client.get(f"/v1/predictions/{job_id}")).json()
        assert document["output"][0].startswith("data:")


@pytest.mark.asyncio
async def test_a_repeat_with_the_same_key_is_the_same_prediction(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"input": {"prompt": "a cat"}}
    answers = [await client.post(CREATE, json=body, headers=headers) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [None, "true"]
    other = await client.post("/v1/predictions", json={"version": "enlarger", **body}, headers=headers)
    assert_refused(other, 422, "idempotency_conflict")


# --- whose it is -----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_nobody_sees_predictions_or_files_of_another_tenant(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        body = {"input": {"prompt": "a cat"}}
        assert_refused(await client.post(CREATE, json=body), 401, "key_required")
        assert_refused(await client.get("/v1/account", headers={"Authorization": "Token x"}), 401, "key_unknown")
        document = (await client.post(CREATE, json=body, headers=ALICE)).json()
        upload = (await client.post("/v1/files", files={"content": png()}, headers=ALICE)).json()
        assert_refused(await client.get(document["urls"]["get"], headers=BOB), 404, "job_unknown")
        assert_refused(await client.post(document["urls"]["cancel"], headers=BOB), 404, "job_unknown")
        assert_refused(await client.get(document["urls"]["stream"], headers=BOB), 404, "job_unknown")
        assert_refused(await client.get(upload["urls"]["get"], headers=BOB), 404, "file_unknown")
        assert_refused(await client.delete(upload["urls"]["get"], headers=BOB), 404, "file_unknown")
        body = {"input": {"prompt": "a cat", "image": upload["urls"]["get"]}}
        assert_refused(await client.post(CREATE, json=body, headers=BOB), 422, "upload_unknown", "input.image")
        worker.draw(document["id"])
        body = {"input": {"prompt": "a cat", "image": f"http://localhost/jobs/{document['id']}/images/0"}}
        assert_refused(await client.post(CREATE, json=body, headers=BOB), 422, "upload_unknown", "input.image")
        assert (await client.get("/v1/predictions", headers=BOB)).json()["results"] == []
        assert (await client.get("/v1/account", headers=ALICE)).json()["username"] == "alice"


@pytest.mark.asyncio
async def test_the_list_has_predictions_alone_page_by_page(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "PAGE", 2)
    made = []
    for _ in range(3):
        made.append((await create(client))["id"])
        native = (await client.post("/generate", json={"prompt": "a dog"})).json()["id"]
    first = (await client.get("/v1/predictions")).json()
    second = (await client.get(first["next"])).json()
    assert [entry["id"] for entry in (*first["results"], *second["results"])] == made[::-1]
    assert (first["previous"], second["next"]) == (None, None)
    refused = assert_refused(await client.get(f"/v1/predictions/{native}"), 404, "job_unknown")
    assert f"GET /jobs/{native}" in refused["detail"]
    assert (await client.get(f"/jobs/{made[0]}")).json()["status"] == "queued"


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_an_uploaded_file_can_be_used_until_it_is_deleted(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    answer = await client.post("/v1/files", files={"content": ("cat.png", png(64, 64), "image/png")})
    upload = answer.json()
    assert (answer.status_code, upload["content_type"], upload["size"]) == (201, "image/png", len(png(64, 64)))
    assert (await client.get(upload["urls"]["get"])).json() == upload
    mask = (await client.post("/v1/files", files={"content": encoded(MASK)})).json()
    control = [{"name": "edges", "image": upload["urls"]["get"]}]
    document = await create(client, image=upload["urls"]["get"], mask=mask["urls"]["get"], controls=control)
    request = request_of(worker, document)
    assert request.task == "inpainting"
    assert request.controls[0].image == request.image
    assert document["input"]["image"] == upload["urls"]["get"]
    assert (await client.delete(upload["urls"]["get"])).status_code == 204
    assert_refused(await client.get(upload["urls"]["get"]), 404, "file_unknown")
    assert store.get(document["id"], f"{request.image.removeprefix('sha256:')}.png")


@pytest.mark.asyncio
async def test_a_picture_that_is_not_drawn_yet_is_the_input_of_nothing(client: httpx2.AsyncClient) -> None:
    first = await create(client)
    body = {"input": {"prompt": "a dog", "image": f"http://localhost/jobs/{first['id']}/images/0"}}
    assert_refused(await client.post(CREATE, json=body), 422, "upload_unknown", "input.image")


@pytest.mark.asyncio
async def test_a_picture_of_one_prediction_is_the_input_of_another(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    first = await create(client, num_outputs=2, width=64, height=64)
    worker.draw(first["id"], (10, 20, 30))
    output = (await client.get(first["urls"]["get"])).json()["output"]
    assert request_of(worker, await create(client, image=output[1])).task == "image-to-image"
    absent = await client.post(CREATE, json={"input": {"prompt": "a cat", "image": output[1][:-1] + "2"}})
    assert_refused(absent, 422, "upload_unknown", "input.image")


@pytest.mark.parametrize(
    ("form", "code", "field"),
    [
        ({"files": {"content": b"GIF89a"}}, "image_format_unsupported", "content"),
        ({"files": {"picture": png()}}, "field_unknown", "picture"),
        ({"files": {"metadata": b"{}"}}, "field_invalid", "content"),
        ({"files": {"content": png()}, "data": {"purpose": "vision"}}, "field_unknown", "purpose"),
        ({"files": {"content": png()}, "data": {"metadata": '{"a": 1}'}}, "field_unsupported", "metadata"),
    ],
)
@pytest.mark.asyncio
async def test_files_that_no_request_could_use_are_refused(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore, form: dict[str, Any], code: str, field: str
) -> None:
    assert_refused(await client.post("/v1/files", **form), 422, code, field)
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_a_file_takes_room_and_is_swept_away_when_its_time_is_over(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    async with serving(redis_url, store, store_quota=200_000) as client:
        upload = (await client.post("/v1/files", files={"content": png()})).json()
        large = encoded(Image.effect_noise((512, 512), 90))
        assert_refused(await client.post("/v1/files", files={"content": large}), 503, "store_full")
        assert store.expire(-1, worker.board.is_known) == 1
        assert_refused(await client.get(upload["urls"]["get"]), 404, "file_unknown")


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_version_says_what_may_be_sent(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/v1/models/anybody/first/versions")).json()["results"][0]
    assert page == (await client.get(f"/v1/models/anybody/first/versions/{'d' * 64}")).json()
    assert page == (await client.get("/v1/models/anybody/first")).json()["latest_version"]
    schema = page["openapi_schema"]["components"]["schemas"]["Input"]
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["width"]["maximum"] == ENTRY.max_size
    assert "K_EULER" in schema["properties"]["scheduler"]["enum"]
    assert "K_EULER_ANCESTRAL" not in schema["properties"]["scheduler"]["enum"]
    assert not PASSED_OVER & set(schema["properties"])
    assert "noise_level" not in schema["properties"]
    enlarger = (await client.get("/v1/models/anybody/enlarger")).json()["latest_version"]["openapi_schema"]
    assert enlarger["components"]["schemas"]["Input"]["required"] == ["image"]
    assert "mask" not in enlarger["components"]["schemas"]["Input"]["properties"]


@pytest.mark.asyncio
async def test_what_a_version_says_can_be_sent_is_taken(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    page = (await client.get("/v1/models/anybody/first/versions")).json()["results"][0]
    properties = page["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    defaults = {name: field["default"] for name, field in properties.items() if "default" in field}
    request = request_of(worker, await create(client, **defaults))
    assert (request.width, request.sampler) == (ENTRY.defaults.width, ENTRY.defaults.sampler)


# --- events ----------------------------------------------------------------------------------------------------------


async def events_of(client: httpx2.AsyncClient, address: str) -> list[tuple[str, str]]:
    text = (await client.get(address)).text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    assert [int(block["id"]) for block in blocks] == list(range(1, len(blocks) + 1))
    return [(block["event"], block["data"]) for block in blocks]


@pytest.mark.asyncio
async def test_the_stream_ends_with_pictures_or_with_the_reason_why_there_are_none(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    drawn, failed, canceled = [await create(client) for _ in range(3)]
    files = worker.draw(drawn["id"])
    worker.fail(failed["id"])
    await client.post(canceled["urls"]["cancel"])
    picture = f"data:image/png;base64,{base64.b64encode(files[0]).decode()}"
    assert await events_of(client, drawn["urls"]["stream"]) == [("output", picture), ("done", "{}")]
    address = drawn["urls"]["stream"].replace("http:", "https:")
    assert (await events_of(client, address))[0] == ("output", f"https://localhost/jobs/{drawn['id']}/images/0")
    reason = ("error", "not_finite: The latents turned NaN.")
    assert await events_of(client, failed["urls"]["stream"]) == [reason, ("done", '{"reason": "error"}')]
    assert await events_of(client, canceled["urls"]["stream"]) == [("done", '{"reason": "canceled"}')]


# --- webhooks --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_receiver_is_told_the_prediction_at_its_start_and_at_its_end(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    with FakeReceiver() as receiver:
        async with serving(redis_url, store, webhook_allow=("127.0.0.1",)) as client:
            wishes = {"webhook": receiver.url, "webhook_events_filter": ["start", "completed"]}
            document = (await client.post(CREATE, json={"input": {"prompt": "a cat", "seed": 7}, **wishes})).json()
            assert wishes.items() <= document.items()
            worker.claim(document["id"])
            began = (await asyncio.to_thread(receiver.next)).json
            assert (began["id"], began["status"], began["output"]) == (document["id"], "processing", None)
            assert began["urls"] == document["urls"]
            worker.draw(document["id"])
            ended = (await asyncio.to_thread(receiver.next)).json
            assert ended == (await client.get(document["urls"]["get"])).json()


@pytest.mark.asyncio
async def test_a_webhook_elsewhere_than_allowed_is_refused(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    body = {"input": {"prompt": "a cat"}, "webhook": "http://127.0.0.1/hook"}
    assert_refused(await client.post(CREATE, json=body), 422, "webhook_refused", "webhook.url")
    body["webhook_completed"] = body["webhook"]
    assert_refused(await client.post(CREATE, json=body), 422, "field_unsupported", "webhook_completed")
    assert is_untouched(worker.client, store)


# --- junk ------------------------------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from([PICTURE, "K_EULER", "png", "http://localhost/v1/files/", "sha256:" + "0" * 64]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(PredictionInput.model_fields)) | st.text(max_size=8)
BODIES = st.one_of(
    st.fixed_dictionaries(
        {"input": st.dictionaries(FIELDS, JUNK, max_size=4)},
        optional={name: JUNK for name in PredictionBody.model_fields if name != "input"},
    ).map(lambda body: json.dumps(body).encode("utf-8", "replace")),
    JUNK.map(lambda value: json.dumps(value).encode("utf-8", "replace")),
    st.binary(max_size=60),
)


@pytest.fixture
def junk_taker(redis_url: str, store: LocalStore, worker: FakeWorker) -> Iterator[Any]:
    """Sends a body to a server that has no prompt to draw, and returns the answer."""
    with asyncio.Runner() as runner:
        server = serving(redis_url, store)
        client = runner.run(server.__aenter__())

        def post(path: str, body: bytes) -> httpx2.Response:
            headers = {"Content-Type": "application/json"}
            return runner.run(client.post(path, content=body, headers=headers))

        yield post
        runner.run(server.__aexit__(None, None, None))


@given(body=BODIES, path=st.sampled_from([CREATE, "/v1/predictions", "/v1/files"]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_refused_in_its_shape_and_leaves_nothing(
    junk_taker: Any, worker: FakeWorker, store: LocalStore, body: bytes, path: str
) -> None:
    answer = junk_taker(path, body)
    if answer.status_code == 201:  # hypothesis has found a request
        worker.client.flushall()
        worker.publish()
        return
    assert 400 <= answer.status_code < 500, answer.text
    assert {"type", "title", "status", "detail", "request_id"} <= answer.json().keys()
    assert is_untouched(worker.client, store)


# --- its own client --------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(live_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[replicate.Client]:
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.05")
    client = replicate.Client(api_token="not needed", base_url=live_server)
    yield client
    client._client.close()  # it has no way to say so


APPLE: dict[str, Any] = {"prompt": "a red apple", "num_inference_steps": 4, "seed": 7, "reproducibility": "strict"}
MODEL = "denoised/pictogram"
LONG = {"prompt": "a cat", "num_inference_steps": 900, "scheduler": "K_EULER"}


def file_of(picture: Image.Image) -> io.BytesIO:
    return io.BytesIO(encoded(picture))


@pytest.fixture(scope="module")
def ours(live_server: str) -> list[bytes]:
    """The files of two pictures that the native API has drawn."""
    body = {**APPLE, "num_images": 2}
    document = httpx2.post(f"{live_server}/generate", json=body, headers={"Prefer": "wait=30"}, timeout=40).json()
    return [httpx2.get(live_server + image["url"]).content for image in document["images"]]


def test_run_gives_the_files_that_our_own_api_gives(theirs: replicate.Client, ours: list[bytes]) -> None:
    outputs = theirs.run(MODEL, input={**APPLE, "num_outputs": 2})
    assert all(isinstance(output, FileOutput) for output in outputs)
    assert [output.read() for output in outputs] == ours


def test_run_takes_a_version_and_asks_until_it_is_done(theirs: replicate.Client, ours: list[bytes]) -> None:
    model = theirs.models.get(MODEL)
    assert model.latest_version is not None
    version = model.versions.get(model.latest_version.id)
    assert version == model.versions.list()[0]
    addresses = theirs.run(f"{MODEL}:{version.id}", input=APPLE, wait=False)
    assert [httpx2.get(address).content for address in addresses] == ours[:1]
    assert theirs.run(version, input=APPLE)[0].read() == ours[0]


def test_a_prediction_is_created_waited_for_and_reloaded(theirs: replicate.Client, ours: list[bytes]) -> None:
    version = theirs.models.get(MODEL).versions.list()[0]
    prediction = theirs.predictions.create(version=version, input=APPLE)
    assert prediction.status in ("starting", "processing")
    assert prediction.input == APPLE
    prediction.wait()
    assert (prediction.status, prediction.model, prediction.version) == ("succeeded", MODEL, version.id)
    assert FileOutput(prediction.output[0], theirs).read() == ours[0]
    assert prediction.progress is not None
    assert (prediction.progress.percentage, prediction.progress.current) == (1.0, 4)
    assert prediction.id in [listed.id for listed in theirs.predictions.list()]


def test_a_long_prediction_shows_its_progress_and_can_be_canceled(theirs: replicate.Client) -> None:
    prediction = theirs.predictions.create(model=MODEL, input=LONG)
    while prediction.progress is None:
        time.sleep(0.02)
        prediction.reload()
    assert prediction.status == "processing"
    assert prediction.progress.total == 900
    prediction.cancel()
    assert (prediction.status, prediction.output) == ("canceled", None)
    prediction.cancel()
    assert theirs.predictions.get(prediction.id).status == "canceled"


@pytest.mark.parametrize("encoding", ["url", "base64"])
def test_files_are_inputs(theirs: replicate.Client, encoding: Any) -> None:
    red = Image.new("RGB", (128, 128), (200, 30, 30))
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    given = {"prompt": "a green apple", "num_inference_steps": 4, "seed": 1, "image": file_of(red)}
    varied = theirs.run(MODEL, input={**given, "prompt_strength": 0.6}, file_encoding_strategy=encoding)
    assert Image.open(io.BytesIO(varied[0].read())).size == (128, 128)
    painted = theirs.run(MODEL, input={**given, "mask": file_of(mask)}, file_encoding_strategy=encoding)
    picture = Image.open(io.BytesIO(painted[0].read()))
    assert picture.crop((64, 0, 128, 128)).tobytes() == red.crop((64, 0, 128, 128)).tobytes()
    assert picture.crop((0, 0, 64, 128)).tobytes() != red.crop((0, 0, 64, 128)).tobytes()


def test_a_webhook_is_signed_so_that_its_users_can_check_it(theirs: replicate.Client) -> None:
    with FakeReceiver() as receiver:
        prediction = theirs.predictions.create(model=MODEL, input=APPLE, webhook=receiver.url)
        told = receiver.next()
        assert (told.json["id"], told.json["status"]) == (prediction.id, "succeeded")
        secret = theirs.webhooks.default.secret()
        body = told.body.decode()
        theirs.webhooks.validate(headers=told.headers, body=body, secret=secret, tolerance=60)
        with pytest.raises(InvalidSignatureError):
            theirs.webhooks.validate(headers=told.headers, body=body.replace("apple", "table"), secret=secret)


def test_files_are_kept_and_deleted(theirs: replicate.Client) -> None:
    upload = theirs.files.create(file_of(MASK))
    assert theirs.files.get(upload.id) == upload
    assert theirs.files.delete(upload.id)
    with pytest.raises(ReplicateError):
        theirs.files.get(upload.id)


def test_a_stream_shows_progress_and_gives_the_file(theirs: replicate.Client, ours: list[bytes]) -> None:
    events = list(theirs.stream(MODEL, input=APPLE))
    names = [event.event.value for event in events]
    assert names[-2:] == ["output", "done"]
    assert set(names[:-2]) <= {"logs"}
    output: Any = events[-2].data
    assert output.read() == ours[0]


def test_errors_are_of_the_classes_that_its_users_catch(theirs: replicate.Client) -> None:
    with pytest.raises(ReplicateError, match=r"width 100 is no multiple of 8") as refused:
        theirs.run(MODEL, input={**APPLE, "width": 100})
    assert (refused.value.status, refused.value.title) == (422, "The model cannot draw this size")
    with pytest.raises(ReplicateError) as absent:
        theirs.run("denoised/nothing", input=APPLE)
    assert absent.value.status == 404
    with pytest.raises(ModelError, match="deadline_exceeded"):
        theirs.run(MODEL, input={**LONG, "deadline_s": 0.2})
    assert theirs.accounts.current().username == "local"


def test_the_asynchronous_half_works_too(theirs: replicate.Client, ours: list[bytes]) -> None:
    async def use() -> None:
        outputs = await theirs.async_run(MODEL, input=APPLE)
        assert await outputs[0].aread() == ours[0]
        version = await (await theirs.models.async_get(MODEL)).versions.async_get(theirs_version)
        prediction = await theirs.predictions.async_create(version=version, input={**APPLE, "image": file_of(MASK)})
        await prediction.async_wait()
        assert prediction.status == "succeeded"
        long = await theirs.predictions.async_create(model=MODEL, input=LONG)
        await long.async_cancel()
        assert (await theirs.predictions.async_get(long.id)).status == "canceled"
        assert long.id in [listed.id for listed in await theirs.predictions.async_list()]
        events = [event.event.value async for event in await theirs.async_stream(MODEL, input=APPLE)]
        assert events[-2:] == ["output", "done"]
        await theirs._async_client.aclose()

    theirs_version = theirs.models.get(MODEL).versions.list()[0].id
    asyncio.run(use())
