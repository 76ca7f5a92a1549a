"""The seam of the dialects: whose path it is, whose shape a refusal has, and what all of them do in the same way.

The dialect here is as small as one can be: `POST /tiny/draw` with `{"words": "..."}` answers with the picture.
"""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fastapi import APIRouter, Request
from redis.exceptions import ConnectionError as RedisConnectionError
from starlette.responses import JSONResponse, Response

from app import dialect, main
from app.dialect import (
    Dialect,
    dialect_of,
    in_words_of,
    installed_dialects,
    picture_files,
    refuse_unsupported,
    until_ended,
)
from app.errors import ERRORS, Problem, field_problem
from app.intake import parsed, queue_job, read_body
from app.payload import Payload, read_payload
from app.services import ServicesHere, TenantHere
from tests.http_kit import ALICE, KEYS, FakeWorker, is_untouched, serving
from workers.board import JobBoard
from workers.contract import JobView
from workers.store import LocalStore

pytestmark = pytest.mark.asyncio

router = APIRouter()


@router.post("/tiny/draw")
async def draw(request: Request, services: ServicesHere, _tenant: TenantHere) -> Response:
    body = await read_body(request)
    sent = await parsed(services, body, lambda: read_payload(request.headers, body))
    refuse_unsupported({"sound": "Pictures are silent."} if "sound" in sent.fields else {})
    payload = Payload({"prompt": sent.fields["words"], "width": sent.fields.get("wide", 64), "height": 64})
    accepted = await queue_job(request, services, payload, dialect="tiny")
    view = await until_ended(request, services, accepted.view)
    return Response((await picture_files(services, view))[0], media_type="image/png")


def refuse(problem: Problem, request_id: str) -> Response:
    fields = [error.pointer for error in problem.errors]
    return JSONResponse({"oh": problem.code, "because": problem.detail, "at": fields, "id": request_id}, problem.status)


TINY = Dialect("tiny", re.compile(r"/tiny(/.*)?"), router, refuse, {"prompt": "words", "width": "wide"})


@pytest_asyncio.fixture
async def client(
    redis_url: str, store: LocalStore, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx2.AsyncClient]:
    monkeypatch.setattr(main, "installed_dialects", lambda: (TINY,))
    async with serving(redis_url, store) as client:
        yield client


