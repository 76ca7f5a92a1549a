"""Webhooks over HTTP: who is told what, signed by whom, how often, and what survives."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from pydantic import ValidationError
from replicate.webhook import InvalidSignatureError, WebhookSigningSecret
from replicate.webhook import Webhooks as Replicate

from app.events import Mailbox
from app.settings import ApiSettings
from app.webhooks import body as webhook_body
from app.webhooks import sender as webhooks
from tests.board_values import make_entry, make_submission
from tests.http_kit import ALICE, BOB, KEYS, FakeWorker, is_untouched, png, serving
from tests.process_kit import ApiServer
from tests.receiver import FakeReceiver, Received, Reply
from tests.test_http_errors import assert_problem
from workers.connection import connect
from workers.contract import Webhook, key
from workers.embedded import ensure_server
from workers.store import LocalStore
from workers.webhooks import Shares, Turn, Webhooks

HERE = {"webhook_allow": "127.0.0.0/8"}


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    with FakeReceiver() as receiver:
        yield receiver


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed attempts are repeated without a wait, three times."""
    monkeypatch.setattr(webhooks, "DELAYS_S", (0.0, 0.0, 0.0))


async def post(client: httpx2.AsyncClient, url: str, *events: str, **headers: str) -> dict[str, Any]:
    webhook = {"url": url} | ({"events": list(events)} if events else {})
    answer = await client.post("/generate", json={"prompt": "a pear", "webhook": webhook}, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def next_of(receiver: FakeReceiver) -> Received:
    return await asyncio.to_thread(receiver.next)


async def until(check: Callable[[], Any]) -> None:
    await asyncio.to_thread(wait_for, check)


def wait_for(check: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


async def webhook_of(client: httpx2.AsyncClient, job: dict[str, Any], state: str) -> dict[str, Any]:
    """The document's webhook, once it is in this state or has failed so often."""
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await client.get(job["links"]["self"])).json()["webhook"]
            if state in (found["state"], f"{found['failed_attempts']} failed"):
                return found
            await asyncio.sleep(0.02)


# --- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_receiver_is_told_of_the_start_of_progress_and_of_the_end(redis_url, store, worker, receiver) -> None:
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, f"{receiver.url}?token=x", "ended", "started", "progress")
        worker.claim(job["id"])
        started = await next_of(receiver)
        worker.progress(job["id"], 3, 20)
        progress = await next_of(receiver)
        worker.draw(job["id"])
        ended = await next_of(receiver)
        assert (await webhook_of(client, job, "told"))["events"] == ["ended", "started", "progress"]
        document = (await client.get(job["links"]["self"])).json()
    assert [one.type for one in (started, progress, ended)] == ["job.started", "job.progress", "job.ended"]
    assert [one.json["data"]["status"] for one in (started, progress, ended)] == ["running", "running", "succeeded"]
    assert progress.json["data"]["progress"] == {"step": 3, "steps": 20}
    assert len({one.headers["webhook-id"] for one in (started, progress, ended)}) == 3
    assert ended.path == "/hook?token=x"
    assert ended.headers["content-type"] == "application/json"
    assert ended.json["timestamp"] == document["ended_at"]
    data = ended.json["data"]
    assert data.pop("images")[0]["url"] == "http://localhost" + document["images"][0]["url"]
    assert data.pop("links") == {name: f"http://localhost{path}" for name, path in document["links"].items()}
    assert data == {name: value for name, value in document.items() if name not in ("images", "links", "webhook")}


@pytest.mark.asyncio
@pytest.mark.parametrize("ending", ["succeeded", "failed", "canceled"])
async def test_unless_asked_otherwise_only_the_end_is_told(redis_url, store, worker, receiver, ending: str) -> None:
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url)
        if ending == "canceled":
            await client.delete(job["links"]["self"])
        else:
            {"succeeded": worker.draw, "failed": worker.fail}[ending](job["id"])
        assert (await next_of(receiver)).json["data"]["status"] == ending
        assert await webhook_of(client, job, "told") | {"last_attempt_at": ""} == {
            "url": receiver.url,
            "events": ["ended"],
            "state": "told",
            "failed_attempts": 0,
            "last_attempt_at": "",
            "last_status": 204,
            "last_error": None,
            "next_attempt_at": None,
        }
    assert len(receiver.received) == 1


