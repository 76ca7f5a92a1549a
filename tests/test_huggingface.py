"""The Hugging Face dialect: its unmodified client against a real server, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from tests.http_kit import ALICE, KEYS, FakeWorker, is_untouched, png, serving
from workers.store import LocalStore


@pytest.fixture(autouse=True)
def _its_client_may_call_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests set HF_HUB_OFFLINE, which it takes to mean every address."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


QUICK: dict[str, Any] = {"num_inference_steps": 4, "seed": 3}


def client_of(live_server: str, task: str) -> InferenceClient:
    return InferenceClient(model=f"{live_server}/hf/{task}", token="any")


def drawn(live_server: str, **fields: Any) -> Image.Image:
    """The picture that the native API draws."""
    answer = httpx2.post(f"{live_server}/generate", json=fields, headers={"Prefer": "wait=60"}, trust_env=False)
    url = answer.json()["images"][0]["url"]
    return Image.open(io.BytesIO(httpx2.get(f"{live_server}{url}", trust_env=False).content))


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest one of any channel of any pixel."""
    return max(high for _, high in ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema())


def test_its_client_draws_what_the_native_api_draws(live_server: str) -> None:
    client = client_of(live_server, "text-to-image")
    same = {"negative_prompt": "blue", "width": 64, "height": 72, **QUICK}
    picture = client.text_to_image("a red heart", scheduler="euler", **same)
    assert difference(picture, drawn(live_server, prompt="a red heart", sampler="euler", **same)) <= 1


def test_its_client_sends_pictures_with_and_without_parameters(live_server: str) -> None:
    sent = png(64, 64)
    size: Any = {"width": 72, "height": 64}
    client = client_of(live_server, "image-to-image")
    picture = client.image_to_image(sent, prompt="a heart", target_size=size, num_inference_steps=4)
    assert picture.size == (72, 64)
    assert client_of(live_server, "upscale").image_to_image(sent).size == (256, 256)


def test_its_client_inpaints_with_a_mask_among_the_parameters(live_server: str) -> None:
    sent, mask = Image.new("RGB", (64, 64), "green"), Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    encoded = io.BytesIO()
    mask.save(encoded, "PNG")
    inside = base64.b64encode(encoded.getvalue()).decode()
    client = client_of(live_server, "inpainting")
    answer = client.image_to_image(png(64, 64, (0, 128, 0)), prompt="a heart", num_inference_steps=4, mask_image=inside)
    assert difference(answer.crop((0, 0, 64, 16)), sent.crop((0, 0, 64, 16))) == 0
    assert difference(answer, sent) > 0


def test_its_client_raises_what_is_refused_with_the_sentence_and_the_id(live_server: str) -> None:
    with pytest.raises(HfHubHTTPError, match="no multiple of 8") as refused:
        client_of(live_server, "text-to-image").text_to_image("a heart", width=65)
    assert refused.value.response.status_code == 422
    assert refused.value.request_id == refused.value.response.headers["X-Request-ID"]


@pytest_asyncio.fixture
async def client(redis_url: str, store: LocalStore, worker: FakeWorker) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, store) as client:
        yield client


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("task", "body", "code", "pointer"),
    [
        ("text-to-image", {"inputs": " "}, "prompt_empty", "/prompt"),
        ("text-to-image", {"inputs": "a", "parameters": {"scheduler": "x"}}, "sampler_unknown", "/scheduler"),
        ("text-to-image", {"inputs": "a", "parameters": {"num_images": 2}}, "field_unsupported", "/num_images"),
        ("text-to-image", {"inputs": "a", "parameters": {"prompt": "b"}}, "field_invalid", "/prompt"),
        ("text-to-image", {"inputs": "a", "parameters": {"target_size": 7}}, "field_invalid", "/target_size"),
        ("text-to-image", {"inputs": "a", "parameters": 7}, "field_invalid", "/parameters"),
        ("text-to-image", {"inputs": "a", "parameters": {"task": "upscale"}}, "field_unknown", "/task"),
        (
            "text-to-image",
            {"inputs": "a", "parameters": {"scheduler": "lcm", "sampler": "euler"}},
            "field_invalid",
            "/scheduler",
        ),
        ("text-to-image", {"inputs": "a", "music": 1}, "field_unknown", "/music"),
        ("text-to-image", {}, "field_invalid", "/inputs"),
        ("to-music", {"inputs": "a"}, "task_unavailable", "/task"),
        ("image-to-image", {"inputs": "!", "parameters": {"prompt": "a"}}, "image_not_base64", "/image"),
    ],
)
async def test_a_refusal_says_which_field_and_leaves_nothing(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore, task: str, body: Any, code: str, pointer: str
) -> None:
    answer = await client.post(f"/hf/{task}", json=body)
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["errors"][0]["pointer"]) == (code, pointer)
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_the_answer_names_the_seed_and_the_job_and_a_repeat_is_the_same_job(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    body, key = {"inputs": "a cat", "parameters": {"seed": 7}}, {"Idempotency-Key": "once"}
    calls = [asyncio.create_task(client.post("/hf/text-to-image", json=body, headers=key)) for _ in range(2)]
    job_id = await asyncio.to_thread(worker.next_job)
    files = await asyncio.to_thread(worker.draw, job_id)
    for answer in await asyncio.gather(*calls):
        assert answer.content == files[0]
        assert answer.headers["content-type"] == "image/png"
        assert (answer.headers["x-seed"], answer.headers["x-job-id"]) == ("7", job_id)


@pytest.mark.asyncio
async def test_a_file_that_no_field_takes_is_refused(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    answer = await client.post("/hf/text-to-image", data={"inputs": "a cat"}, files={"mask_image": png()})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/mask_image")
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_a_repeat_gets_the_named_job_of_a_client_that_hung_up(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    app: Any = client._transport.app  # type: ignore[attr-defined]
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": b'{"inputs": "a cat"}', "more_body": False})
    fields = {"host": "localhost", "content-type": "application/json", "idempotency-key": "once"}
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    scope = {"type": "http", "method": "POST", "path": "/hf/text-to-image", "headers": headers, "query_string": b""}

    async def send(_message: Any) -> None:
        pass

    lost = asyncio.create_task(app(scope, messages.get, send))
    job_id = await asyncio.to_thread(worker.next_job)
    messages.put_nowait({"type": "http.disconnect"})
    await lost
    again = {"Idempotency-Key": "once"}
    repeat = asyncio.create_task(client.post("/hf/text-to-image", json={"inputs": "a cat"}, headers=again))
    files = await asyncio.to_thread(worker.draw, job_id)
    assert (await repeat).content == files[0]


@pytest.mark.asyncio
async def test_a_key_is_asked_for_in_its_shape(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        answer = await client.post("/hf/text-to-image", json={"inputs": "a"})
        assert (answer.status_code, answer.json()["code"]) == (401, "key_required")
        answer = await client.post("/hf/text-to-image", json={"inputs": " "}, headers=ALICE)
        assert answer.status_code == 422


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.asyncio
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.fixed_dictionaries({}, optional={"inputs": JUNK, "parameters": JUNK, "seed": JUNK, "width": JUNK}))
async def test_junk_is_refused_in_its_shape(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/hf/image-to-image", json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]