async def test_a_job_of_a_dialect_is_a_job_like_any_other(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    answer = asyncio.create_task(client.post("/tiny/draw", json={"words": "a cat"}))
    job_id = await asyncio.to_thread(worker.next_job)
    files = await asyncio.to_thread(worker.draw, job_id)
    assert (await answer).content == files[0]
    document = (await client.get(f"/jobs/{job_id}")).json()
    assert (document["request"]["prompt"], document["status"]) == ("a cat", "succeeded")
    view = worker.board.get(job_id)
    assert view is not None
    assert view.record.submission.dialect == "tiny"


async def test_a_refusal_has_the_shape_and_the_names_of_its_dialect(
    client: httpx2.AsyncClient, worker: FakeWorker, store: LocalStore
) -> None:
    answer = await client.post("/tiny/draw", json={"words": "a cat", "wide": 65})
    assert answer.status_code == 422
    assert answer.json()["oh"] == "size_invalid"
    assert answer.json()["at"] == ["/wide"]
    assert answer.json()["id"] == answer.headers["X-Request-ID"]
    empty = (await client.post("/tiny/draw", json={"words": " "})).json()
    assert "`words`" in empty["because"]
    assert is_untouched(worker.client, store)


async def test_what_a_dialect_cannot_honour_is_refused_by_name(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/tiny/draw", json={"words": "a cat", "sound": True})
    assert answer.status_code == 422
    assert (answer.json()["oh"], answer.json()["at"]) == ("field_unsupported", ["/sound"])


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/tiny/nothing", {}, "route_unknown"),
        ("GET", "/tiny/draw", {}, "method_not_allowed"),
        ("POST", "/tiny/draw", {"Host": "evil.example"}, "host_refused"),
        ("POST", "/tiny/draw", {"Content-Length": "999999999"}, "body_too_large"),
    ],
)
async def test_refusals_before_the_route_have_its_shape_too(
    client: httpx2.AsyncClient, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    answer = await client.request(method, path, headers=headers)
    assert answer.json()["oh"] == code
    assert answer.status_code == ERRORS[code].status


async def test_our_own_refusals_keep_theirs(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/tin")).json()["code"] == "route_unknown"


async def test_a_failed_and_a_canceled_job_are_told(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    failed = asyncio.create_task(client.post("/tiny/draw", json={"words": "a cat"}))
    worker.fail(await asyncio.to_thread(worker.next_job))
    assert (await failed).json()["oh"] == "job_failed"
    assert (await failed).json()["because"].startswith("not_finite: The latents turned NaN.")
    worker.client.delete("denoised:events")
    canceled = asyncio.create_task(client.post("/tiny/draw", json={"words": "a dog"}))
    await client.delete(f"/jobs/{await asyncio.to_thread(worker.next_job)}")
    assert (await canceled).status_code == 410


async def test_who_waits_while_redis_is_away_gets_the_picture_when_it_is_back(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect, "_LOOK_S", 0.01)
    get, looks, is_cut = JobBoard.get, threading.Semaphore(0), threading.Event()

    def look(board: JobBoard, job_id: str) -> JobView | None:
        looks.release()
        if is_cut.is_set():
            raise RedisConnectionError("The line is cut.")
        return get(board, job_id)

    async def see(count: int) -> None:
        for _ in range(count):
            await asyncio.to_thread(looks.acquire, timeout=2)

    monkeypatch.setattr(JobBoard, "get", look)
    answer = asyncio.create_task(client.post("/tiny/draw", json={"words": "a cat"}))
    job_id = await asyncio.to_thread(worker.next_job)
    await see(2)  # as it was queued, and as it is waited for
    is_cut.set()
    await see(9)
    is_cut.clear()
    files = await asyncio.to_thread(worker.draw, job_id)
    assert (await answer).content == files[0]


async def test_who_hangs_up_has_the_job_canceled(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    app: Any = client._transport.app  # type: ignore[attr-defined]
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": b'{"words": "a cat"}', "more_body": False})
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/tiny/draw", "headers": headers, "query_string": b""}

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    call = asyncio.create_task(app(scope, messages.get, send))
    job_id = await asyncio.to_thread(worker.next_job)
    messages.put_nowait({"type": "http.disconnect"})
    await call
    view = worker.board.get(job_id)
    assert view is not None
    assert view.status == "canceled"
    assert sent[0]["status"] == 499


@pytest.mark.parametrize("scheme", ["Bearer {}", "token {}", "Basic {}"])
async def test_a_key_may_come_in_any_scheme(redis_url: str, store: LocalStore, worker: FakeWorker, scheme: str) -> None:
    key = ALICE["Authorization"].partition(" ")[2]
    given = base64.b64encode(f"anybody:{key}".encode()).decode() if scheme.startswith("Basic") else key
    async with serving(redis_url, store, api_keys=KEYS) as client:
        assert (await client.get("/jobs", headers={"Authorization": scheme.format(given)})).status_code == 200
        wrong = await client.get("/jobs", headers={"Authorization": scheme.format("nonsense")})
        assert wrong.status_code == 401


async def test_only_fields_are_renamed_and_nothing_else_that_looks_like_one() -> None:
    problem = field_problem("size_invalid", "width", "`width` 9 is no multiple of 8; the width is in pixels.")
    renamed = in_words_of({"width": "size"}, problem)
    assert renamed.errors[0].pointer == "/size"
    assert renamed.detail.startswith("`size` 9 is no multiple of 8; the width is in pixels.")
    assert problem.errors[0].pointer == "/width"
    unknown = field_problem("field_unknown", "width", "There is no `width`.")
    assert in_words_of({"width": "size"}, unknown).errors[0].pointer == "/width"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/hf/text-to-image", "POST"),
        ("/sdapi/v1/txt2img", "POST"),
        ("/sdapi/v1/options", "GET, POST"),
        ("/v1/images/generations", "POST"),
        ("/v1/files/x", "DELETE, GET"),
        ("/v1/predictions", "GET, POST"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    redis_url: str, store: LocalStore, worker: FakeWorker, path: str, methods: str
) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.put(path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, methods)


async def test_every_path_has_at_most_one_dialect() -> None:
    dialects = installed_dialects()
    assert len({dialect.name for dialect in dialects}) == len(dialects)
    for path in ("/", "/generate", "/jobs/1", "/models", "/docs", "/healthz", "/replay", "/metrics"):
        assert dialect_of(path, dialects) is None