@pytest.mark.asyncio
async def test_progress_comes_at_most_twice_a_second_and_never_after_the_end(
    redis_url, store, worker, receiver
) -> None:
    times: list[float] = []

    def answer(_: Received) -> Reply:
        times.append(time.monotonic())
        return Reply()

    receiver.answer = answer
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url, "progress", "ended")
        worker.claim(job["id"])
        for step in range(1, 13):
            worker.progress(job["id"], step, 20)
            await asyncio.sleep(0.1)
        worker.draw(job["id"])
        await webhook_of(client, job, "told")
    types = [one.type for one in receiver.received]
    assert types.count("job.progress") >= 2
    assert types.index("job.ended") == len(types) - 1
    assert all(later - earlier > 0.45 for earlier, later in itertools.pairwise(times[:-1]))


@pytest.mark.asyncio
async def test_the_request_of_a_document_sent_again_calls_nobody(redis_url, store, worker, receiver) -> None:
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url)
        assert "webhook" not in job["request"]
        again = (await client.post("/generate", json=job["request"])).json()
        assert again["webhook"] is None


@pytest.mark.asyncio
async def test_a_form_names_a_webhook_as_json(redis_url, store, worker, receiver) -> None:
    fields = {"task": "image-to-image", "prompt": "a pear", "webhook": json.dumps({"url": receiver.url})}
    async with serving(redis_url, store, **HERE) as client:
        answer = await client.post("/generate", data=fields, files={"image": ("a.png", png(), "image/png")})
        assert answer.status_code == 202, answer.text
        worker.draw(answer.json()["id"])
        assert (await next_of(receiver)).json["data"]["task"] == "image-to-image"


@pytest.mark.asyncio
async def test_words_that_this_version_does_not_have_are_left_to_another(
    redis_url, redis_client: redis.Redis, store, worker, receiver
) -> None:
    webhook = Webhook(url=receiver.url, host="127.0.0.1", dialect="of version 7")
    submission = make_submission("local").model_copy(update={"webhook": webhook})
    async with serving(redis_url, store, **HERE):
        job_id = worker.board.submit(submission, make_entry())[0].record.id
        worker.draw(job_id)
        await until(lambda: (redis_client.zscore(key("webhooks"), job_id) or 0) > time.time() + 20)
        await until(lambda: not redis_client.hexists(key("webhook", job_id), "holder"))
    assert receiver.received == []


# --- signatures ------------------------------------------------------------------------------------------------------


def is_signed(received: Received, secret: str) -> bool:
    """As the unmodified `replicate` package sees it."""
    try:
        Replicate.validate(
            headers=received.headers, body=received.body.decode(), secret=WebhookSigningSecret(key=secret), tolerance=60
        )
    except InvalidSignatureError:
        return False
    return True


@pytest.mark.asyncio
async def test_a_signature_is_the_tenants_own_and_another_client_can_check_it(
    redis_url, store, worker, receiver
) -> None:
    async with serving(redis_url, store, api_keys=KEYS, **HERE) as client:
        secrets = [(await client.get("/webhooks/secret", headers=who)).json()["secret"] for who in (ALICE, BOB)]
        job = await post(client, receiver.url, **ALICE)
        worker.draw(job["id"])
        received = await next_of(receiver)
        assert_problem(await client.get("/webhooks/secret"), "key_required")
    assert [is_signed(received, secret) for secret in secrets] == [True, False]
    assert not is_signed(Received(received.path, received.headers, received.body + b" "), secrets[0])
    later = {**received.headers, "webhook-timestamp": str(int(received.headers["webhook-timestamp"]) + 1)}
    assert not is_signed(Received(received.path, later, received.body), secrets[0])
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"))) == 32 for secret in secrets)


@pytest.mark.asyncio
async def test_all_processes_agree_about_the_secret_and_a_given_one_outlives_redis(
    redis_url, redis_client: redis.Redis, store, worker
) -> None:
    async def told(**settings: str) -> str:
        async with serving(redis_url, store, **settings) as client:
            return str((await client.get("/webhooks/secret")).json()["secret"])

    assert await told() == await told()
    given = [await told(webhook_secret="a" * 32), await told(webhook_secret="b" * 32)]
    redis_client.flushall()
    assert await told(webhook_secret="a" * 32) == given[0] != given[1]
    assert await told(webhook_secret=f"{'b' * 32},{'a' * 32}") == given[1]


