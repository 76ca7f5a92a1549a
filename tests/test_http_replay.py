"""POST /replay at the door: what is found in files and recipes, what is queued, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from models.request import (
    MAX_SEED,
    AnyRequest,
    ControlChoice,
    ImageToImageRequest,
    InpaintingRequest,
    LoraChoice,
    TextToImageRequest,
)
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, FakeWorker, encoded, is_untouched, png, serving
from tests.test_http_errors import assert_problem
from workers.contract import (
    CONTRACT_VERSION,
    Making,
    OutputFormat,
    Provenance,
    Reason,
    Verdict,
    needed_version,
)
from workers.pictures import Recipe, digest_of_pixels, encode_picture, recipe_of
from workers.store import LocalStore

pytestmark = pytest.mark.asyncio

PIXELS = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
OTHER = "e" * 64
MAKING = Making(contract="strict", hardware="cpu", dtype="float32", software={"torch": "2.13.0"})
PROVENANCE = Provenance(model_digest=ENTRY.digest, pixels_sha256=digest_of_pixels(PIXELS), made_with=MAKING)
COMMON: dict[str, Any] = {
    "model": "first",
    "prompt": "a pear",
    "width": 128,
    "height": 128,
    "num_inference_steps": 8,
    "guidance_scale": 5.0,
    "sampler": "euler",
    "noise_schedule": "karras",
    "num_images": 2,
    "seed": 7,
}
TEXT = TextToImageRequest(**COMMON)
EVERYTHING = TextToImageRequest(
    **COMMON
    | {"negative_prompt": "blue", "clip_skip": 1, "guidance_rescale": 0.5, "prompt_syntax": "plain", "upscaler": "x4"}
    | {"reproducibility": "strict", "loras": (LoraChoice(name="ink", weight=0.5),)}
)
MASK = encoded(Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16)))


@pytest.fixture
def worker(redis_client: redis.Redis, store: LocalStore) -> FakeWorker:
    fake = FakeWorker(redis_client, store)
    fake.publish(
        ENTRY.model_copy(
            update={"tasks": ("text-to-image", "image-to-image", "inpainting"), "upscalers": ("x4",), "min_size": 8}
        )
    )
    return fake


def recipe_for(request: AnyRequest = TEXT, index: int = 0, **changes: Any) -> dict[str, Any]:
    """The recipe of a picture of the request; what is `...` in the changes is left out of it."""
    recipe = {**recipe_of(request, index, PROVENANCE), **changes}
    return {name: value for name, value in recipe.items() if value is not ...}


def file_of(recipe: Recipe, output_format: OutputFormat = "png") -> bytes:
    return encode_picture(PIXELS, output_format, recipe).data


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def submission_of(worker: FakeWorker, document: dict[str, Any]) -> Any:
    view = worker.board.get(document["id"])
    assert view is not None
    return view.record.submission


@pytest.mark.parametrize(("output_format", "kind"), [("png", "lossless"), ("webp", "lossless"), ("jpeg", "jpeg")])
async def test_a_picture_is_queued_as_its_recipe_says_and_kept_beside_the_job(
    redis_url, store, worker, output_format: OutputFormat, kind: str
) -> None:
    data = file_of(recipe_for(EVERYTHING, 1), output_format)
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", files={"image": ("a.bin", data)})
    assert answer.status_code == 202, answer.text
    document = answer.json()
    assert answer.headers["Location"] == document["links"]["self"]
    assert (document["replay"], document["request"]["num_images"]) == (None, 1)
    submission = submission_of(worker, document)
    assert submission.request == EVERYTHING.model_copy(update={"seed": 8, "num_images": 1})
    assert submission.original.provenance == PROVENANCE
    assert submission.original.file_kind == kind
    assert needed_version(submission) == CONTRACT_VERSION
    kept = store.get(document["id"], submission.original.picture.removeprefix("sha256:") + ".png")
    with Image.open(io.BytesIO(kept)) as image:
        assert np.array_equal(np.asarray(image), PIXELS) == (kind == "lossless")
    assert worker.board.upload_holder("local", submission.original.picture.removeprefix("sha256:")) == document["id"]


async def test_every_way_to_send_a_recipe_queues_the_same(redis_url, store, worker) -> None:
    recipe = recipe_for()
    stripped = png(128, 128)
    bodies = [
        {"json": {"image": text_of(file_of(recipe))}},
        {"json": {"image": f"data:image/png;base64,{text_of(file_of(recipe))}"}},
        {"files": {"image": ("a.png", file_of(recipe))}},
        {"json": {"recipe": recipe}},
        {"json": {"recipe": json.dumps(recipe)}},
        {"data": {"recipe": json.dumps(recipe)}, "files": {"image": ("a.png", stripped)}},
        {"json": {"recipe": recipe, "image": text_of(file_of(recipe_for(prompt="a plum")))}},
    ]
    async with serving(redis_url, store) as client:
        answers = [await client.post("/replay", **body) for body in bodies]
    assert [answer.status_code for answer in answers] == [202] * len(bodies), answers[-2].text
    submissions = [submission_of(worker, answer.json()) for answer in answers]
    assert {submission.request for submission in submissions} == {TEXT.model_copy(update={"num_images": 1})}
    has_picture = [submission.original.picture is not None for submission in submissions]
    assert has_picture == [True, True, True, False, False, True, True]


async def test_delivery_priority_deadline_and_webhook_are_those_of_any_job(redis_url, store, worker) -> None:
    form = {"output_format": "webp", "previews": "true", "priority": "low", "deadline_s": "60"}
    webhook = {"webhook": '{"url": "https://example.org/hook"}'}
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", data=form | webhook, files={"image": ("a.png", file_of(recipe_for()))})
        inside = {"recipe": recipe_for(), "webhook": {"url": "http://10.0.0.1/hook"}}
        assert_problem(await client.post("/replay", json=inside), "webhook_refused")
    request = answer.json()["request"]
    wanted = {"output_format": "webp", "previews": True, "priority": "low", "deadline_s": 60}
    assert {name: request[name] for name in form} == wanted
    assert answer.json()["webhook"]["url"] == "https://example.org/hook"


async def test_a_repeat_with_the_same_key_is_the_same_job(redis_url, store, worker) -> None:
    body, headers = {"recipe": recipe_for()}, {"Idempotency-Key": "again"}
    async with serving(redis_url, store) as client:
        first = await client.post("/replay", json=body, headers=headers)
        again = await client.post("/replay", json=body, headers=headers)
        other = await client.post("/replay", json={"recipe": recipe_for(seed=9)}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert_problem(other, "idempotency_conflict")


async def test_the_document_tells_the_verdict(redis_url, store, worker, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict(agrees=False, contract=None, exact=False, reasons=(Reason(code="model_changed", detail="So."),))
    async with serving(redis_url, store) as client:
        job = (await client.post("/replay", json={"recipe": recipe_for()})).json()
        commit = worker._commit
        monkeypatch.setattr(
            worker, "_commit", lambda job_id, outcome: commit(job_id, outcome.model_copy(update={"replay": verdict}))
        )
        worker.draw(job["id"])
        document = (await client.get(job["links"]["self"])).json()
    assert document["replay"] == verdict.model_dump(mode="json")


@pytest.mark.parametrize(
    ("name", "digests", "wanted"),
    [
        ("first", {"first": ENTRY.digest, "copy": ENTRY.digest}, "first"),
        ("gone", {"first": ENTRY.digest}, "first"),
        ("first", {"first": OTHER, "renamed": ENTRY.digest}, "renamed"),
        ("first", {"first": OTHER}, "first"),
    ],
    ids=["as ever", "under another name", "where it went", "another in its place"],
)
async def test_the_very_model_draws_under_whatever_name_and_else_the_one_of_its_name(
    redis_url, store, worker, name: str, digests: dict[str, str], wanted: str
) -> None:
    for model, digest in digests.items():
        worker.publish(ENTRY.model_copy(update={"name": model, "digest": digest}))
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", json={"recipe": recipe_for(model=name)})
    assert answer.json()["request"]["model"] == wanted


async def test_the_very_upscaler_enlarges_under_another_name(redis_url, store, worker) -> None:
    beside = {"name": "x4-new", "tasks": ("upscale",), "upscale_factor": 4, "digest": OTHER}
    worker.publish(ENTRY.model_copy(update={"upscalers": ("x4-new",)}))
    worker.publish(ENTRY.model_copy(update=beside))
    made_with = MAKING.model_copy(update={"upscaler": OTHER}).model_dump(mode="json")
    recipe = recipe_for(TEXT.model_copy(update={"upscaler": "x4"}), made_with=made_with)
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", json={"recipe": recipe})
    assert answer.json()["request"]["upscaler"] == "x4-new"


async def test_a_recipe_of_version_2_is_accepted(redis_url, store, worker) -> None:
    recipe = recipe_for(pixels_sha256=..., made_with=..., contract_version=2)
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", files={"image": ("a.png", file_of(recipe))})
    assert answer.status_code == 202
    assert submission_of(worker, answer.json()).original.provenance == Provenance(model_digest=ENTRY.digest)


# --- what it was made from -------------------------------------------------------------------------------------------


async def drawn_from(client: Any, **body: Any) -> dict[str, Any]:
    """A job that holds its uploads; its document."""
    fields = {"prompt": "a pear", "image": text_of(png(64, 64)), "seed": 1, **body}
    answer = await client.post("/generate", json=fields)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def recipe_of_job(worker: FakeWorker, job: dict[str, Any]) -> dict[str, Any]:
    return recipe_for(submission_of(worker, job).request)


async def erase(client: Any, job: dict[str, Any]) -> None:
    assert (await client.delete(job["links"]["self"])).status_code < 300  # cancels
    assert (await client.delete(job["links"]["self"])).status_code < 300  # erases


INPAINTING = {"task": "inpainting", "mask_image": text_of(MASK), "mask_blur": 3}


@pytest.mark.parametrize("is_held", [True, False])
async def test_uploads_are_taken_from_jobs_that_hold_them_or_sent_again(redis_url, store, worker, is_held) -> None:
    async with serving(redis_url, store) as client:
        controls = [{"name": "edges", "image": text_of(png(64, 64, (1, 2, 3)))}]
        job = await drawn_from(client, **INPAINTING, controls=controls)
        recipe = await recipe_of_job(worker, job)
        sent = {}
        if not is_held:
            await erase(client, job)
            for name in ("init_image", "mask_image", "control_images"):
                answer = await client.post("/replay", json={"recipe": recipe, **sent})
                assert_problem(answer, "upload_unknown")
                assert answer.json()["errors"][0]["pointer"] == f"/{name}"
                assert f"`{name}`" in answer.json()["detail"]
                again = {"init_image": text_of(png(64, 64)), "mask_image": text_of(MASK)}
                sent[name] = again.get(name) or [controls[0]["image"]]
        document = (await client.post("/replay", json={"recipe": recipe, **sent})).json()
    request = submission_of(worker, document).request
    assert request == submission_of(worker, job).request if is_held else InpaintingRequest(**recipe_request(recipe))
    for reference in (request.image, request.mask_image, request.controls[0].image):
        assert store.get(document["id"], f"{reference.removeprefix('sha256:')}.png")


def recipe_request(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name in InpaintingRequest.model_fields}


@pytest.mark.parametrize(
    ("sent_first", "sent_again"),
    [
        ({"mask_image": (9, 9, 9, 0), "mask_convention": "transparent"}, "mask_image"),
        ({"mask_image": (255, 255, 255, 255), "mask_convention": "white"}, "mask_image"),
        ({"image": (9, 9, 9, 0)}, "init_image"),
    ],
    ids=["transparent", "white strokes", "a hole in the picture"],
)
async def test_a_mask_that_is_sent_again_is_known_whatever_its_convention(
    redis_url, store, worker, sent_first: dict[str, Any], sent_again: str
) -> None:
    def holed(inside: tuple[int, ...]) -> str:
        pixels = np.full((64, 64, 4), (0, 0, 0, 255 if inside[3] == 0 else 0), np.uint8)
        pixels[16:48, 16:48] = inside
        return text_of(encoded(Image.fromarray(pixels)))

    first = {name: holed(value) if isinstance(value, tuple) else value for name, value in sent_first.items()}
    async with serving(redis_url, store) as client:
        job = await drawn_from(client, task="inpainting", **first)
        recipe = await recipe_of_job(worker, job)
        await erase(client, job)
        sent = {"init_image": first.get("image", text_of(png(64, 64)))} | (
            {"mask_image": first["mask_image"]} if sent_again == "mask_image" else {}
        )
        answer = await client.post("/replay", json={"recipe": recipe, **sent})
    assert answer.status_code == 202, answer.text
    assert answer.json()["request"]["mask_image"] == recipe["mask_image"]


async def test_one_upload_may_be_the_picture_the_mask_and_a_control(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        recipe = await recipe_of_job(worker, await drawn_from(client, **INPAINTING))
        mask, control = recipe["mask_image"], {"name": "edges", "weight": 1.0, "start": 0.0, "end": 1.0}
        controlled = {**recipe, "controls": [{**control, "image": mask}]}
        bodies: list[dict[str, Any]] = [{"recipe": {**recipe, "image": mask}}, {"recipe": controlled}]
        bodies.append({"recipe": controlled, "mask_image": text_of(MASK)})
        for body in bodies:
            answer = await client.post("/replay", json=body)
            assert answer.status_code == 202, answer.text
            assert answer.json()["request"]["mask_image"] == mask
        answer = await client.post("/replay", json={"recipe": {**recipe, "mask_image": recipe["image"]}})
        assert_problem(answer, "mask_empty")


WRONG = {
    "init_image": text_of(png(64, 64, (9, 9, 9))),
    "mask_image": text_of(encoded(Image.new("L", (64, 64), 255))),
    "control_images": [text_of(png(8, 8))],
}


@pytest.mark.parametrize("name", WRONG)
async def test_another_picture_than_the_recipe_names_is_refused(redis_url, store, worker, name: str) -> None:
    async with serving(redis_url, store) as client:
        job = await drawn_from(client, **INPAINTING, controls=[{"name": "edges", "image": text_of(png(64, 64))}])
        recipe = await recipe_of_job(worker, job)
        answer = await client.post("/replay", json={"recipe": recipe, name: WRONG[name]})
        text = await client.post("/replay", json={"recipe": recipe_for(), name: WRONG[name]})
    assert_problem(answer, "upload_mismatch")
    assert answer.json()["errors"][0]["pointer"].startswith(f"/{name}")
    assert_problem(text, "field_invalid")
    assert "leave it out" in text.json()["detail"]


async def test_uploads_of_others_are_nobodys(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        client.headers.update(ALICE)
        recipe = await recipe_of_job(worker, await drawn_from(client, task="image-to-image"))
        answer = await client.post("/replay", json={"recipe": recipe}, headers=BOB)
    assert_problem(answer, "upload_unknown")


# --- what is refused -------------------------------------------------------------------------------------------------


def with_parameters(text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    return encoded(Image.fromarray(PIXELS), pnginfo=info)


def described(text: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = text
    return encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)


IMAGE = ImageToImageRequest(**COMMON, image="sha256:" + "0" * 64, strength=0.5)
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "field_invalid", ""),
    ({"recipe": None, "image": None}, "field_invalid", ""),
    ({"image": "?"}, "image_not_base64", "/image"),
    ({"image": text_of(b"GIF89a")}, "image_format_unsupported", "/image"),
    ({"image": text_of(file_of(recipe_for())[:2000])}, "image_broken", "/image"),
    ({"image": text_of(png())}, "recipe_missing", "/image"),
    ({"image": text_of(described("a holiday"))}, "recipe_missing", "/image"),
    ({"image": text_of(described('{"of": "another program"}'))}, "recipe_missing", "/image"),
    ({"image": text_of(with_parameters("a pear\nSteps: 20"))}, "recipe_missing", "/image"),
    ({"recipe": "no json"}, "recipe_invalid", ""),
    ({"recipe": "[1]"}, "recipe_invalid", ""),
    ({"recipe": {}}, "recipe_invalid", "/recipe/contract_version"),
    ({"recipe": recipe_for(seed=...)}, "recipe_invalid", "/recipe/seed"),
    ({"recipe": recipe_for(seed="7")}, "recipe_invalid", "/recipe/seed"),
    ({"recipe": recipe_for(seed=MAX_SEED + 1)}, "recipe_invalid", "/recipe/seed"),
    ({"recipe": recipe_for(prompt=...)}, "recipe_invalid", "/recipe/prompt"),
    ({"recipe": recipe_for(prompt="a \0 pear")}, "recipe_invalid", "/recipe/prompt"),
    ({"recipe": recipe_for(novelty=1)}, "recipe_invalid", "/recipe/novelty"),
    ({"recipe": recipe_for(num_images=2)}, "recipe_invalid", "/recipe/num_images"),
    ({"recipe": recipe_for(model_digest=...)}, "recipe_invalid", "/recipe/model_digest"),
    ({"recipe": recipe_for(pixels_sha256="x")}, "recipe_invalid", "/recipe/pixels_sha256"),
    ({"recipe": recipe_for(made_with={"contract": "loose"})}, "recipe_invalid", "/recipe/made_with/contract"),
    (
        {"recipe": recipe_for(made_with=MAKING.model_dump() | {"hardware": "\x1b[2J"})},
        "recipe_invalid",
        "/recipe/made_with",
    ),
    ({"recipe": recipe_for(contract_version=99)}, "recipe_invalid", "/recipe/contract_version"),
    ({"recipe": recipe_for(task="sculpture")}, "recipe_invalid", "/recipe"),
    ({"recipe": recipe_for(sampler="DPM++ 2M")}, "recipe_invalid", "/recipe/sampler"),
    ({"recipe": recipe_for(sampler="zork")}, "sampler_unknown", "/recipe/sampler"),
    ({"recipe": recipe_for(prompt=" ")}, "prompt_empty", "/recipe/prompt"),
    ({"recipe": recipe_for(width=1024)}, "size_invalid", "/recipe/width"),
    ({"recipe": recipe_for(num_inference_steps=5000)}, "steps_out_of_range", "/recipe/num_inference_steps"),
    ({"recipe": recipe_for(model="gone", model_digest=OTHER)}, "model_unknown", "/recipe/model"),
    ({"recipe": recipe_for(loras=[{"name": "iron", "weight": 1}])}, "lora_unknown", "/recipe/loras/0"),
    ({"recipe": recipe_for(upscaler="x9")}, "upscaler_unknown", "/recipe/upscaler"),
    (
        {"recipe": recipe_for(controls=[ControlChoice(name="poses", image="sha256:" + "0" * 64).model_dump()])},
        "control_unknown",
        "/recipe/controls/0",
    ),
    ({"recipe": recipe_for(IMAGE)}, "upload_unknown", "/init_image"),
    ({"recipe": recipe_for(), "prompt": "a plum"}, "field_unknown", "/prompt"),
    ({"recipe": recipe_for(), "priority": "urgent"}, "field_invalid", "/priority"),
]


@pytest.mark.parametrize(("body", "code", "pointer"), REFUSED, ids=[f"{code}{place}" for _, code, place in REFUSED])
async def test_what_cannot_be_replayed_is_refused_by_name_and_leaves_nothing(
    redis_url, redis_client, store, worker, body: dict[str, Any], code: str, pointer: str
) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", json=body)
    assert_problem(answer, code)
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)
    assert is_untouched(redis_client, store)


async def test_parameters_of_other_tools_are_refused_by_name(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/replay", files={"image": ("a.png", with_parameters("a pear\nSteps: 20"))})
    assert "`parameters` as other tools write them" in answer.json()["detail"]


async def test_high_priority_needs_a_key_that_may(redis_url, store, worker) -> None:
    async with serving(redis_url, store, api_keys=KEYS, high_priority=("alice",)) as client:
        body = {"recipe": recipe_for(), "priority": "high"}
        assert_problem(await client.post("/replay", json=body, headers=BOB), "priority_refused")
        assert (await client.post("/replay", json=body, headers=ALICE)).status_code == 202


async def test_a_full_queue_is_told_as_for_any_job(redis_url, store, worker) -> None:
    async with serving(redis_url, store, max_queued=1) as client:
        assert (await client.post("/replay", json={"recipe": recipe_for()})).status_code == 202
        assert_problem(await client.post("/replay", json={"recipe": recipe_for(seed=8)}), "queue_full")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
RECIPES = st.builds(
    lambda base, changes, dropped: {name: value for name, value in {**base, **changes}.items() if name not in dropped},
    st.sampled_from([recipe_for(), recipe_for(EVERYTHING), recipe_for(IMAGE)]),
    st.dictionaries(st.sampled_from([*recipe_for(IMAGE), "novelty"]), VALUES, max_size=3),
    st.sets(st.sampled_from([*recipe_for(IMAGE)]), max_size=1),
)
JUNK = st.one_of(
    RECIPES.map(lambda recipe: {"recipe": recipe}),
    RECIPES.map(lambda recipe: {"recipe": json.dumps(recipe)}),
    RECIPES.map(lambda recipe: {"image": text_of(described(json.dumps(recipe)))}),
    st.text(max_size=60).map(lambda text: {"recipe": text}),
    st.text(max_size=60).map(lambda text: {"image": text_of(described(text))}),
    st.dictionaries(st.sampled_from(["recipe", "image", "init_image", "mask_image", "control_images"]), VALUES),
)


async def test_junk_is_refused_and_leaves_nothing(redis_url, redis_client, store, worker) -> None:
    """Whatever a recipe says, it is queued as it says or it is refused."""
    async with serving(redis_url, store, max_queued=10**6) as client:

        @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
        @given(body=JUNK)
        def try_one(body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            answer = anyio.from_thread.run(send, content)
            assert answer.status_code in (202, 400, 422), answer.text
            if answer.status_code == 202:
                redis_client.flushdb()
                worker.publish()
                for path in store.root.rglob("*.png"):
                    path.unlink()
            assert is_untouched(redis_client, store)

        async def send(content: bytes) -> Any:
            return await client.post("/replay", content=content, headers={"Content-Type": "application/json"})

        await anyio.to_thread.run_sync(try_one)
