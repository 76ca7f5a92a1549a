"""The log: one id leads through a job's whole story, and nothing that is secret is in it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.listener import bind, url_of
from app.main import create_app
from tests.board_values import make_submission
from tests.fleet import Fleet
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, FakeWorker, client_of, png, settings_for
from tests.process_kit import PATIENCE_S, Console
from workers.connection import connect
from workers.contract import JobRecord, Submission, key
from workers.embedded import EmbeddedServer, ensure_server
from workers.store import LocalStore

PROMPT = "the-hidden-garden"
PASSWORD = "the-hidden-word"
SECRETS = (PROMPT, PASSWORD, "alice-key", "bob-key", "wrong-key")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[EmbeddedServer, str]]:
    """A server of its own that wants a password, and its address."""
    server = ensure_server(tmp_path / "own")
    client = connect(server.url)
    client.config_set("requirepass", PASSWORD)
    client.close()
    yield server, f"unix://:{PASSWORD}@{server.url.removeprefix('unix://')}"
    server.stop()


def lines_of(text: str) -> list[dict[str, Any]]:
    """Every line, which has to be JSON."""
    return [json.loads(line) for line in text.splitlines() if line]


def assert_tells_no_secret(text: str) -> None:
    assert text
    for secret in SECRETS:
        assert secret not in text, text


# --- one id ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_every_line_of_a_request_has_its_id_and_the_line_of_a_job_has_both(
    redis_url, store, worker, tmp_path, capsys
) -> None:
    blocker = tmp_path / "blocked"
    broken = LocalStore(blocker)
    (blocker / ".tmp").rmdir()
    (blocker / ".tmp").write_text("a file where the folder should be")
    app = create_app(settings_for(redis_url, store))
    upload = {"task": "image-to-image", "prompt": PROMPT, "strength": "0.5"}
    async with client_of(app) as client:
        job = await client.post("/generate", json={"prompt": PROMPT}, headers={"X-Request-ID": "first"})
        object.__setattr__(app.state.services, "store", broken)
        refused = await client.post(
            "/generate", data=upload, files={"image": png()}, headers={"X-Request-ID": "second"}
        )
    assert (job.status_code, refused.status_code) == (202, 503)
    lines = lines_of(capsys.readouterr().err)
    told = [(line["event"], line["request_id"], line.get("job")) for line in lines]
    first = job.json()["id"]
    assert told == [
        ("accepted", "first", first),
        ("request", "first", first),
        ("store", "second", None),
        ("request", "second", None),
    ]


@pytest.mark.asyncio
async def test_a_repeated_request_is_told_apart_from_the_one_that_made_the_job(
    redis_url, store, worker, capsys
) -> None:
    async with client_of(create_app(settings_for(redis_url, store))) as client:
        for number in ("1", "2"):
            headers = {"Idempotency-Key": "again", "X-Request-ID": number}
            job = await client.post("/generate", json={"prompt": PROMPT, "seed": 1}, headers=headers)
    lines = [line for line in lines_of(capsys.readouterr().err) if line["event"] != "request"]
    assert [(line["event"], line["request_id"]) for line in lines] == [("accepted", "1"), ("accepted before", "2")]
    record = worker.board.get(job.json()["id"]).record
    assert record.submission.request_id == "1"


@pytest.mark.asyncio
async def test_the_id_of_a_post_finds_what_the_worker_did(redis_url, redis_client, fleet: Fleet, capsys) -> None:
    fleet.start()
    async with client_of(create_app(settings_for(redis_url, fleet.store))) as client:
        asked = {"prompt": PROMPT, "model": "fake", "num_inference_steps": 3}
        answer = await client.post("/generate", json=asked, headers={"X-Request-ID": "story-1", "Prefer": "wait=30"})
    job = answer.json()
    assert job["status"] == "succeeded"
    story = [line for line in lines_of(capsys.readouterr().err + fleet.logs()) if line.get("request_id") == "story-1"]
    assert [line["event"] for line in story] == ["accepted", "request", "claimed", "succeeded"]
    assert {line["job"] for line in story} == {job["id"]}
    assert len({line["execution"] for line in story[2:]}) == 1


def test_every_line_of_a_worker_about_a_job_has_its_execution_and_its_request(fleet: Fleet) -> None:
    first = fleet.start(FAKE_STEP_S="0.02")
    prompts = ("fault", "refused", "unseen", "a pear")
    submissions = [
        make_submission(prompt=prompt, steps=60, previews=True).model_copy(update={"request_id": f"post-{prompt}"})
        for prompt in prompts
    ]
    ids = fleet.submit(*submissions)
    fleet.wait_running(ids[3:], step=5)
    first.kill()
    fleet.start()
    fleet.wait_ended(ids)
    lines = [line for line in lines_of(fleet.logs()) if "job" in line]
    asked = dict(zip(ids, (submission.request_id for submission in submissions), strict=True))
    assert {line["job"] for line in lines} == set(ids)
    assert {"claimed", "failed", "no preview", "succeeded"} <= {line["event"] for line in lines}
    assert "a job was left behind and is queued again" in {line["event"] for line in lines}
    for line in lines:
        assert line["execution"], line
        assert line["request_id"] == asked[line["job"]], line


def test_libraries_and_rooms_below_log_as_the_api_does_with_the_id_of_the_request(
    redis_url, redis_client, store, worker
) -> None:
    job_id = worker.board.submit(make_submission(model="first", prompt=PROMPT), ENTRY)[0].record.id
    foreign = json.dumps({"tenant": "local", "request": {"prompt": PROMPT}, "unknown": PROMPT})
    redis_client.hset(key("job", job_id), "submission", foreign)
    with bind("127.0.0.1", 0) as listener:
        url, port = url_of(listener), listener.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "api", "--port", str(port)]
    with Console(command, REDIS_URL=redis_url, DENOISED_DATA_DIR=str(store.root.parent)) as api:
        wait_for_answer(url)
        httpx2.get(f"{url}/jobs/{job_id}", headers={"X-Request-ID": "mine-1"}, trust_env=False)
        api.wait_for("a record cannot be read")
        api.wait_for('"event": "request"')
    told = lines_of("\n".join(line for line in api.lines if "mine-1" in line))
    assert {line["event"] for line in told} == {"a record cannot be read", "request"}
    assert_tells_no_secret("\n".join(api.lines))


def wait_for_answer(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.get(f"{url}/healthz", trust_env=False)
            return
        time.sleep(0.05)
    raise AssertionError("the API does not answer")


def test_a_submission_of_before_has_no_request() -> None:
    earlier = json.loads(make_submission().model_dump_json())
    del earlier["request_id"]
    assert Submission.model_validate(earlier).request_id is None


# --- nothing secret --------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_log_of_the_api_tells_no_secret_whatever_goes_wrong(guarded, store, capsys) -> None:
    server, url = guarded
    worker = FakeWorker(connect(url), store)
    worker.publish()
    body = {"prompt": PROMPT}
    for address in (url, url.replace(PASSWORD, f"{PASSWORD}-not")):
        async with client_of(create_app(settings_for(address, store, api_keys=KEYS))) as client:
            for headers in (ALICE, BOB, {"Authorization": "Bearer wrong-key"}):
                job = (await client.post("/generate", json=body, headers=headers)).json()
                if "id" in job:
                    foreign = json.dumps({"tenant": "alice", "request": body, "unknown": PROMPT})
                    worker.client.hset(key("job", job["id"]), "submission", foreign)
                    await client.get(f"/jobs/{job['id']}", headers=headers)
            worker.client.config_set("maxmemory", 1)
            assert (await client.post("/generate", json=body, headers=ALICE)).status_code >= 500
            worker.client.config_set("maxmemory", 0)
    async with client_of(create_app(settings_for(url, store, api_keys=KEYS))) as client:
        server.stop()
        assert (await client.post("/generate", json=body, headers=ALICE)).status_code == 503
    said = capsys.readouterr()
    assert '"event": "redis"' in said.err
    assert_tells_no_secret(said.err + said.out)


def test_the_log_of_a_worker_tells_no_secret_whatever_goes_wrong(guarded, tmp_path) -> None:
    server, url = guarded
    with Fleet(url, connect(url), tmp_path) as fleet:
        fleet.launch(REDIS_URL=url.replace(PASSWORD, f"{PASSWORD}-not"))
        fleet.wait_for(lambda: "username-password" in fleet.logs())
        prompts = (f"fault {PROMPT}", f"refused {PROMPT}", f"unseen {PROMPT}", PROMPT, PROMPT)
        ids = fleet.submit(*(make_submission(prompt=prompt, previews=True) for prompt in prompts))
        foreign = json.dumps({"tenant": "ann", "request": {"prompt": PROMPT}, "unknown": PROMPT})
        fleet.client.hset(key("job", ids[-1]), "submission", foreign)
        fleet.start()
        fleet.wait_ended(ids[:-1])
        fleet.wait_for(lambda: "a record cannot be read" in fleet.logs())
        server.stop()
        fleet.wait_for(lambda: fleet.logs().count("Redis does not answer; steps go on without it"))
        assert_tells_no_secret(fleet.logs())


@pytest.mark.parametrize("value", [{"unknown": PROMPT}, {"priority": PROMPT}, {"request": {"prompt": PROMPT}}])
def test_what_cannot_be_read_is_told_without_its_value(value: dict[str, Any]) -> None:
    fields = {**json.loads(make_submission().model_dump_json()), **value}
    for read in (
        lambda: Submission.model_validate(fields),
        lambda: Submission.model_validate_json(json.dumps(fields)),
        lambda: Submission.model_validate_json(json.dumps(fields)[:-9]),
        lambda: JobRecord.model_validate({"submission": fields}),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read()
        assert PROMPT not in str(caught.value)
        assert PROMPT not in repr(caught.value)