@pytest.mark.asyncio
async def test_while_a_secret_is_replaced_both_sign(redis_url, store, worker, receiver) -> None:
    secrets = {}
    for name in "ab":
        async with serving(redis_url, store, webhook_secret=name * 32) as client:
            secrets[name] = (await client.get("/webhooks/secret")).json()["secret"]
    async with serving(redis_url, store, webhook_secret=f"{'b' * 32}, {'a' * 32}", **HERE) as client:
        job = await post(client, receiver.url)
        worker.draw(job["id"])
        received = await next_of(receiver)
    assert all(is_signed(received, secret) for secret in secrets.values())


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValidationError, match="32 characters or more"):
        ApiSettings(webhook_secret="short")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="neither a host name"):
        ApiSettings(webhook_allow="http://hooks.internal")  # type: ignore[arg-type]


# --- attempts --------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_receiver_that_fails_gets_the_same_again_until_it_takes_it(
    redis_url, store, worker, receiver, at_once
) -> None:
    receiver.answer = lambda _: Reply((500, 404, 200)[len(receiver.received) - 1])
    async with serving(redis_url, store, **HERE) as client:
        secret = (await client.get("/webhooks/secret")).json()["secret"]
        job = await post(client, receiver.url)
        worker.draw(job["id"])
        assert (await webhook_of(client, job, "told"))["last_status"] == 200
    first, *others = receiver.received
    assert len(others) == 2
    assert {one.headers["webhook-id"] for one in others} == {first.headers["webhook-id"]}
    assert {one.body for one in others} == {first.body}
    assert all(is_signed(one, secret) for one in receiver.received)


@pytest.mark.asyncio
async def test_its_owner_sees_what_went_wrong_and_when_it_is_tried_again(
    redis_url, redis_client: redis.Redis, store, worker, receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.answer = lambda _: Reply(500, body=b"a secret of the receiver")
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, f"{receiver.url}?token=very-secret")
        worker.draw(job["id"])
        seen = await webhook_of(client, job, "1 failed")
        exposition = (await client.get("/metrics")).text
    assert (seen["state"], seen["last_status"]) == ("active", 500)
    assert seen["last_error"] == "The receiver answered 500."
    due = redis_client.zscore(key("webhooks"), job["id"])
    assert due is not None
    assert 3 < due - time.time() < 6.1
    assert 'denoised_webhook_deliveries_total{outcome="failed"} 1.0' in exposition
    assert "denoised_webhooks_pending 1.0" in exposition
    said = capfd.readouterr().err
    (line,) = [json.loads(text) for text in said.splitlines() if '"webhook failed"' in text]
    assert (line["job"], line["host"], line["status"], line["level"]) == (job["id"], "127.0.0.1", 500, "warning")
    assert "very-secret" not in said
    assert "a secret of the receiver" not in said


@pytest.mark.asyncio
async def test_a_fault_of_ours_is_an_attempt_that_failed(
    redis_url, store, worker, receiver, at_once, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(webhook_body, "native_body", broken)
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url)
        worker.draw(job["id"])
        assert (await webhook_of(client, job, "given_up"))["last_error"] == "A fault of this server."
    assert receiver.received == []


@pytest.mark.asyncio
async def test_who_answers_410_is_told_nothing_more(redis_url, store, worker, receiver) -> None:
    receiver.answer = lambda _: Reply(410)
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url, "started", "ended")
        worker.claim(job["id"])
        assert (await webhook_of(client, job, "gone"))["last_status"] == 410
        worker.draw(job["id"])
        assert await asyncio.to_thread(Webhooks(worker.client, 1.0).pending) == 0
    assert len(receiver.received) == 1


@pytest.mark.asyncio
async def test_who_asks_for_time_gets_it_within_bounds(
    redis_url, redis_client, store, worker, receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_RETRY_AFTER_S", 1800.0)
    receiver.answer = lambda got: Reply(503, {"Retry-After": "900" if got.path == "/hook" else "999999"})
    async with serving(redis_url, store, **HERE) as client:
        jobs = [await post(client, url) for url in (receiver.url, f"{receiver.url}/longer")]
        for job in jobs:
            worker.draw(job["id"])
        for job in jobs:
            await webhook_of(client, job, "1 failed")
    waits = [redis_client.zscore(key("webhooks"), job["id"]) - time.time() for job in jobs]
    assert 800 < waits[0] < 901
    assert 1700 < waits[1] < 1801


@pytest.mark.asyncio
async def test_at_last_a_receiver_is_given_up_and_so_it_is_told(redis_url, store, worker, receiver, at_once) -> None:
    receiver.answer = lambda _: Reply(302, {"Location": "/elsewhere"})
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url)
        worker.draw(job["id"])
        seen = await webhook_of(client, job, "given_up")
        exposition = (await client.get("/metrics")).text
    assert (seen["failed_attempts"], seen["last_status"], seen["next_attempt_at"]) == (4, 302, None)
    assert len(receiver.received) == 4
    assert 'denoised_webhook_deliveries_total{outcome="given_up"} 1.0' in exposition


