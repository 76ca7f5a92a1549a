"""OpenAI's Images API: what its fields become, what is refused and how, and that the `openai` package works with it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import pytest_asyncio
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from app.dialect import dialect_of, installed_dialects
from app.dialects.openai.answers import Partials
from tests.http_kit import ENTRY, KEYS, FakeWorker, encoded, is_let_go, is_untouched, png, serving
from tests.test_http_fuzz import VALUES
from workers.contract import Submission, key
from workers.store import LocalStore

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PEAR = {"prompt": "a pear"}


def entry(**changes: Any) -> Any:
    return ENTRY.model_copy(update={"tasks": ("text-to-image", "image-to-image", "inpainting"), **changes})


@pytest.fixture
def worker(redis_client: redis.Redis, store: LocalStore) -> FakeWorker:
    fake = FakeWorker(redis_client, store)
    fake.publish(entry())
    return fake


@pytest_asyncio.fixture
async def client(redis_url: str, store: LocalStore, worker: FakeWorker) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, store) as client:
        yield client


async def drawn(worker: FakeWorker, call: Any) -> tuple[Any, Submission, list[bytes]]:
    """What a call answers, with the job that it queued and the files that were drawn for it."""
    answer = asyncio.ensure_future(call)
    job_id = await asyncio.to_thread(worker.next_job)
    files = await asyncio.to_thread(worker.draw, job_id)
    view = worker.board.get(job_id)
    assert view is not None
    return await answer, view.record.submission, files


def pierced(width: int = 48, height: int = 32, alpha: int = 0) -> bytes:
    """A picture whose left half is transparent."""
    picture = Image.new("RGBA", (width, height), (200, 30, 30, 255))
    picture.paste((200, 30, 30, alpha), (0, 0, width // 2, height))
    return encoded(picture)


# --- what it becomes -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_its_words_become_our_fields(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    body = {
        "prompt": "a pear",
        "model": "first",
        "n": 2,
        "size": "128x64",
        "quality": "standard",
        "style": None,
        "response_format": "b64_json",
        "output_format": "webp",
        "output_compression": 100,
        "background": "auto",
        "moderation": "low",
        "partial_images": 0,
        "stream": False,
        "user": "u1",
        "safety_identifier": "s1",
        "seed": 7,
        "steps": 9,
        "cfg_scale": 3.5,
        "negative_prompt": "blue",
        "sampler": "euler",
        "loras": [{"name": "ink", "weight": 0.5}],
        "priority": "low",
        "deadline_s": 500.0,
    }
    answer, submission, files = await drawn(worker, client.post(GENERATIONS, json=body))
    request = submission.request
    assert (request.task, request.width, request.height, request.num_images) == ("text-to-image", 128, 64, 2)
    assert (request.seed, request.num_inference_steps, request.guidance_scale) == (7, 9, 3.5)
    assert (request.negative_prompt, request.sampler, request.loras[0].name) == ("blue", "euler", "ink")
    assert (submission.priority, submission.deadline_s, submission.dialect) == ("low", 500.0, "openai")
    assert submission.delivery.output_format == "webp"
    assert not submission.delivery.previews
    document = answer.json()
    assert [base64.b64decode(item["b64_json"]) for item in document["data"]] == files
    assert [item["seed"] for item in document["data"]] == [7, 8]
    assert (document["size"], document["background"], document["output_format"]) == ("128x64", "opaque", "webp")
    assert (await client.get(f"/jobs/{document['id']}")).json()["status"] == "succeeded"


@pytest.mark.asyncio
async def test_who_waits_for_an_edit_does_not_hold_its_picture(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    image = encoded(Image.fromarray(noise), compress_level=0)
    tracemalloc.start(6)
    try:
        call = asyncio.ensure_future(client.post(EDITS, data=PEAR, files={"image": image}))
        job_id = await asyncio.to_thread(worker.next_job)
        assert await is_let_go(len(image) // 2)
    finally:
        tracemalloc.stop()
    await asyncio.to_thread(worker.draw, job_id)
    assert (await call).status_code == 200


@pytest.mark.asyncio
async def test_what_is_left_out_null_or_auto_is_the_models_own(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    nothing = {"size": "auto", "quality": "auto", "background": "opaque", "model": None, "n": None}
    nothing |= {"output_format": None, "response_format": None, "stream": None, "partial_images": None}
    _, submission, _ = await drawn(worker, client.post(GENERATIONS, json=PEAR | nothing))
    request = submission.request
    assert (request.width, request.height, request.num_images) == (128, 128, 1)
    assert submission.delivery.output_format == "png"


@pytest.mark.asyncio
async def test_a_picture_can_be_asked_for_as_an_address(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    answer, _, files = await drawn(worker, client.post(GENERATIONS, json=PEAR | {"response_format": "url"}))
    (item,) = answer.json()["data"]
    assert item["url"].startswith("http://localhost/jobs/")
    assert (await client.get(item["url"])).content == files[0]


@pytest.mark.parametrize(
    ("image", "mask", "fields", "task"),
    [
        (png(), None, {}, "image-to-image"),
        (png(), pierced(), {}, "inpainting"),
        (pierced(), None, {}, "inpainting"),
        (pierced(alpha=200), None, {}, "image-to-image"),
        (png(), None, {"outpaint_right": "16"}, "inpainting"),
        (encoded(Image.new("RGB", (48, 32)), "JPEG"), None, {}, "image-to-image"),
        (png(), encoded(Image.new("L", (48, 32), 255)), {"mask_convention": "white"}, "inpainting"),
    ],
)
@pytest.mark.asyncio
async def test_an_edit_is_inpainting_where_something_says_what_to_edit(
    client: httpx2.AsyncClient, worker: FakeWorker, image: bytes, mask: bytes | None, fields: Any, task: str
) -> None:
    files = {"image": ("a.png", image)} | ({"mask": ("m.png", mask)} if mask else {})
    _, submission, _ = await drawn(worker, client.post(EDITS, data=PEAR | fields, files=files))
    assert submission.request.task == task


@pytest.mark.asyncio
async def test_the_transparent_part_of_a_mask_is_what_is_edited(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    files = {"image": png(), "mask": pierced()}
    _, submission, _ = await drawn(worker, client.post(EDITS, data=PEAR, files=files))
    request = submission.request
    assert request.task == "inpainting"
    mask = next(path for path in store.root.rglob("*.png") if request.mask_image.removeprefix("sha256:") in path.name)
    drawn_anew = np.asarray(Image.open(mask)) == 255
    assert drawn_anew[:, :24].all()
    assert not drawn_anew[:, 24:].any()


@pytest.mark.asyncio
async def test_texts_of_a_form_are_numbers_where_numbers_are_meant(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    texts = {"n": "2", "steps": "9", "cfg_scale": "2.5", "seed": "4", "strength": "0.5", "size": "64x64"}
    texts |= {"deadline_s": "500", "loras": '[{"name": "ink"}]', "stream": "false", "partial_images": "0"}
    _, submission, _ = await drawn(worker, client.post(EDITS, data=PEAR | texts, files={"image[]": png()}))
    request = submission.request
    assert request.task == "image-to-image"
    assert (request.num_images, request.num_inference_steps, request.seed, request.strength) == (2, 9, 4, 0.5)
    assert (request.width, request.height, submission.deadline_s) == (64, 64, 500.0)


@pytest.mark.asyncio
async def test_an_edit_with_a_mask_may_say_the_size_of_its_picture(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    files = {"image": png(96, 64), "mask": pierced(96, 64)}
    other = await client.post(EDITS, data=PEAR | {"size": "64x64"}, files=files)
    assert (other.status_code, other.json()["error"]["param"]) == (400, "size")
    assert "96x64" in other.json()["error"]["message"]
    assert is_untouched(worker.client, store)
    _, submission, _ = await drawn(worker, client.post(EDITS, data=PEAR | {"size": "96x64"}, files=files))
    assert submission.request.task == "inpainting"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"size": "65x64"}, "size_invalid", "size"),
        ({"size": "1024x1024"}, "size_invalid", "size"),
        ({"size": "large"}, "size_invalid", "size"),
        ({"size": 64}, "field_invalid", "size"),
        ({"size": "64x64", "width": 64}, "field_invalid", "size"),
        ({"width": 65}, "size_invalid", "width"),
        ({"n": 5}, "num_images_out_of_range", "n"),
        ({"n": "2"}, "field_invalid", "n"),
        ({"steps": 0}, "steps_out_of_range", "steps"),
        ({"num_inference_steps": 0}, "steps_out_of_range", "num_inference_steps"),
        ({"steps": 4, "num_inference_steps": 4}, "field_invalid", "steps"),
        ({"model": "dall-e-3"}, "model_unknown", "model"),
        ({"prompt": " "}, "prompt_empty", "prompt"),
        ({"prompt": None}, "field_invalid", "prompt"),
        ({"quality": "hd"}, "field_unsupported", "quality"),
        ({"style": "vivid"}, "field_unsupported", "style"),
        ({"background": "transparent"}, "field_unsupported", "background"),
        ({"output_format": "gif"}, "field_invalid", "output_format"),
        ({"output_compression": 50}, "field_unsupported", "output_compression"),
        ({"input_fidelity": "high"}, "field_unsupported", "input_fidelity"),
        ({"svg": {"model": "x"}}, "field_unsupported", "svg"),
        ({"response_format": "file"}, "field_invalid", "response_format"),
        ({"partial_images": 4, "stream": True}, "field_invalid", "partial_images"),
        ({"partial_images": 1}, "field_invalid", "partial_images"),
        ({"stream": True, "n": 2}, "field_unsupported", "n"),
        ({"stream": True, "response_format": "url"}, "field_unsupported", "response_format"),
        ({"num_images": 2}, "field_unknown", "num_images"),
        ({"previews": True}, "field_unknown", "previews"),
        ({"task": "upscale"}, "field_unknown", "task"),
        ({"stepz": 3}, "field_unknown", "stepz"),
        ({"loras": [{"name": "iron"}]}, "lora_unknown", "loras.0"),
    ],
)
@pytest.mark.asyncio
async def test_a_refusal_names_the_field_that_its_client_sent(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore, change: dict[str, Any], code: str, param: str
) -> None:
    answer = await client.post(GENERATIONS, json=PEAR | change)
    assert answer.status_code == 400, answer.text
    error = assert_error(answer)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert is_untouched(worker.client, store)
    assert not worker.client.keys(key("repeats", "*"))


def assert_error(answer: httpx2.Response) -> dict[str, Any]:
    """The error of an answer that has OpenAI's shape."""
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["message"]
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("path", "form", "code", "param"),
    [
        (EDITS, {"data": PEAR}, "content_type_unsupported", None),
        (EDITS, {"json": PEAR}, "field_invalid", "image"),
        (EDITS, {"data": {**PEAR, "image": "AAAA"}, "files": {"mask": pierced()}}, "field_invalid", "image"),
        (EDITS, {"data": PEAR, "files": {"image": b"no picture"}}, "image_format_unsupported", "image"),
        (EDITS, {"data": PEAR, "files": {"image": png(), "mask": pierced(8, 8)}}, "mask_size_mismatch", "mask"),
        (EDITS, {"data": PEAR, "files": {"image": png(), "mask": png()}}, "mask_empty", "mask"),
        (EDITS, {"data": PEAR, "files": [("image[]", png()), ("image[]", png())]}, "field_unsupported", "image[]"),
        (EDITS, {"data": PEAR, "files": {"image": png(), "image[]": png()}}, "field_unsupported", "image[]"),
        (EDITS, {"data": {}, "files": {"image": png()}}, "field_invalid", "prompt"),
        (EDITS, {"data": PEAR | {"mask_blur": "3"}, "files": {"image": png()}}, "field_unknown", "mask_blur"),
        ("/v1/images/variations", {"data": {}, "files": {"image": png()}}, "prompt_empty", "prompt"),
        (
            "/v1/images/variations",
            {"data": PEAR, "files": {"image": png(), "mask": pierced()}},
            "field_unknown",
            "mask",
        ),
        (GENERATIONS, {"data": PEAR, "files": {"image": png()}}, "field_unknown", "image"),
    ],
)
@pytest.mark.asyncio
async def test_a_form_that_cannot_be_drawn_is_refused_by_name(
    client: httpx2.AsyncClient,
    worker: FakeWorker,
    store: LocalStore,
    path: str,
    form: dict[str, Any],
    code: str,
    param: str | None,
) -> None:
    answer = await client.post(path, **form)
    error = assert_error(answer)
    assert (error["code"], error["param"]) == (code, param), error
    assert is_untouched(worker.client, store)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/models/nope", 404, "model_absent"),
        ("GET", "/v1/images/nothing", 404, "route_unknown"),
        ("GET", GENERATIONS, 405, "method_not_allowed"),
    ],
)
@pytest.mark.asyncio
async def test_every_refusal_has_its_shape(
    client: httpx2.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert assert_error(answer)["code"] == code


def test_paths_of_other_dialects_are_not_its_own() -> None:
    openai_alone = [dialect for dialect in installed_dialects() if dialect.name == "openai"]
    for path in (GENERATIONS, EDITS, "/v1/images", "/v1/models", "/v1/models/first"):
        assert dialect_of(path, openai_alone), path
    for path in ("/v1/models/owner/name", "/v1/predictions", "/v1/account", "/v1/chat/completions", "/models"):
        assert dialect_of(path, openai_alone) is None, path


@pytest.mark.asyncio
async def test_a_job_that_failed_is_not_asked_for_again(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    call = asyncio.create_task(client.post(GENERATIONS, json=PEAR))
    worker.fail(await asyncio.to_thread(worker.next_job))
    answer = await call
    assert (answer.status_code, assert_error(answer)["code"]) == (503, "job_failed")
    assert answer.headers["x-should-retry"] == "false"
    assert assert_error(answer)["message"].startswith("not_finite: The latents turned NaN.")
    assert not worker.client.keys(key("repeats", "*"))


FIELDS = st.one_of(
    st.sampled_from(["prompt", "model", "n", "size", "quality", "style", "response_format", "output_format", "stream"]),
    st.sampled_from(["partial_images", "background", "output_compression", "svg", "steps", "cfg_scale", "seed"]),
    st.sampled_from(
        ["width", "loras", "controls", "user", "moderation", "task", "image", "mask", "previews", "model_"]
    ),
    st.text(max_size=8),
)
JUNK = st.dictionaries(
    FIELDS, st.one_of(VALUES, st.sampled_from(["auto", "64x64", "0x0", "b64_json", "url"])), max_size=6
)


@pytest.mark.asyncio
async def test_whatever_is_sent_is_drawn_or_refused_in_its_shape(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    loop = asyncio.get_running_loop()

    async def post(path: str, body: dict[str, Any], as_form: bool) -> httpx2.Response:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
        files = {"image": png()} if "image" not in texts else {"mask": pierced()}
        sent = {"data": texts, "files": files} if as_form else {"json": body}
        call = asyncio.ensure_future(client.post(path, **sent))
        while not call.done():
            for raw in worker.client.zrange(key("jobs", "local"), 0, -1):
                view = worker.board.get(raw.decode())
                if view and view.status == "queued":
                    await asyncio.to_thread(worker.fail, view.record.id)
            await asyncio.sleep(0.005)
        return await call

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([GENERATIONS, EDITS, "/v1/images/variations"]), JUNK, st.booleans())
    def check(path: str, body: dict[str, Any], as_form: bool) -> None:
        answer = asyncio.run_coroutine_threadsafe(post(path, body, as_form), loop).result(30)
        if answer.status_code == 200:  # an error of the stream
            assert "event: error" in answer.text
            return
        error = assert_error(answer)
        assert answer.status_code < 500 or error["code"] == "job_failed", answer.text

    await asyncio.to_thread(check)


# --- streams ---------------------------------------------------------------------------------------------------------


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


class Stream:
    """A streamed generation as it comes, and a client that can hang up."""

    def __init__(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
        self.text = ""
        self.has_begun = asyncio.Event()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": GENERATIONS, "headers": headers, "query_string": b""}
        app: Any = client._transport.app  # type: ignore[attr-defined]
        self.call = asyncio.create_task(app(scope, self._messages.get, self._send))

    async def _send(self, message: Any) -> None:
        self.text += message.get("body", b"").decode()
        if self.text:
            self.has_begun.set()

    def hang_up(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.asyncio
async def test_previews_become_partial_images_in_the_format_of_the_picture(
    client: httpx2.AsyncClient, worker: FakeWorker, output_format: str
) -> None:
    body = PEAR | {"stream": True, "partial_images": 1, "output_format": output_format}
    stream = Stream(client, body)
    job_id = await asyncio.to_thread(worker.next_job)
    worker.claim(job_id)
    worker.progress(job_id, 12, 20)
    while True:
        worker.preview(job_id, encoded(Image.new("RGB", (32, 16), (9, 200, 9)), "WEBP"))
        if "partial_image" in stream.text:
            break
        await asyncio.sleep(0.02)
    files = worker.draw(job_id)
    await stream.call
    partial, completed = events_of(stream.text)
    assert (partial["type"], partial["partial_image_index"]) == ("image_generation.partial_image", 0)
    assert (partial["size"], partial["output_format"]) == ("32x16", output_format)
    assert Image.open(io.BytesIO(base64.b64decode(partial["b64_json"]))).format == output_format.upper()
    assert completed["type"] == "image_generation.completed"
    assert base64.b64decode(completed["b64_json"]) == files[0]
    assert (completed["usage"]["total_tokens"], completed["id"]) == (0, job_id)


@pytest.mark.parametrize("ending", ["fails", "canceled"])
@pytest.mark.asyncio
async def test_an_error_after_the_stream_began_is_an_event(
    client: httpx2.AsyncClient, worker: FakeWorker, ending: str
) -> None:
    call = asyncio.create_task(client.post(GENERATIONS, json=PEAR | {"stream": True}))
    job_id = await asyncio.to_thread(worker.next_job)
    if ending == "fails":
        worker.fail(job_id)
    else:
        await client.delete(f"/jobs/{job_id}")
    (event,) = events_of((await call).text)
    assert event["error"]["code"] == ("job_failed" if ending == "fails" else "job_canceled")


@pytest.mark.asyncio
async def test_a_stream_that_is_not_read_to_its_end_has_its_job_canceled(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    stream = Stream(client, PEAR | {"stream": True})
    job_id = await asyncio.to_thread(worker.next_job)
    await stream.has_begun.wait()
    assert not worker.client.keys(key("repeats", "*"))
    stream.hang_up()
    await stream.call
    view = worker.board.get(job_id)
    assert view is not None
    assert view.status == "canceled"


def test_partial_images_are_spread_over_the_way() -> None:
    many = Partials(3)
    assert [number for number in range(1, 11) if many.take(b"x", number / 10)] == [2, 5, 9]
    assert many.take_last() is None
    short = Partials(2)
    assert short.take(b"early", 0.1) is None
    assert short.take_last() == b"early"
    assert short.take_last() is None
    none = Partials(0)
    assert none.take(b"x", 1.0) is None
    assert none.take_last() is None


# --- the unmodified package ------------------------------------------------------------------------------------------


def sdk_in_process(client: httpx2.AsyncClient, key: str = "x", **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=client, **options)


@pytest.mark.asyncio
async def test_its_exceptions_tell_code_field_and_request(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    sdk = sdk_in_process(client)
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.images.generate(prompt="a pear", size="65x64")
    assert (refused.value.code, refused.value.param) == ("size_invalid", "size")
    assert refused.value.request_id == refused.value.response.headers["x-request-id"]
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("nope")
    call = asyncio.create_task(sdk.images.generate(prompt="a pear"))
    worker.fail(await asyncio.to_thread(worker.next_job))
    with pytest.raises(openai.InternalServerError) as failed:
        await call
    assert failed.value.code == "job_failed"
    assert len((await client.get("/jobs")).json()["jobs"]) == 1


@pytest.mark.asyncio
async def test_a_wrong_key_is_an_authentication_error(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await sdk_in_process(client, "nonsense").models.list()
        assert refused.value.code == "key_unknown"
        models = await sdk_in_process(client, "alice-key-0123456789").models.list()
        assert [model.id for model in models.data] == ["first"]


@pytest.mark.asyncio
async def test_a_full_queue_is_tried_again_when_it_says(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    async with serving(redis_url, store, max_queued=1) as client:
        worker.beat(cost_per_s=1e9)  # so that it shall come back in a second
        first = (await client.post("/generate", json=PEAR)).json()["id"]
        answers: list[tuple[int, str | None]] = []
        is_refused = asyncio.Event()

        async def note(response: httpx2.Response) -> None:
            answers.append((response.status_code, response.headers.get("retry-after")))
            is_refused.set()

        client.event_hooks["response"] = [note]
        call = asyncio.create_task(sdk_in_process(client).images.generate(prompt="a plum"))
        await is_refused.wait()
        await asyncio.to_thread(worker.draw, first)
        while True:
            queued = [view for view in worker.board.list_jobs("local", limit=5)[0] if view.status == "queued"]
            if queued:
                break
            await asyncio.sleep(0.01)
        await asyncio.to_thread(worker.draw, queued[0].record.id)
        assert (await call).data
        status, wait_s = answers[0]
        assert status == 429
        assert int(wait_s or 0) >= 1
        assert answers[-1][0] == 200


def picture_of(item: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))))


@pytest.fixture
def sdk(live_server: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live_server}/v1", api_key="none") as sdk:
        yield sdk


def test_the_package_draws_the_pictures_that_the_native_api_draws(sdk: OpenAI, live_server: str) -> None:
    raw = sdk.images.with_raw_response.generate(prompt="a red heart", n=2, extra_body={"seed": 3, "steps": 4})
    answer = raw.parse()
    assert raw.headers["x-request-id"] == answer._request_id
    assert answer.data is not None
    native = httpx2.post(
        f"{live_server}/generate",
        json={"prompt": "a red heart", "num_images": 2, "seed": 3, "num_inference_steps": 4},
        headers={"Prefer": "wait=60"},
        timeout=90,
    ).json()
    files = [httpx2.get(live_server + image["url"]).content for image in native["images"]]
    ours = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    assert [picture_of(item).tobytes() for item in answer.data] == [picture.tobytes() for picture in ours]
    assert [base64.b64decode(item.b64_json or "") for item in answer.data] == files


def test_the_package_edits_within_a_mask_and_nothing_else(sdk: OpenAI) -> None:
    rng = np.random.default_rng(5)
    before = rng.integers(0, 255, (96, 128, 3), np.uint8)
    alpha = np.full((96, 128), 255, np.uint8)
    alpha[24:72, 32:96] = 0
    image, mask = encoded(Image.fromarray(before)), encoded(Image.fromarray(np.dstack([before, alpha])))
    for sent in (("a.png", image), [("a.png", image)]):
        edited = sdk.images.edit(
            image=sent, mask=("m.png", mask), prompt="a cat", size="128x96", extra_body={"steps": 4, "seed": 1}
        )
        assert edited.data is not None
        after = picture_of(edited.data[0])
        assert (after[alpha == 255] == before[alpha == 255]).all()
        assert (after[alpha == 0] != before[alpha == 0]).any()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        varied = sdk.images.create_variation(image=("a.png", image), extra_body={"prompt": "a cat", "steps": "4"})
    assert varied.data


def test_the_package_streams_partial_images(sdk: OpenAI) -> None:
    events = list(
        sdk.images.generate(prompt="a red heart", stream=True, partial_images=2, extra_body={"steps": 40, "seed": 3})
    )
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * (len(events) - 1)
    assert 2 <= len(events) <= 3
    assert events[-1].type == "image_generation.completed"
    assert events[-1].usage.total_tokens == 0
    assert {picture_of(event).shape for event in events} == {(128, 128, 3)}
    with pytest.raises(openai.BadRequestError):
        sdk.images.generate(prompt="a red heart", stream=True, n=2)


def test_the_package_lists_models(sdk: OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["pictogram"]
    assert sdk.models.retrieve("pictogram").owned_by == "denoised"


class Impatient(httpx2.AsyncBaseTransport):
    """Waits for its first answer for a fifth of a second only, and closes that connection."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self.counts: list[str] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.counts.append(request.headers["x-stainless-retry-count"])
        if len(self.counts) == 1:
            request.extensions["timeout"]["read"] = 0.2
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.asyncio
async def test_the_asynchronous_package_gets_one_job_for_all_its_repeats(live_server: str) -> None:
    transport = Impatient(httpx2.AsyncHTTPTransport())
    async with httpx2.AsyncClient(transport=transport, timeout=60) as http:
        sdk = AsyncOpenAI(base_url=f"{live_server}/v1", api_key="none", http_client=http)
        answer = await sdk.images.generate(prompt="an answer that got lost", extra_body={"steps": 40})
    assert transport.counts == ["0", "1"]
    assert answer.data
    async with httpx2.AsyncClient(base_url=live_server, timeout=30) as client:
        jobs = (await client.get("/jobs")).json()["jobs"]
    assert len([job for job in jobs if job["request"]["prompt"] == "an answer that got lost"]) == 1


# --- Open WebUI's requests -------------------------------------------------------------------------------------------


def test_open_webui_draws_and_edits(live_server: str) -> None:
    headers = {"Authorization": "Bearer none"}
    with httpx2.Client(base_url=f"{live_server}/v1", headers=headers, timeout=90) as client:
        body = {"model": "pictogram", "prompt": "a pear", "n": 1, "size": "128x128", "response_format": "b64_json"}
        answer = client.post("/images/generations", params={"api-version": "1"}, json=body | {"steps": 4})
        (item,) = answer.raise_for_status().json()["data"]
        picture = base64.b64decode(item["b64_json"])
        name = "5f0c6f5e-0b7c-4c1e-9d3a-2f6f0e6f1a11.png"
        for part in ("image", "image[]"):
            edited = client.post(
                "/images/edits",
                data={"model": "pictogram", "prompt": "a plum", "n": "1", "size": "128x128", "steps": "4"},
                files=[(part, (name, picture, "image/png"))],
            )
            assert edited.raise_for_status().json()["data"][0]["b64_json"]
