"""What is refused: one shape, a stable code, a sentence, and nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms
from starlette.routing import Route

from app.errors import ERRORS, FieldError, Problem, ProblemDocument
from app.main import create_app
from app.uploads import read_upload
from models.errors import JOB_ERROR_CODES
from tests.http_kit import (
    ALICE,
    ENTRY,
    KEYS,
    FakeWorker,
    client_of,
    encoded,
    is_untouched,
    png,
    png_header,
    serving,
    settings_for,
    sixteen_bit_rgb_png,
)
from workers.store import LocalStore

GOOD = {"prompt": "a red apple"}
JSON = {"Content-Type": "application/json"}


def image_body(data: bytes) -> dict[str, Any]:
    return {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(data).decode()}


def assert_problem(answer: Any, code: str) -> ProblemDocument:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = ProblemDocument.model_validate_json(answer.content)
    assert document.code == code, answer.text
    assert (answer.status_code, document.status, document.title) == (
        ERRORS[code].status,
        ERRORS[code].status,
        ERRORS[code].title,
    )
    assert document.type == f"urn:denoised:error:{code}"
    assert document.detail.endswith(ERRORS[code].remedy)
    assert answer.headers["x-request-id"] == document.request_id
    if document.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return document


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


BAD_BODIES: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("empty prompt", {"prompt": ""}, "prompt_empty", "/prompt"),
    ("prompt of spaces", {"prompt": " \n\t "}, "prompt_empty", "/prompt"),
    ("100 kB prompt", {"prompt": "x" * 100_000}, "prompt_too_long", "/prompt"),
    ("100 kB negative prompt", {**GOOD, "negative_prompt": "x" * 100_000}, "prompt_too_long", "/negative_prompt"),
    ("prompt with a NUL", {"prompt": "a\0b"}, "field_invalid", "/prompt"),
    ("no prompt", {}, "field_invalid", "/prompt"),
    ("0 steps", {**GOOD, "num_inference_steps": 0}, "steps_out_of_range", "/num_inference_steps"),
    ("10^9 steps", {**GOOD, "num_inference_steps": 10**9}, "steps_out_of_range", "/num_inference_steps"),
    ("10^400 steps", {**GOOD, "num_inference_steps": 10**400}, "steps_out_of_range", "/num_inference_steps"),
    (
        "more steps than the sampler has",
        {**GOOD, "sampler": "lcm", "num_inference_steps": 13},
        "steps_out_of_range",
        "/num_inference_steps",
    ),
    ("width 100", {**GOOD, "width": 100}, "size_invalid", "/width"),
    ("height 127", {**GOOD, "height": 127}, "size_invalid", "/height"),
    ("width 0", {**GOOD, "width": 0}, "size_invalid", "/width"),
    ("width -64", {**GOOD, "width": -64}, "size_invalid", "/width"),
    ("width over the limit", {**GOOD, "width": 264}, "size_invalid", "/width"),
    ("width 10^400", {**GOOD, "width": 10**400}, "size_invalid", "/width"),
    ("too many pixels together", {**GOOD, "width": 256, "height": 256}, "size_invalid", "/width"),
    ("0 pictures", {**GOOD, "num_images": 0}, "num_images_out_of_range", "/num_images"),
    ("5 pictures", {**GOOD, "num_images": 5}, "num_images_out_of_range", "/num_images"),
    ("clip_skip 12", {**GOOD, "clip_skip": 12}, "clip_skip_out_of_range", "/clip_skip"),
    ("clip_skip -1", {**GOOD, "clip_skip": -1}, "clip_skip_out_of_range", "/clip_skip"),
    ("unknown LoRA", {**GOOD, "loras": [{"name": "iron"}]}, "lora_unknown", "/loras/0"),
    ("a path for a LoRA", {**GOOD, "loras": [{"name": "../gold"}]}, "lora_unknown", "/loras/0"),
    ("unknown LoRA in the prompt", {"prompt": "a pear <lora:iron:1>"}, "lora_unknown", "/prompt"),
    ("a LoRA without a name", {"prompt": "a cat <lora: :1>"}, "lora_unknown", "/prompt"),
    ("a LoRA inside another", {"prompt": "<lora:<lora:ink>:1> cat"}, "field_invalid", "/prompt"),
    ("nothing but a LoRA", {"prompt": " <lora:ink> "}, "prompt_empty", "/prompt"),
    ("LoRA twice", {"prompt": "a <lora:ink>", "loras": [{"name": "ink"}]}, "field_invalid", "/prompt"),
    ("LoRA weight in words", {"prompt": "a <lora:ink:much>"}, "field_invalid", "/prompt"),
    ("LoRA weight 11", {**GOOD, "loras": [{"name": "ink", "weight": 11}]}, "field_invalid", "/loras/0/weight"),
    ("LoRA with a stranger", {**GOOD, "loras": [{"name": "ink", "kind": 1}]}, "field_unknown", "/loras/0/kind"),
    ("nine LoRAs", {**GOOD, "loras": [{"name": "ink"}] * 9}, "field_invalid", "/loras"),
    ("LoRA as text", {**GOOD, "loras": "ink"}, "field_invalid", "/loras"),
    ("unknown ControlNet", {**GOOD, "controls": [{"name": "x", "image": "x"}]}, "control_unknown", "/controls/0"),
    ("ControlNet without a picture", {**GOOD, "controls": [{"name": "edges"}]}, "field_invalid", "/controls/0/image"),
    (
        "ControlNet with a broken picture",
        {**GOOD, "controls": [{"name": "edges", "image": "not base64!"}]},
        "image_not_base64",
        "/controls/0/image",
    ),
    (
        "ControlNet with a GIF",
        {**GOOD, "controls": [{"name": "edges", "image": base64.b64encode(b"GIF89a").decode()}]},
        "image_format_unsupported",
        "/controls/0/image",
    ),
    (
        "ControlNet that ends before it starts",
        {**GOOD, "controls": [{"name": "edges", "image": "x", "start": 0.5, "end": 0.5}]},
        "field_invalid",
        "/controls/0",
    ),
    ("five ControlNets", {**GOOD, "controls": [{"name": "edges", "image": "x"}] * 5}, "field_invalid", "/controls"),
    ("unknown syntax", {**GOOD, "prompt_syntax": "comfy"}, "field_invalid", "/prompt_syntax"),
    ("unknown field", {**GOOD, "stepz": 20}, "field_unknown", "/stepz"),
    ("strength without a picture", {**GOOD, "strength": 0.5}, "field_unknown", "/strength"),
    ("steps as text", {**GOOD, "num_inference_steps": "20"}, "field_invalid", "/num_inference_steps"),
    ("steps as a fraction", {**GOOD, "num_inference_steps": 20.0}, "field_invalid", "/num_inference_steps"),
    ("true for 1", {**GOOD, "num_images": True}, "field_invalid", "/num_images"),
    ("1 for true", {**GOOD, "previews": 1}, "field_invalid", "/previews"),
    ("true for guidance", {**GOOD, "guidance_scale": True}, "field_invalid", "/guidance_scale"),
    ("negative guidance", {**GOOD, "guidance_scale": -1}, "field_invalid", "/guidance_scale"),
    ("rescale over 1", {**GOOD, "guidance_rescale": 1.1}, "field_invalid", "/guidance_rescale"),
    ("negative seed", {**GOOD, "seed": -1}, "field_invalid", "/seed"),
    ("seed over 2^63", {**GOOD, "seed": 2**63}, "field_invalid", "/seed"),
    ("format gif", {**GOOD, "output_format": "gif"}, "field_invalid", "/output_format"),
    ("priority urgent", {**GOOD, "priority": "urgent"}, "field_invalid", "/priority"),
    ("prompt as a list", {"prompt": ["a", "b"]}, "field_invalid", "/prompt"),
    ("task as a number", {**GOOD, "task": 7}, "field_invalid", "/task"),
    ("unknown task", {**GOOD, "task": "text-to-video"}, "task_unavailable", "/task"),
    ("unknown model", {**GOOD, "model": "sdxl"}, "model_unknown", "/model"),
    ("unknown sampler", {**GOOD, "sampler": "euler_b"}, "sampler_unknown", "/sampler"),
    (
        "unknown noise schedule",
        {**GOOD, "sampler": "euler", "noise_schedule": "cosine"},
        "noise_schedule_unknown",
        "/noise_schedule",
    ),
    (
        "noise schedule against the alias",
        {**GOOD, "sampler": "dpmpp_2m_karras", "noise_schedule": "trailing"},
        "noise_schedule_unknown",
        "/noise_schedule",
    ),
    ("no picture", {**GOOD, "task": "image-to-image"}, "field_invalid", "/image"),
    ("strength 0", {**image_body(png()), "strength": 0}, "field_invalid", "/strength"),
    ("strength 1.1", {**image_body(png()), "strength": 1.1}, "field_invalid", "/strength"),
    (
        "strength that leaves no step",
        {**image_body(png()), "strength": 0.05, "num_inference_steps": 10},
        "steps_out_of_range",
        "/strength",
    ),
    ("wrong base64", {**image_body(b""), "image": "not base64!"}, "image_not_base64", "/image"),
    ("base64 cut short", {**image_body(b""), "image": "iVBORw0KGgo"}, "image_not_base64", "/image"),
    ("base64 with an umlaut", {**image_body(b""), "image": "iVBORwöKGgo="}, "image_not_base64", "/image"),
    ("a URL", {**image_body(b""), "image": "https://example.org/a.png"}, "image_not_base64", "/image"),
    ("empty picture", image_body(b""), "image_not_base64", "/image"),
    ("unknown digest", {**image_body(b""), "image": f"sha256:{'0' * 64}"}, "upload_unknown", "/image"),
    ("a text file", image_body(b"hello"), "image_format_unsupported", "/image"),
    ("a GIF", image_body(encoded(noise(), "GIF")), "image_format_unsupported", "/image"),
    ("a TIFF", image_body(encoded(noise(), "TIFF")), "image_format_unsupported", "/image"),
    ("truncated PNG", image_body(encoded(noise())[:-2000]), "image_broken", "/image"),
    ("truncated JPEG", image_body(encoded(noise(), "JPEG")[:-900]), "image_broken", "/image"),
    ("truncated WebP", image_body(encoded(noise(), "WEBP")[:-900]), "image_broken", "/image"),
    ("only a PNG signature", image_body(b"\x89PNG\r\n\x1a\n"), "image_broken", "/image"),
    ("only a WebP signature", image_body(b"RIFF\x04\0\0\0WEBP"), "image_broken", "/image"),
    ("only a JPEG signature", image_body(b"\xff\xd8\xff\xe0"), "image_broken", "/image"),
    ("decompression bomb", image_body(encoded(Image.new("L", (9000, 9000)))), "image_too_large", "/image"),
    ("PNG header of 100,000 x 100,000", image_body(png_header(100_000, 100_000)), "image_too_large", "/image"),
    ("WebP canvas of 65,000 x 65,000", image_body(webp_header(65_000, 65_000)), "image_too_large", "/image"),
    ("PNG that promises more than it has", image_body(png_header(4000, 4000)), "image_broken", "/image"),
    ("animated PNG", image_body(animated("PNG")), "image_animated", "/image"),
    ("animated WebP", image_body(animated("WEBP")), "image_animated", "/image"),
    ("CMYK JPEG", image_body(encoded(Image.new("CMYK", (8, 8)), "JPEG")), "image_mode_unsupported", "/image"),
    ("16-bit grey PNG", image_body(encoded(Image.new("I;16", (8, 8)))), "image_mode_unsupported", "/image"),
    ("16-bit RGB PNG", image_body(sixteen_bit_rgb_png()), "image_mode_unsupported", "/image"),
    ("1-bit PNG", image_body(encoded(Image.new("1", (8, 8)))), "image_mode_unsupported", "/image"),
]

MANY_KEYS = b'{%s"59999": 0}' % b"".join(b'"%d": 0, ' % number for number in range(60_000))

BAD_BYTES: list[tuple[str, bytes, dict[str, str], str]] = [
    ("NaN", b'{"prompt": "a", "guidance_scale": NaN}', JSON, "json_invalid"),
    ("infinity", b'{"prompt": "a", "guidance_scale": Infinity}', JSON, "json_invalid"),
    ("minus infinity", b'{"prompt": "a", "guidance_scale": -Infinity}', JSON, "json_invalid"),
    ("a number beyond floats", b'{"prompt": "a", "guidance_scale": 1e999}', JSON, "json_invalid"),
    ("5000 digits", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", JSON, "json_invalid"),
    ("no JSON", b"prompt=a", JSON, "json_invalid"),
    ("nothing", b"", JSON, "json_invalid"),
    ("a list", b'["a"]', JSON, "json_invalid"),
    ("one key twice", b'{"prompt": "a", "seed": 1, "seed": 2}', JSON, "json_invalid"),
    ("one of very many keys twice", MANY_KEYS, JSON, "json_invalid"),
    ("very many unknown fields", MANY_KEYS.replace(b'"59999": 0}', b'"last": 0}'), JSON, "json_invalid"),
    ("invalid UTF-8", b'{"prompt": "\xff\xfe"}', JSON, "json_invalid"),
    ("half a surrogate pair", b'{"prompt": "\\ud800"}', JSON, "json_invalid"),
    ("deep JSON", b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", JSON, "json_too_deep"),
    ("somewhat deep JSON", b'{"prompt": ' + b"[" * 8 + b"]" * 8 + b"}", JSON, "json_too_deep"),
    ("no Content-Type", b'{"prompt": "a"}', {}, "content_type_unsupported"),
    ("JSON as text", b'{"prompt": "a"}', {"Content-Type": "text/plain"}, "content_type_unsupported"),
    (
        "a plain form",
        b"prompt=a",
        {"Content-Type": "application/x-www-form-urlencoded"},
        "content_type_unsupported",
    ),
    ("gzip", b"\x1f\x8b", {**JSON, "Content-Encoding": "gzip"}, "content_type_unsupported"),
    ("multipart without boundary", b"--", {"Content-Type": "multipart/form-data"}, "multipart_invalid"),
    (
        "multipart cut short",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na pear',
        {"Content-Type": "multipart/form-data; boundary=x"},
        "multipart_invalid",
    ),
    (
        "multipart with another boundary",
        b'--y\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na pear\r\n--y--\r\n',
        {"Content-Type": "multipart/form-data; boundary=x"},
        "multipart_invalid",
    ),
    (
        "multipart with invalid UTF-8",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n',
        {"Content-Type": "multipart/form-data; boundary=x"},
        "multipart_invalid",
    ),
    (
        "multipart with a name twice",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n' * 2 + b"--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
        "multipart_invalid",
    ),
    (
        "multipart with NaN",
        b'--x\r\nContent-Disposition: form-data; name="guidance_scale"\r\n\r\nnan\r\n'
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n',
        {"Content-Type": "multipart/form-data; boundary=x"},
        "field_invalid",
    ),
    (
        "a file nobody asked for",
        b'--x\r\nContent-Disposition: form-data; name="mask"; filename="a"\r\n\r\na\r\n--x--\r\n',
        {"Content-Type": "multipart/form-data; boundary=x"},
        "field_unknown",
    ),
    (
        "five files",
        b"".join(
            b'--x\r\nContent-Disposition: form-data; name="f%d"; filename="a"\r\n\r\na\r\n' % index
            for index in range(5)
        )
        + b"--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
        "multipart_invalid",
    ),
    ("a huge body", b'{"prompt": "' + b"x" * 2_000_000 + b'"}', JSON, "body_too_large"),
    ("a bad Idempotency-Key", b'{"prompt": "a"}', {**JSON, "Idempotency-Key": ""}, "idempotency_key_invalid"),
    ("a long Idempotency-Key", b'{"prompt": "a"}', {**JSON, "Idempotency-Key": "k" * 256}, "idempotency_key_invalid"),
    ("a foreign Host", b'{"prompt": "a"}', {**JSON, "Host": "evil.example"}, "host_refused"),
    ("a foreign Origin", b'{"prompt": "a"}', {**JSON, "Origin": "https://evil.example"}, "origin_refused"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("body", "code", "pointer"), [case[1:] for case in BAD_BODIES], ids=[c[0] for c in BAD_BODIES])
async def test_a_bad_body_gets_its_code_and_leaves_nothing(
    redis_url: str, store: LocalStore, worker: FakeWorker, body: dict[str, Any], code: str, pointer: str
) -> None:
    async with serving(redis_url, store) as client:
        document = assert_problem(await client.post("/generate", json=body), code)
    assert document.errors is not None
    assert document.errors[0].pointer == pointer
    assert document.instance == "/generate"
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content", "headers", "code"), [case[1:] for case in BAD_BYTES], ids=[c[0] for c in BAD_BYTES]
)
async def test_bad_bytes_get_their_code_and_leave_nothing(
    redis_url: str, store: LocalStore, worker: FakeWorker, content: bytes, headers: dict[str, str], code: str
) -> None:
    async with serving(redis_url, store, max_body_bytes=1_000_000) as client:
        assert_problem(await client.post("/generate", content=content, headers=headers), code)
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_several_wrong_fields_are_named_together(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"seed": "1", "previews": 3, "stepz/~": 1})
    document = assert_problem(answer, "field_invalid")
    assert {error.pointer for error in document.errors or ()} == {"/prompt", "/seed", "/previews", "/stepz~1~0"}


@pytest.mark.asyncio
async def test_a_task_that_no_model_serves_is_unavailable(redis_url, store, worker) -> None:
    worker.publish(ENTRY.model_copy(update={"tasks": ("text-to-image",)}))
    async with serving(redis_url, store) as client:
        for body in (image_body(png()), {**image_body(png()), "model": "first"}):
            assert_problem(await client.post("/generate", json=body), "task_unavailable")
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/nothing/here", ALICE, "route_unknown"),
        ("GET", "/docs/other.js", ALICE, "route_unknown"),
        ("GET", "/generate", ALICE, "method_not_allowed"),
        ("PUT", "/jobs", ALICE, "method_not_allowed"),
        ("GET", "/jobs", {}, "key_required"),
        ("GET", "/jobs", {"Authorization": "Digest abc"}, "key_required"),
        ("GET", "/jobs", {"Authorization": "Bearer wrong"}, "key_unknown"),
        ("GET", "/metrics", {}, "key_required"),
        ("GET", "/models", {}, "key_required"),
        ("POST", "/generate", {}, "key_required"),
        ("GET", "/jobs?limit=0", ALICE, "field_invalid"),
        ("GET", "/jobs?limit=ten", ALICE, "field_invalid"),
        ("GET", "/jobs?status=sleeping", ALICE, "field_invalid"),
        ("GET", "/jobs?cursor=nonsense", ALICE, "cursor_invalid"),
        ("GET", "/jobs/nonsense", ALICE, "job_unknown"),
        ("GET", f"/jobs/{'0' * 44}%0A", ALICE, "job_unknown"),
        ("GET", "/jobs/..%2F..%2Fetc", ALICE, "route_unknown"),
        ("GET", f"/jobs/{'f' * 44}", ALICE, "job_unknown"),
        ("DELETE", f"/jobs/{'f' * 44}", ALICE, "job_unknown"),
        ("GET", f"/jobs/{'f' * 44}/images/0", ALICE, "job_unknown"),
        ("GET", f"/jobs/{'f' * 44}/events", ALICE, "job_unknown"),
        ("GET", f"/jobs/{'0' * 44}", ALICE, "job_gone"),
        ("GET", "/readyz", {}, "no_worker"),
    ],
)
async def test_every_other_refusal_has_the_same_shape(
    redis_url: str, store: LocalStore, worker: FakeWorker, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        answer = await client.request(method, path, headers=headers)
    assert_problem(answer, code)
    assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)
    assert ("allow" in answer.headers) == (answer.status_code == 405)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (f"/jobs/{'f' * 44}", "DELETE, GET"),
        ("/jobs", "GET"),
        ("/generate", "POST"),
        ("/models/a/b/load", "POST"),
        ("/openapi.json", "GET, HEAD"),
        ("/docs", "GET"),
    ],
)
async def test_allow_names_every_method_of_a_path(
    redis_url: str, store: LocalStore, worker: FakeWorker, path: str, methods: str
) -> None:
    async with serving(redis_url, store) as client:
        for method in ("PATCH", "OPTIONS", "BREW"):
            answer = await client.request(method, path)
            assert_problem(answer, "method_not_allowed")
            assert answer.headers["allow"] == methods


@pytest.mark.asyncio
async def test_the_name_of_a_model_that_nobody_has_may_be_of_any_length(redis_url, store, worker) -> None:
    worker.beat()
    async with serving(redis_url, store) as client:
        assert_problem(await client.post(f"/models/{'m' * 5000}/load"), "model_absent")


# --- the way a body arrives ------------------------------------------------------------------------------------------


async def _slowly(chunks: list[bytes], gap: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if gap is not None:
        await gap.wait()


@pytest.mark.asyncio
async def test_a_chunked_body_is_counted_as_it_comes(redis_url, store, worker) -> None:
    async with serving(redis_url, store, max_body_bytes=1000) as client:
        answer = await client.post("/generate", content=_slowly([b'{"prompt": "'] + [b"x" * 100] * 20), headers=JSON)
    assert_problem(answer, "body_too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.asyncio
async def test_a_promise_of_too_much_is_refused_before_a_byte_is_read(redis_url, store, worker) -> None:
    def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")

    class Untouchable:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return never()

    async with serving(redis_url, store, max_body_bytes=1000) as client:
        headers = {**JSON, "Content-Length": "1001"}
        answer = await client.post("/generate", content=b"{}", headers=headers)
    assert_problem(answer, "body_too_large")


@pytest.mark.asyncio
async def test_a_body_that_does_not_arrive_times_out(redis_url, store, worker) -> None:
    never = asyncio.Event()
    async with serving(redis_url, store, upload_timeout_s=0.1) as client:
        answer = await client.post("/generate", content=_slowly([b'{"prompt'], never), headers=JSON)
    assert_problem(answer, "body_timeout")
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_a_client_that_leaves_in_the_middle_leaves_nothing(redis_url, store, worker) -> None:
    app = create_app(settings_for(redis_url, store))
    sent: list[dict[str, Any]] = []
    messages = iter([{"type": "http.request", "body": b'{"prompt', "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "raw_path": b"/generate",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
    }
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert b"body_incomplete" in sent[1]["body"]
    assert is_untouched(worker.client, store)


# --- the store -------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_store_that_cannot_write_is_told_and_nothing_is_queued(redis_url, store, worker, tmp_path) -> None:
    blocker = tmp_path / "blocked"
    broken = LocalStore(blocker)
    (blocker / ".tmp").rmdir()
    (blocker / ".tmp").write_text("a file where the folder should be")
    app = create_app(settings_for(redis_url, store))
    async with client_of(app) as client:
        object.__setattr__(app.state.services, "store", broken)
        assert_problem(await client.post("/generate", json=image_body(png())), "store_unavailable")
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_a_fault_of_ours_is_a_503_with_a_request_id(redis_url, store, worker) -> None:
    app = create_app(settings_for(redis_url, store))

    async def explode(request: Any) -> None:
        raise ZeroDivisionError

    app.router.routes.insert(0, Route("/explode", explode))
    async with client_of(app) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/explode")
        client._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
        assert_problem(await client.get("/explode", headers={"X-Request-ID": "mine-1"}), "internal")


@pytest.mark.asyncio
@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_fault_of_ours_is_in_the_log_with_its_request_id(
    redis_url, store, worker, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    app = create_app(settings_for(redis_url, store, log_format=log_format))

    async def explode(request: Any) -> None:
        raise ZeroDivisionError("of ours")

    app.router.routes.insert(0, Route("/explode", explode))
    async with client_of(app) as client:
        client._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
        assert_problem(await client.get("/explode", headers={"X-Request-ID": "mine-1"}), "internal")
    told = capsys.readouterr().err
    assert "internal" in told
    assert "mine-1" in told
    assert "Traceback" in told
    assert "ZeroDivisionError: of ours" in told


# --- uploads by themselves -------------------------------------------------------------------------------------------


def _pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(read_upload(data, 10**6).png))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_format_becomes_an_rgb_png(kind: str) -> None:
    picture = _pixels(encoded(Image.new("RGB", (16, 8), (200, 30, 30)), kind))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (16, 8))
    assert all(abs(a - b) <= 4 for a, b in zip(picture.getpixel((3, 3)), (200, 30, 30), strict=True))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_every_usual_mode_is_read(mode: str) -> None:
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    source = grey.quantize(4) if mode == "P" else grey.convert(mode)
    assert _pixels(encoded(source)).getpixel((0, 0)) == (90, 90, 90)


def test_transparency_is_laid_on_white() -> None:
    assert _pixels(png(4, 4, (10, 20, 30, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert _pixels(png(4, 4, (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).quantize(4)
    assert _pixels(encoded(palette)).getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_as_its_exif_says_and_loses_what_its_sender_wrote() -> None:
    source = Image.new("RGB", (16, 8), "red")
    source.paste("blue", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    exif[0x010E] = "a secret"
    upload = read_upload(encoded(source, exif=exif), 10**6)
    picture = Image.open(io.BytesIO(upload.png))
    assert picture.size == (upload.width, upload.height) == (8, 16)
    assert (picture.getpixel((4, 2)), picture.getpixel((4, 14))) == ((0, 0, 255), (255, 0, 0))
    assert not picture.getexif()
    assert b"secret" not in upload.png


def test_an_embedded_profile_is_converted_and_a_broken_one_ignored() -> None:
    source = Image.new("RGB", (4, 4), (200, 30, 30))
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(srgb)
    for tag in (b"rXYZ", b"bXYZ"):
        assert swapped.count(tag) == 1
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    assert _pixels(encoded(source, icc_profile=srgb)).getpixel((0, 0)) == (200, 30, 30)
    assert _pixels(encoded(source, icc_profile=bytes(swapped))).getpixel((0, 0)) == (30, 30, 200)
    for broken in (b"no profile", xyz):
        assert _pixels(encoded(source, icc_profile=broken)).getpixel((0, 0)) == (200, 30, 30)
    assert "icc_profile" not in _pixels(encoded(source, icc_profile=bytes(swapped))).info


def test_the_pixel_limit_is_exact() -> None:
    assert read_upload(png(10, 10), 100).width == 10
    with pytest.raises(Problem) as refused:
        read_upload(png(10, 11), 100)
    assert refused.value.code == "image_too_large"


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_code_of_the_table_is_drawn_in_its_tree_and_described_in_the_docs() -> None:
    import app.errors

    described = (Path(__file__).parent.parent / "docs" / "errors.md").read_text("utf-8")
    for code in ERRORS:
        assert code in (app.errors.__doc__ or "").split()
    for code in {*ERRORS, *JOB_ERROR_CODES}:
        assert f"\n### `{code}`" in described, code


def test_statuses_are_4xx_or_503_and_remedies_are_sentences() -> None:
    for kind in ERRORS.values():
        assert 400 <= kind.status < 500 or kind.status == 503
        assert kind.remedy.endswith(".")


def test_a_code_that_is_not_in_the_table_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="This is a bug"):
        Problem("no_such_code", errors=(FieldError(pointer="/", detail=""),))