@pytest.mark.asyncio
async def test_a_receiver_that_knows_only_the_end_is_told_it_at_once(redis_url, store, worker, receiver) -> None:
    receiver.answer = lambda got: Reply(204 if got.type == "job.ended" else 400)
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url, "started", "ended")
        worker.claim(job["id"])
        await webhook_of(client, job, "1 failed")
        worker.draw(job["id"])
        await webhook_of(client, job, "told")
    assert [one.type for one in receiver.received] == ["job.started", "job.ended"]


@pytest.mark.asyncio
async def test_receivers_that_never_answer_hold_up_nobody_else(redis_url, store, worker, receiver) -> None:
    stuck = threading.Event()
    with FakeReceiver("127.0.0.2") as dead:
        dead.answer = lambda _: Reply(after=stuck)
        async with serving(redis_url, store, **HERE) as client:
            for _ in range(8):
                worker.draw((await post(client, f"http://127.0.0.2:{dead.port}/"))["id"])
            for _ in range(webhooks.SHARES.to_host):
                await next_of(dead)
            worker.draw((await post(client, receiver.url))["id"])
            await next_of(receiver)
            assert len(dead.received) == webhooks.SHARES.to_host, "and it is not stormed"
            stuck.set()
            for _ in range(4):
                await next_of(dead)


@pytest.mark.asyncio
async def test_an_erased_job_is_not_told_of(redis_url, redis_client, store, worker, receiver) -> None:
    answered, entered = threading.Event(), threading.Event()

    def answer(_: Received) -> Reply:
        entered.set()
        return Reply(500, after=answered)

    receiver.answer = answer
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url)
        worker.draw(job["id"])
        await asyncio.to_thread(entered.wait)
        assert (await client.delete(job["links"]["self"])).status_code == 204
        answered.set()
        await until(lambda: b"webhook" not in b" ".join(redis_client.keys("*")).replace(b"webhook-secret", b""))
    assert len(receiver.received) == 1


# --- refused at the door ---------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/",
        "http://localhost:9000/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "https://user:password@example.org/",
        "ftp://example.org/",
        "http://example.org:25/",
        "no url",
    ],
)
async def test_what_is_never_called_is_refused_at_the_door(redis_url, redis_client, store, worker, url: str) -> None:
    async with serving(redis_url, store) as client:
        answer = await client.post("/generate", json={"prompt": "a pear", "webhook": {"url": url}})
    problem = assert_problem(answer, "webhook_refused")
    assert [error.pointer for error in problem.errors or ()] == ["/webhook/url"]
    assert is_untouched(redis_client, store)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("webhook", "code", "pointer"),
    [
        ("https://example.org/", "field_invalid", "/webhook"),
        ({}, "field_invalid", "/webhook/url"),
        ({"url": ""}, "field_invalid", "/webhook/url"),
        ({"url": 7}, "field_invalid", "/webhook/url"),
        ({"url": "https://example.org/", "events": []}, "field_invalid", "/webhook/events"),
        ({"url": "https://example.org/", "events": ["completed"]}, "field_invalid", "/webhook/events/0"),
        ({"url": "https://example.org/", "secret": "x"}, "field_unknown", "/webhook/secret"),
    ],
)
async def test_a_webhook_that_cannot_be_read_is_refused(
    redis_url, redis_client, store, worker, webhook: Any, code: str, pointer: str
) -> None:
    async with serving(redis_url, store) as client:
        problem = assert_problem(await client.post("/generate", json={"prompt": "a pear", "webhook": webhook}), code)
        assert [error.pointer for error in problem.errors or ()] == [pointer]
        form = {"prompt": "a pear", "webhook": json.dumps(webhook)}
        assert_problem(await client.post("/generate", files={name: (None, text) for name, text in form.items()}), code)
    assert is_untouched(redis_client, store)


