"""The Python client: its calls played by hand, over ASGI, and over sockets to a real API process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import httpx2
import pytest
import redis

from app import errors as server_errors
from app.client import (
    AsyncClient,
    Client,
    ClientError,
    Job,
    JobFailed,
    PictureDamaged,
    Preview,
    Refused,
    Request,
    Unreachable,
    WaitTimeout,
    conversation,
    surface,
    values,
)
from app.client.conversation import Conversation
from app.client.following import JOB, EventReader, merged
from app.client.request import Control, Lora, Replay, body_of, replay_body_of
from app.client.steps import Answer, Send, Sleep, Step
from app.listener import bind, url_of
from app.main import create_app
from app.replay_schemas import ReplayBody
from app.schemas import ControlBody, LoraBody, form_schema
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, FakeWorker, client_of, png, settings_for
from tests.process_kit import ROOT, ApiServer
from workers.contract import ENDED
from workers.store import LocalStore

ALICE_KEY, BOB_KEY = (who["Authorization"].removeprefix("Bearer ") for who in (ALICE, BOB))
WEBP = b"RIFF....WEBP preview"
UNKNOWN = {"id": "x", "task": "text-to-image", "status": "queued", "created_at": "2026-11-23T03:11:05.527000Z"}

# --- both clients ----------------------------------------------------------------------------------------------------


def test_both_clients_have_the_same_calls_word_for_word() -> None:
    public = [name for name in dir(Client) if not name.startswith("_")]
    assert public == [name for name in dir(AsyncClient) if not name.startswith("_")]
    assert {"submit", "wait", "generate", "events", "jobs", "cancel", "erase", "download", "save"} <= set(public)
    for name in public:
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name)), name
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)


def test_importing_the_client_brings_neither_the_server_nor_torch() -> None:
    code = "import sys, app.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert {"fastapi", "starlette", "uvicorn", "redis", "torch", "PIL", "workers", "models"}.isdisjoint(
        loaded.stdout.split()
    )


@pytest.mark.parametrize("server", ["http://x:port", "localhost:8000", "ftp://x", "http://", "no server"])
def test_an_address_that_nobody_can_have_is_told_at_once(server: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(Unreachable, match="is no URL"):
            kind(server)


@pytest.mark.parametrize("key", ["schlüssel", "se\ncret"])
def test_a_key_that_nobody_can_have_is_told_at_once_and_kept_secret(key: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(Unreachable, match="no key has") as told:
            kind("http://x", key)
        assert key not in repr(told.value)


def test_a_key_may_end_with_the_line_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_API_KEY", "secret\n")
    sent: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.headers["Authorization"])
        return httpx2.Response(200, json={"models": []})

    with Client("http://x", transport=httpx2.MockTransport(answer)) as client:
        client.models()
    assert sent == ["Bearer secret"]


# --- requests --------------------------------------------------------------------------------------------------------


def test_the_request_has_the_fields_that_the_server_takes() -> None:
    assert set(Request.__annotations__) == set(form_schema()["properties"])
    assert set(Replay.__annotations__) == set(ReplayBody.model_fields)
    assert set(Lora.__annotations__) == set(LoraBody.model_fields)
    assert set(Control.__annotations__) == set(ControlBody.model_fields)
    for name, field in form_schema()["properties"].items():
        assert choices(get_type_hints(Request)[name]) == set(field.get("enum", ())), name


def choices(hint: object) -> set[str]:
    """The texts of a Literal; none of any other type."""
    return set(get_args(hint)) if get_origin(hint) is Literal else set()


def test_pictures_go_along_as_path_bytes_or_text(tmp_path: Path) -> None:
    data = png(8, 8)
    path, text = tmp_path / "in.png", base64.b64encode(data).decode()
    path.write_bytes(data)
    bodies = [
        body_of({"prompt": "x", "image": each, "mask_image": each, "controls": [{"name": "edges", "image": each}]})
        for each in (path, data, text)
    ]
    assert bodies[0] == bodies[1] == bodies[2]
    assert json.loads(bodies[0])["controls"] == [{"name": "edges", "image": text}]
    assert json.loads(body_of("a pear")) == {"prompt": "a pear"}
    again = {"image": text, "control_images": [text, text]}
    assert json.loads(replay_body_of({"image": path, "control_images": [path, data]})) == again
    assert json.loads(replay_body_of(path)) == json.loads(replay_body_of(data)) == {"image": text}
    with pytest.raises(FileNotFoundError):
        body_of({"image": tmp_path / "nothing.png"})
    with pytest.raises(TypeError, match="cannot hold a set"):
        body_of({"prompt": {"a pear"}})  # type: ignore[typeddict-item]


# --- documents -------------------------------------------------------------------------------------------------------


def test_the_states_that_a_job_ends_in_are_the_servers() -> None:
    assert values.ENDED == ENDED


def test_what_a_newer_server_tells_is_passed_over_and_kept_in_the_document() -> None:
    newer = {**UNKNOWN, "status": "dreaming", "mood": 3, "progress": {"step": 1, "steps": 2, "substep": 0.5}}
    job = Conversation("http://x").read(JOB, newer)
    assert (job.status, job.is_ended, job.progress and job.progress.steps) == ("dreaming", False, 2)
    assert job.document == newer
    assert hash(job) == hash(Conversation("http://x").read(JOB, newer))


@pytest.mark.parametrize("document", [{}, {**UNKNOWN, "progress": 7}, {**UNKNOWN, "created_at": "soon"}])
def test_a_document_that_is_none_of_ours_is_told_as_such(document: dict[str, Any]) -> None:
    with pytest.raises(Unreachable, match="not as a denoised server"):
        Conversation("http://x").read(JOB, document)


# --- what is repeated, played by hand --------------------------------------------------------------------------------

POST = Send("POST", "/generate", {"Idempotency-Key": "k"}, b"{}")
DONE = Answer(200, {}, b'{"ok": true}')


def problem(status: int, code: str, **headers: str) -> Answer:
    return Answer(status, headers, json.dumps({"status": status, "code": code, "detail": "No."}).encode())


def play(talk: Conversation, *answers: Answer | Exception) -> tuple[Any, list[Step]]:
    """What a request ends in when the server behaves like this, and the steps on the way."""
    steps = talk.document(POST)
    taken = [next(steps)]
    coming = iter(answers)
    try:
        while True:
            answer = next(coming) if isinstance(taken[-1], Send) else None
            taken.append(steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer))
    except StopIteration as end:
        return end.value, taken
    except ClientError as error:
        return error, taken


@pytest.mark.parametrize(
    "setback",
    [
        Unreachable("No answer."),
        problem(408, "body_timeout"),
        problem(429, "queue_full"),
        problem(503, "redis_unavailable"),
        *(Answer(status, {}, b"<html>the gateway is busy</html>") for status in (502, 503, 504)),
    ],
    ids=str,
)
def test_what_may_pass_is_repeated_with_the_same_key(setback: Answer | Exception) -> None:
    told: list[ClientError] = []
    result, steps = play(Conversation("http://x", 30.0, lambda error, _: told.append(error)), setback, setback, DONE)
    assert result == {"ok": True}
    assert [step for step in steps if isinstance(step, Send)] == [POST] * 3
    assert len(told) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422])
def test_what_repeating_does_not_help_is_raised_at_once(status: int) -> None:
    error, steps = play(Conversation("http://x"), problem(status, "some_code"))
    assert isinstance(error, Refused)
    assert (error.status, error.code, error.detail, steps) == (status, "some_code", "No.", [POST])


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_is_none_of_ours_is_raised_at_once(status: int) -> None:
    error, steps = play(Conversation("http://x"), Answer(status, {}, b"<html>It works!</html>"))
    assert isinstance(error, Unreachable)
    assert "not as a denoised server" in str(error)
    assert steps == [POST]


def test_retry_after_is_obeyed_and_never_waited_for_in_vain() -> None:
    full = problem(429, "queue_full", **{"Retry-After": "7"})
    result, steps = play(Conversation("http://x"), full, DONE)
    assert result == {"ok": True}
    assert isinstance(steps[1], Sleep)
    assert 7 <= steps[1].seconds <= 8
    error, steps = play(Conversation("http://x", patience_s=6.0), full)
    assert isinstance(error, Refused)
    assert (error.retry_after_s, steps) == (7, [POST])


def test_pauses_grow_differ_and_end_with_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(conversation.time, "monotonic", lambda: now)
    pauses: list[float] = []

    def sleep(_: ClientError, pause_s: float) -> None:
        nonlocal now
        pauses.append(pause_s)
        now += pause_s

    error, _ = play(Conversation("http://x", 30.0, sleep), *[Unreachable("No answer.")] * 100)
    assert isinstance(error, Unreachable)
    assert 25 < sum(pauses) <= 30
    for pause, longest in zip(pauses, (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0), strict=False):
        assert longest / 2 <= pause <= longest


def transport_errors(kind: type[httpx2.HTTPError] = httpx2.RequestError) -> Iterator[type[httpx2.HTTPError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from transport_errors(child)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", sorted(set(transport_errors()), key=str), ids=lambda kind: kind.__name__)
async def test_every_fault_of_the_layer_below_is_unreachable(kind: type[httpx2.RequestError]) -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise kind("it broke", request=request)

    transport = httpx2.MockTransport(fail)
    with Client("http://x", patience_s=0.0, transport=transport) as client, pytest.raises(Unreachable) as told:
        client.models()
    assert isinstance(told.value.__cause__, kind)
    async with AsyncClient("http://x", patience_s=0.0, transport=transport) as other:
        with pytest.raises(Unreachable, match="it broke"):
            await other.models()


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_are_read_whatever_pieces_they_come_in() -> None:
    stream = b': hello\n\nevent: progress\nid: 1\ndata: {"step": 1,\r\ndata: "steps": 2}\n\ndata: 3\n\n'
    stream += b'data: {"x":"\xc3\xa4"}\n\n'
    wanted = [("progress", {"step": 1, "steps": 2}), ("message", {"x": "ä"})]
    for size in (1, 7, len(stream)):
        reader = EventReader()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [event for piece in pieces for event in reader.feed(piece)] == wanted


def test_a_progress_event_changes_only_what_it_tells() -> None:
    document = {"id": "x", "status": "running", "progress": None, "eta_s": None, "queue_position": 1}
    news = {"step": 3, "steps": 9, "eta_s": 0.5, "queue_position": None}
    told = {"progress": {"step": 3, "steps": 9}, "eta_s": 0.5, "queue_position": None}
    assert merged(document, news) == {**document, **told}
    assert merged(document, {"step": 0, "steps": 0, "eta_s": 2.0})["progress"] is None


# --- a real API process ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API process with keys; the worker is played by FakeWorker."""
    running = ApiServer(redis_url, LocalStore(tmp_path_factory.mktemp("client") / "store"), DENOISED_API_KEYS=KEYS)
    yield running
    running.stop()