@pytest.mark.asyncio
async def test_a_name_that_leads_inside_is_found_out_when_it_is_called(
    redis_url, store, worker, receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the door its name is not looked up: the answer would tell which names there are inside."""
    monkeypatch.setattr("app.webhooks.address._look_up", lambda name: ["127.0.0.1"])
    async with serving(redis_url, store) as client:
        job = await post(client, f"http://hooks.example.org:{receiver.port}/")
        worker.draw(job["id"])
        seen = await webhook_of(client, job, "1 failed")
    assert (seen["state"], seen["last_status"]) == ("active", None)
    assert "not public" in seen["last_error"]
    assert receiver.received == []


# --- what survives ---------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_several_processes_tell_each_receiver_once(redis_url, store, worker, receiver) -> None:
    async with serving(redis_url, store, **HERE) as client, serving(redis_url, store, **HERE):
        jobs = [await post(client, receiver.url) for _ in range(20)]
        for job in jobs:
            worker.draw(job["id"])
        for job in jobs:
            await webhook_of(client, job, "told")
    assert sorted(one.json["data"]["id"] for one in receiver.received) == sorted(job["id"] for job in jobs)


@pytest.mark.asyncio
async def test_what_a_process_had_in_hand_when_it_died_another_one_tells(redis_url, store, worker, receiver) -> None:
    submission = make_submission("local").model_copy(update={"webhook": Webhook(url=receiver.url, host="127.0.0.1")})
    job_id = worker.board.submit(submission, make_entry())[0].record.id
    worker.draw(job_id)
    (dead,) = Webhooks(worker.client, lease_s=0.5).take(Shares(), ())[0]
    async with serving(redis_url, store, **HERE):
        received = await next_of(receiver)
    assert received.json["data"]["id"] == dead.job_id == job_id


@pytest.mark.asyncio
async def test_who_was_held_up_for_most_of_its_lease_leaves_the_webhook_to_another(
    redis_url, store, worker, receiver, monkeypatch
) -> None:
    """What it told now might come after what another one has told: a start after the end."""
    begun: list[float] = []
    take_turn = webhooks.Sender._take_turn

    async def held_up(self: webhooks.Sender, turn: Turn, begin_by: float, mailbox: Mailbox) -> None:
        assert time.monotonic() < begin_by <= time.monotonic() + webhooks.LEASE_S - webhooks.TIMEOUT_S
        late = begin_by - 60.0 if not begun else begin_by
        await take_turn(self, turn, late, mailbox)
        begun.append(late)

    monkeypatch.setattr(webhooks.Sender, "_take_turn", held_up)
    async with serving(redis_url, store, **HERE) as client:
        job = await post(client, receiver.url)
        worker.draw(job["id"])
        await until(lambda: begun)
        assert (receiver.received, worker.client.hexists(key("webhook", job["id"]), "holder")) == ([], True)
        worker.client.zadd(key("webhooks"), {job["id"]: 1.0})  # its lease is over
        assert (await next_of(receiver)).type == "job.ended"


def test_killed_with_redis_in_the_middle_of_it_both_come_back_and_tell(tmp_path: Path, receiver: FakeReceiver) -> None:
    """A real API process that was answered 500, and its Redis, after a worker has ended a job that nobody heard of."""
    store, folder = LocalStore(tmp_path / "store"), tmp_path / "redis"
    redis_server = ensure_server(folder)
    client = connect(redis_server.url)
    worker = FakeWorker(client, store)
    worker.publish()
    server = ApiServer(redis_server.url, store, DENOISED_WEBHOOK_ALLOW="127.0.0.1", DENOISED_DURABILITY="always")
    try:
        receiver.answer = lambda _: Reply(500)
        with httpx2.Client(base_url=server.url, timeout=30) as http:
            body = {"prompt": "a pear", "webhook": {"url": receiver.url}}
            failing, unheard = [http.post("/generate", json=body).json()["id"] for _ in range(2)]
        worker.draw(failing)
        assert receiver.next().json["data"]["id"] == failing
        wait_for(lambda: client.hget(key("webhook", failing), "failures") == b"1")
        server.kill()
        worker.draw(unheard)  # nobody hears it
        worker.board.confirm_durable("local")
        os.kill(client.info()["process_id"], signal.SIGKILL)
        redis_server.stop()
        redis_server = ensure_server(folder)
        receiver.answer = lambda _: Reply()
        client.zadd(key("webhooks"), {failing: 1.0})  # its five seconds are over
        server.start()
        told = {receiver.next().json["data"]["id"] for _ in range(2)}
        assert told == {failing, unheard}
        wait_for(lambda: client.zcard(key("webhooks")) == 0)
    finally:
        server.stop()
        client.close()
        redis_server.stop()