@pytest.fixture
def far_worker(server: ApiServer, redis_client: redis.Redis) -> FakeWorker:
    worker = FakeWorker(redis_client, server.store)
    worker.publish()
    worker.beat()
    return worker


class Meddling(httpx2.HTTPTransport):
    """A network that does something to answers before they arrive."""

    def __init__(self, meddle: Callable[[httpx2.Request, httpx2.Response], httpx2.Response]) -> None:
        super().__init__()
        self._meddle = meddle

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._meddle(request, super().handle_request(request))


class AnswersLost(Meddling):
    """Requests to paths that end so arrive and are obeyed; the first answer never comes back."""

    def __init__(self, ending: str) -> None:
        self.lost = 0

        def lose(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
            if not request.url.path.endswith(ending) or self.lost:
                return response
            self.lost += 1
            response.read()
            response.close()
            raise httpx2.ReadError("the line is gone", request=request)

        super().__init__(lose)


class CutStream(httpx2.SyncByteStream):
    """The first piece of a stream, and then what `end` does."""

    def __init__(self, whole: httpx2.SyncByteStream, end: Callable[[], None]) -> None:
        self._whole, self._end = whole, end

    def __iter__(self) -> Iterator[bytes]:
        yield next(iter(self._whole))
        self._end()

    def close(self) -> None:
        self._whole.close()


def jobs_of(worker: FakeWorker, tenant: str = "alice") -> list[str]:
    return [view.status for view in worker.board.list_jobs(tenant, limit=50, cursor=None, status=None)[0]]


def drawing(worker: FakeWorker, seen: list[Job]) -> Callable[[Job], None]:
    """A progress callback that plays the worker: each state that the client is told of leads to the next."""

    def progress(job: Job) -> None:
        seen.append(job)
        if job.status == "queued" and job.id not in worker.holds:
            worker.claim(job.id)
        elif job.status == "running" and job.progress is None:
            worker.progress(job.id, 5, 20)
        elif job.status == "running":
            worker.draw(job.id)

    return progress


def test_a_picture_is_asked_for_followed_and_saved(server: ApiServer, far_worker: FakeWorker, tmp_path: Path) -> None:
    seen: list[Job] = []
    with Client(server.url, ALICE_KEY) as client:
        job = client.generate({"prompt": "a pear", "seed": 3, "num_images": 2}, progress=drawing(far_worker, seen))
        first, second = job.images
        path = client.save(first, tmp_path / "pear.png")
        data = client.download(second)
    assert (job.request["prompt"], [image.seed for image in job.images]) == ("a pear", [3, 4])
    assert [first.sha256, second.sha256] == [hashlib.sha256(each).hexdigest() for each in (path.read_bytes(), data)]
    assert (seen[0].status, seen[-1]) == ("queued", job)
    assert any(each.progress and each.progress.step == 5 for each in seen)
    assert len(seen) == len(set(seen))
    assert job.timings.denoise_s == 0.3
    assert [each.name for each in tmp_path.iterdir()] == ["pear.png"]


def test_a_lost_answer_makes_no_second_job(server: ApiServer, far_worker: FakeWorker) -> None:
    network = AnswersLost("/generate")
    with Client(server.url, ALICE_KEY, transport=network) as client:
        job = client.submit("a pear")
    assert (network.lost, jobs_of(far_worker)) == (1, ["queued"])
    assert job.status == "queued"


def test_two_programs_with_one_key_share_a_job(server: ApiServer, far_worker: FakeWorker) -> None:
    with Client(server.url, ALICE_KEY) as client, Client(server.url, ALICE_KEY) as other:
        first = client.submit("a pear", idempotency_key="order 7")
        assert other.submit("a pear", idempotency_key="order 7").id == first.id
        with pytest.raises(Refused) as told:
            other.submit("a plum", idempotency_key="order 7")
    assert told.value.code == "idempotency_conflict"
    assert jobs_of(far_worker) == ["queued"]


def test_a_job_that_fails_is_raised_with_its_code(server: ApiServer, far_worker: FakeWorker) -> None:
    def fail(job: Job) -> None:
        if job.id not in far_worker.holds:
            far_worker.fail(job.id)

    with Client(server.url, ALICE_KEY) as client:
        with pytest.raises(JobFailed, match="turned NaN") as told:
            client.generate("a pear", progress=fail)
        assert told.value.code == "not_finite"
        assert client.wait(told.value.job.id).status == "failed"


def test_a_refusal_tells_code_field_and_request(server: ApiServer, far_worker: FakeWorker) -> None:
    with Client(server.url, ALICE_KEY) as client, pytest.raises(Refused) as told:
        client.submit({"prompt": "a pear", "width": 100})
    error = told.value
    assert (error.status, error.code, error.errors[0].pointer) == (422, "size_invalid", "/width")
    assert error.request_id
    assert str(error).startswith("width 100")
    assert jobs_of(far_worker) == []


def test_server_and_key_come_from_the_environment(
    server: ApiServer, far_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENOISED_SERVER", server.url)
    monkeypatch.setenv("DENOISED_API_KEY", BOB_KEY)
    with Client() as client, Client(key="wrong-key-0123456789") as stranger:
        assert client.is_ready()
        client.submit("a pear")
        with pytest.raises(Refused) as told:
            stranger.models()
    assert told.value.code == "key_unknown"
    assert (jobs_of(far_worker, "bob"), jobs_of(far_worker)) == (["queued"], [])


def test_who_does_not_listen_is_told_after_the_patience() -> None:
    told: list[ClientError] = []
    with bind("127.0.0.1", 0) as listener:
        url = url_of(listener)
    with Client(url, patience_s=0.5, on_retry=lambda error, _: told.append(error)) as client:
        with pytest.raises(Unreachable, match="No answer from"):
            client.is_ready()
        assert told == []
        with pytest.raises(Unreachable, match="No answer from"):
            client.models()
    assert told


@pytest.mark.parametrize("end", ["broken", "over"])
def test_a_stream_that_is_cut_is_followed_to_the_end(server: ApiServer, far_worker: FakeWorker, end: str) -> None:
    streams = 0

    def cut(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        nonlocal streams
        if not request.url.path.endswith("/events"):
            return response
        streams += 1
        if streams > 1:
            return response

        def finish() -> None:
            if end == "broken":
                raise httpx2.ReadError("the line is gone", request=request)

        assert isinstance(response.stream, httpx2.SyncByteStream)
        return httpx2.Response(200, headers=response.headers, stream=CutStream(response.stream, finish))

    seen: list[Job] = []
    with Client(server.url, ALICE_KEY, transport=Meddling(cut)) as client:
        job = client.generate("a pear", progress=drawing(far_worker, seen))
    assert (job.status, streams) == ("succeeded", 2)
    assert len(seen) == len(set(seen))


def test_a_server_that_is_killed_while_a_job_is_waited_for_is_waited_for_too(
    server: ApiServer, far_worker: FakeWorker
) -> None:
    seen: list[Job] = []

    def progress(job: Job) -> None:
        seen.append(job)
        if len(seen) == 1:
            far_worker.claim(job.id)
        elif job.progress is None and job.status == "running":
            far_worker.progress(job.id, 5, 20)
        elif job.status == "running" and server.process.poll() is None and len(far_worker.holds) == 1:
            server.kill()
            far_worker.draw(job.id)
            server.start()

    with Client(server.url, ALICE_KEY) as client:
        job = client.generate("a pear", progress=progress)
        assert client.download(job.images[0])
    assert job.status == "succeeded"
    assert jobs_of(far_worker) == ["succeeded"]


def test_who_waits_no_longer_leaves_the_job_alone(server: ApiServer, far_worker: FakeWorker) -> None:
    with Client(server.url, ALICE_KEY) as client:
        with pytest.raises(WaitTimeout) as told:
            client.generate("a pear", timeout_s=0.05)
        job = told.value.job
        assert job.status == "queued"
        far_worker.draw(job.id)
        assert client.wait(job, timeout_s=30).status == "succeeded"


def test_a_server_that_is_gone_does_not_make_the_wait_longer() -> None:
    job = Conversation("http://x").read(JOB, UNKNOWN)
    with bind("127.0.0.1", 0) as listener:
        url = url_of(listener)
    with Client(url) as client, pytest.raises(WaitTimeout):
        client.wait(job, timeout_s=0.6)
    with Client(url, patience_s=0.1) as client, pytest.raises(Unreachable):
        client.wait(job, timeout_s=600)


def test_previews_come_between_the_changes(server: ApiServer, far_worker: FakeWorker) -> None:
    seen: list[Job | Preview] = []
    with Client(server.url, ALICE_KEY) as client:
        job = client.submit({"prompt": "a pear", "previews": True})
        for event in client.events(job):
            seen.append(event)
            if isinstance(event, Preview):
                far_worker.draw(job.id)
            elif event.status == "queued" and job.id not in far_worker.holds:
                far_worker.claim(job.id)
            elif event.status == "running":
                far_worker.preview(job.id, WEBP)
    assert Preview(WEBP, "image/webp") in seen
    assert isinstance(seen[-1], Job)
    assert seen[-1].status == "succeeded"


def test_cancel_never_erases(server: ApiServer, far_worker: FakeWorker) -> None:
    network = AnswersLost("/cancel")
    with Client(server.url, ALICE_KEY, transport=network) as client:
        waiting, ended = client.submit("a pear"), client.submit("a plum")
        far_worker.draw(ended.id)
        assert client.cancel(waiting).status == "canceled"
        assert network.lost == 1
        assert client.job(waiting).status == "canceled"
        assert client.download(client.cancel(ended.id).images[0])


def test_erase_leaves_nothing_even_when_its_answer_is_lost(server: ApiServer, far_worker: FakeWorker) -> None:
    with Client(server.url, ALICE_KEY, transport=AnswersLost("/cancel")) as client:
        waiting, ended = client.submit("a pear"), client.submit("a plum")
        far_worker.draw(ended.id)
        for job in (ended, waiting, waiting):
            client.erase(job)
        with pytest.raises(Refused) as told:
            client.job(ended)
        with pytest.raises(Refused) as unknown:
            client.erase("of nobody")
    assert (told.value.code, unknown.value.code) == ("job_gone", "job_unknown")
    assert jobs_of(far_worker) == []


def test_jobs_are_listed_page_by_page_as_they_are_needed(
    server: ApiServer, far_worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "PAGE_JOBS", 2)
    pages: list[str] = []

    def note(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        if request.method == "GET":
            pages.append(request.url.path)
        return response

    with Client(server.url, ALICE_KEY, transport=Meddling(note)) as client:
        submitted = [client.submit(f"pear {number}").id for number in range(5)]
        with closing(client.jobs()) as jobs:
            assert [next(jobs).id, next(jobs).id] == submitted[:-3:-1]
            assert len(pages) == 1
            assert [job.id for job in jobs] == submitted[2::-1]
        client.cancel(submitted[1])
        assert [job.id for job in client.jobs(status="canceled")] == [submitted[1]]


def test_a_picture_that_is_not_what_the_document_promises_is_refused(
    server: ApiServer, far_worker: FakeWorker, tmp_path: Path
) -> None:
    fetched = 0

    def garble_first(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        nonlocal fetched
        if "/images/" not in request.url.path:
            return response
        fetched += 1
        return httpx2.Response(200, content=b"half of it") if fetched == 1 else response

    with Client(server.url, ALICE_KEY, transport=Meddling(garble_first)) as client:
        job = client.submit("a pear")
        (data,) = far_worker.draw(job.id)
        (image,) = client.wait(job).images
        assert (client.download(image), fetched) == (data, 2)
        (tmp_path / "pear.png").write_bytes(b"what was here")
        with pytest.raises(PictureDamaged):
            client.save(dataclasses.replace(image, sha256="0" * 64), tmp_path / "pear.png")
        missing = tmp_path / "no such folder" / "pear.png"
        with pytest.raises(FileNotFoundError) as told:
            client.save(image, missing)
        assert told.value.filename == str(missing)
        long_name = tmp_path / ("梨" * 80 + ".png")
        client.save(image, long_name).unlink()
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("pear.png", b"what was here")]


def test_the_models_are_told_with_what_they_can_draw(server: ApiServer, far_worker: FakeWorker) -> None:
    with Client(server.url, ALICE_KEY) as client:
        (model,) = client.models()
    assert (model.name, model.loaded, model.defaults["width"]) == ("first", True, 128)
    assert [sampler.name for sampler in model.samplers] == [sampler.name for sampler in ENTRY.samplers]
    assert model.document["sampler_aliases"]


# --- the client that awaits, over ASGI -------------------------------------------------------------------------------


class AsyncAnswersLost(httpx2.ASGITransport):
    """POSTs arrive and are obeyed; the first answer never comes back."""

    lost = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST" and not self.lost:
            self.lost += 1
            raise httpx2.ReadError("the line is gone", request=request)
        return response


def awaiting(app: Any, **options: Any) -> AsyncClient:
    return AsyncClient("http://localhost", transport=httpx2.ASGITransport(app), **options)


@pytest.mark.asyncio
async def test_everything_can_be_awaited(redis_url: str, store: LocalStore, worker: FakeWorker, tmp_path: Path) -> None:
    worker.beat()
    app = create_app(settings_for(redis_url, store))
    async with client_of(app), awaiting(app) as client:
        assert await client.is_ready()
        assert [model.name for model in await client.models()] == ["first"]
        upload = png(64, 64)
        body: Request = {"task": "image-to-image", "prompt": "a pear", "image": upload}
        drawing = asyncio.create_task(client.generate(body))
        job_id = await asyncio.to_thread(worker.next_job)
        await asyncio.to_thread(worker.draw, job_id)
        job = await drawing
        path = await client.save(job.images[0], tmp_path / "pear.png")
        assert path.read_bytes() == await client.download(job.images[0])
        assert [event async for event in client.events(job.id)] == [job]
        again = await client.submit({**job.request, "seed": 4})
        assert [each.id async for each in client.jobs()] == [again.id, job.id]
        assert (await client.cancel(again)).status == "canceled"
        await client.erase(job)
        assert [each.id async for each in client.jobs()] == [again.id]


@pytest.mark.asyncio
async def test_a_lost_answer_makes_no_second_job_when_awaited(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    app = create_app(settings_for(redis_url, store))
    network = AsyncAnswersLost(app)
    async with client_of(app), AsyncClient("http://localhost", transport=network) as client:
        await client.submit("a pear")
    assert (network.lost, jobs_of(worker, "local")) == (1, ["queued"])


@pytest.mark.asyncio
async def test_a_full_queue_is_waited_for(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    app = create_app(settings_for(redis_url, store, max_queued=1))
    refusals: list[tuple[ClientError, float]] = []

    def make_room(error: ClientError, pause_s: float) -> None:
        refusals.append((error, pause_s))
        worker.draw(first.id)

    worker.beat(cost_per_s=1e6)
    async with client_of(app), awaiting(app, on_retry=make_room) as client:
        first = await client.submit("a pear")
        second = await client.submit("a plum")
    ((refused, pause_s),) = refusals
    assert isinstance(refused, Refused)
    assert (refused.status, refused.code) == (429, "queue_full")
    assert refused.retry_after_s is not None
    assert pause_s >= refused.retry_after_s
    assert (second.status, jobs_of(worker, "local")) == ("queued", ["queued", "succeeded"])


@pytest.mark.asyncio
async def test_a_server_that_starts_is_waited_for(
    redis_url: str, redis_client: redis.Redis, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_errors, "RETRY_AFTER_S", {})
    worker = FakeWorker(redis_client, store)
    app = create_app(settings_for(redis_url, store))
    refusals: list[str] = []

    def start(error: ClientError, _: float) -> None:
        assert isinstance(error, Refused)
        refusals.append(error.code)
        worker.publish()

    async with client_of(app), awaiting(app, on_retry=start) as client:
        assert not await client.is_ready()
        await client.submit("a pear")
    assert (refusals, jobs_of(worker, "local")) == (["no_worker"], ["queued"])


@pytest.mark.asyncio
async def test_without_a_stream_the_job_is_asked_for(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    app = create_app(settings_for(redis_url, store, max_event_streams=1))
    async with client_of(app), awaiting(app) as client:
        with app.state.services.metrics.count_stream("local"):
            job = await client.submit("a pear")
            ended = await client.wait(job, progress=drawing(worker, []))
    assert ended.status == "succeeded"


@pytest.mark.asyncio
async def test_a_stream_is_followed_while_other_things_are_done(server: ApiServer, far_worker: FakeWorker) -> None:
    async with AsyncClient(server.url, ALICE_KEY) as client:
        jobs = [await client.submit("a pear"), await client.submit("a plum")]
        ended = await asyncio.gather(*(client.wait(job, progress=drawing(far_worker, [])) for job in jobs))
        late = await client.submit("a fig")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.wait(late)
        with pytest.raises(WaitTimeout):
            await client.wait(late, timeout_s=0.05)
        assert (await client.job(late)).status == "queued"
    assert [job.status for job in ended] == ["succeeded", "succeeded"]


@pytest.mark.asyncio
async def test_following_many_jobs_holds_up_no_other_call() -> None:
    document = json.dumps(UNKNOWN)
    opened, connections = asyncio.Semaphore(0), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while b"/events" not in await reader.readuntil(b"\r\n\r\n"):
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(document)}\r\n\r\n{document}".encode())
            writer.write(f"HTTP/1.1 200 OK\r\n\r\ndata: {document}\n\n".encode())
            opened.release()
            await reader.read()  # open until the client hangs up
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    silent_server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent_server.sockets[0].getsockname()[1]}"
    less_than_silence_ends_s = 15
    async with silent_server:
        async with AsyncClient(url) as client, asyncio.timeout(less_than_silence_ends_s):
            waiting = [asyncio.create_task(client.wait("x")) for _ in range(101)]
            for _ in waiting:
                await opened.acquire()
            assert (await client.job("x")).status == "queued"
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.gather(*connections)
