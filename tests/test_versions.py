"""Two versions of the contract beside each other: what each reads, and what each leaves to the other.

Here the API is of version 4, whose requests with seed 99 mean something that workers of version 3 do not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import ValidationError

from tests.board_values import make_submission
from tests.fleet import Fleet
from tests.http_kit import FakeWorker, serving
from tests.test_lease import Bench
from workers import contract
from workers.contract import (
    CONTRACT_VERSION,
    FIRST_VERSION,
    Delivery,
    ModelEntry,
    Submission,
    Wish,
    WorkerBeat,
    key,
    needed_version,
)
from workers.jobkeys import read_progress, read_record
from workers.store import LocalStore

RECORDED = sorted((Path(__file__).parent / "recorded").glob("contract-*.json"))
MAPS = {"models", "faults", "wishes", "counters", "sampler_aliases", "software", "loras", "controls"}
NEW = 99
"""Seed of what only version 4 can draw."""
SLOW = {"FAKE_STEP_S": "0.02"}


@pytest.fixture
def version_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, the API's side, is of version 4."""
    monkeypatch.setattr(contract, "CONTRACT_VERSION", 4)
    monkeypatch.setattr(contract, "_NEEDS", ((4, lambda submission: submission.request.seed == NEW),))


def as_bytes(fields: dict[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in fields.items()}


def holds(value: Any, recorded: Any) -> bool:
    """Everything that was recorded is in the value, as it was."""
    if isinstance(recorded, dict):
        return all(name in value and holds(value[name], part) for name, part in recorded.items())
    return bool(value == recorded)


def with_news(value: Any) -> Any:
    """The same with an unknown field in every object; the keys of a map are names and no fields."""
    if isinstance(value, list):
        return [with_news(part) for part in value]
    if not isinstance(value, dict):
        return value
    newer = {
        name: {entry: with_news(of) for entry, of in part.items()}
        if name in MAPS and isinstance(part, dict)
        else with_news(part)
        for name, part in value.items()
    }
    return {**newer, "novelty": {"of": "version 7"}}


def with_news_in_hash(fields: dict[str, str]) -> dict[str, str]:
    newer = {name: value if name == "warnings" else _json_with_news(value) for name, value in fields.items()}
    return {**newer, "novelty": "1"}


def _json_with_news(value: str) -> str:
    return json.dumps(with_news(json.loads(value))) if value.startswith("{") else value


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("is_newer", [False, True], ids=["as recorded", "with unknown fields everywhere"])
def test_what_a_version_wrote_is_read_for_ever(path: Path, is_newer: bool) -> None:
    recorded = json.loads(path.read_text())
    changed = with_news if is_newer else (lambda value: value)
    for fields in recorded["records"]:
        record = read_record(as_bytes(with_news_in_hash(fields) if is_newer else fields))
        assert record is not None, fields["id"]
        dumped = record.model_dump(mode="json")
        assert holds(dumped["submission"], json.loads(fields["submission"]))
        assert holds(dumped["outcome"], json.loads(fields.get("outcome", "null")))
        assert dumped["warnings"] == json.loads(fields.get("warnings", "[]"))
        plain = fields.keys() - {"submission", "outcome", "warnings", "tenant", "companions"}
        assert all(str(dumped[name]) in (fields[name], fields[name].removesuffix("00")) for name in plain)
    progress = read_progress(as_bytes(recorded["progress"] | ({"novelty": "1"} if is_newer else {})))
    assert progress is not None
    assert (progress.step, progress.steps, progress.eta_s) == (4, 10, 1.25)
    values = {"beat": WorkerBeat, "entry": ModelEntry, "wish": Wish}
    for name, kind in values.items():
        read = kind.read(json.dumps(changed(recorded[name])))
        assert holds(read.model_dump(mode="json"), recorded[name]), name


def test_the_version_that_is_written_is_recorded() -> None:
    assert RECORDED[-1].stem == f"contract-{CONTRACT_VERSION}"
    assert RECORDED[0].stem == f"contract-{FIRST_VERSION}"


def test_our_own_values_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError):
        Delivery.model_validate({"novelty": 1})
    with pytest.raises(ValidationError):
        Submission.read('{"tenant": "ann"}')


def test_a_submission_needs_the_lowest_version_that_draws_it(version_4: None) -> None:
    assert [needed_version(make_submission(seed=seed)) for seed in (1, NEW)] == [FIRST_VERSION, 4]


# --- leaving alone ----------------------------------------------------------------------------------------------------


def make_unreadable(client: redis.Redis, job_id: str, version: int) -> None:
    """What a worker of that version might have been asked for: a task that we have no word for."""
    record = key("job", job_id)
    submission = json.loads(client.hget(record, "submission") or b"")
    submission["request"]["task"] = "text-to-sculpture"
    client.hset(record, mapping={"submission": json.dumps(submission), "contract_version": version})


@pytest.fixture
def bench(redis_client: redis.Redis) -> Bench:
    return Bench(redis_client)


def test_a_newer_record_that_cannot_be_read_is_neither_failed_nor_forgotten(bench: Bench) -> None:
    job_id = bench.submit()
    make_unreadable(bench.client, job_id, version=CONTRACT_VERSION + 1)
    bench.client.lmove("rq:queue:fake.normal.ann", "rq:queue:fake.normal.ann:intermediate")
    bench.keep_up()
    assert bench.record_field(job_id, "outcome") is None
    assert bench.client.hexists(key("costs", "fake"), job_id)
    assert bench.client.lrange("rq:queue:fake.normal.ann:intermediate", 0, -1) == [job_id.encode()]
    assert bench.board.list_jobs("ann", limit=10) == ([], None)
    assert bench.client.zscore(key("jobs", "ann"), job_id) is not None
    assert bench.board.is_beyond_us(job_id, "ann")
    assert not bench.board.is_beyond_us(job_id, "bob")


def test_a_beat_in_newer_words_is_left_until_it_is_old(bench: Bench) -> None:
    beat = json.loads(RECORDED[0].read_text())["beat"] | {"state": "dreaming"}
    now = bench.client.time()[0]
    bench.client.hset(key("workers"), "new", json.dumps(beat | {"beat_at": now}))
    bench.client.hset(key("workers"), "silent", json.dumps(beat | {"beat_at": now - 3600}))
    bench.keep_up()
    assert bench.board.beats() == []
    assert bench.client.hkeys(key("workers")) == [b"new"]


def test_an_older_worker_overwrites_no_newer_entry_while_its_worker_lives(fleet: Fleet) -> None:
    new = fleet.start(FAKE_CONTRACT_VERSION="4")
    fleet.start()
    assert fleet.board.catalogue()["fake"].contract_version == 4
    new.terminate()
    assert new.wait(20) == 0
    fleet.wait_for(lambda: fleet.board.catalogue()["fake"].contract_version == CONTRACT_VERSION)


# --- a rolling upgrade ------------------------------------------------------------------------------------------------


def test_an_older_worker_leaves_what_it_cannot_draw_to_a_newer_one(fleet: Fleet, version_4: None) -> None:
    old = fleet.start(**SLOW)
    (new_job,) = fleet.submit(make_submission(seed=NEW))
    behind = fleet.submit(make_submission(seed=1))
    others = fleet.submit(
        make_submission("bob", seed=2), make_submission("ann", priority="high", seed=3), make_submission("cid", seed=4)
    )
    fleet.wait_ended(others)
    view = fleet.view(new_job)
    assert (view.status, view.queue_position, view.needs_newer_worker) == ("queued", 0, True)
    assert fleet.view(*behind).status == "queued", "the order of a tenant's jobs is kept"
    assert not fleet.view(*behind).needs_newer_worker
    assert fleet.logs().count("a job needs a newer worker") == 1
    new = fleet.start(FAKE_CONTRACT_VERSION="4")
    assert fleet.beat_of(new).contract_version == 4
    fleet.wait_ended([new_job, *behind])
    fleet.assert_each_succeeded_once([new_job, *behind, *others])
    assert fleet.rq_job(new_job).worker_name == fleet.name_of(new)
    assert {fleet.rq_job(job_id).worker_name for job_id in others} == {fleet.name_of(old)}


def test_jobs_that_change_hands_between_versions_end_once(fleet: Fleet, version_4: None) -> None:
    """Old and new workers draw the same queues; one after the other is killed, upwards and downwards."""
    workers = [fleet.start(**SLOW), fleet.start(FAKE_CONTRACT_VERSION="4", **SLOW)]
    ids = fleet.submit(*(make_submission(seed=NEW if seed % 3 == 0 else seed, steps=60) for seed in range(12)))
    fleet.wait_running(ids[:1])
    for job_id in ids:  # what a newer API may write beside what we know
        record = key("job", job_id)
        fleet.client.hset(record, mapping={"novelty": "1"})
    workers[0].kill()
    workers.append(fleet.start(**SLOW))
    workers[1].kill()
    fleet.wait_for(lambda: fleet.client.hlen(key("costs", "fake")) < 12)
    workers.append(fleet.start(FAKE_CONTRACT_VERSION="4"))
    fleet.wait_ended(ids)
    fleet.assert_each_succeeded_once(ids)


def test_an_older_worker_at_rest_does_not_run_in_circles_around_a_newer_job(fleet: Fleet, version_4: None) -> None:
    worker = fleet.start()
    (new_job,) = fleet.submit(make_submission(seed=NEW))
    fleet.wait_for(lambda: "a job needs a newer worker" in fleet.logs())
    before = calls(fleet.client, "evalsha")
    fleet.client.blpop(["nothing"], timeout=3)
    assert calls(fleet.client, "evalsha") - before < 60, "some looks a second, not one every 20 ms"
    assert fleet.board.cancel(new_job).status == "canceled"  # type: ignore[union-attr]
    fleet.wait_ended(fleet.submit(make_submission(seed=1)))
    assert worker.poll() is None


def calls(client: redis.Redis, command: str) -> int:
    return int(client.info("commandstats")[f"cmdstat_{command}"]["calls"])


def test_a_queue_of_a_newer_job_and_unreadable_words_waits_without_harm(fleet: Fleet) -> None:
    (job_id,) = fleet.submit(make_submission(steps=2))
    make_unreadable(fleet.client, job_id, version=4)
    fleet.start()
    fleet.wait_for(lambda: "a job needs a newer worker" in fleet.logs())
    fleet.wait_ended(fleet.submit(make_submission("bob")))
    assert fleet.client.hget(key("job", job_id), "outcome") is None
    assert fleet.client.lrange("rq:queue:fake.normal.ann", 0, -1) in ([job_id.encode()], [])


# --- what clients are told --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_document_says_that_no_living_worker_can_draw_it(
    redis_url: str, redis_client: redis.Redis, store: LocalStore, version_4: None
) -> None:
    worker = FakeWorker(redis_client, store)
    worker.publish()
    worker.beat(contract_version=3)
    async with serving(redis_url, store) as client:
        plain, new = [
            (await client.post("/generate", json={"prompt": "a pear", "seed": seed})).json() for seed in (1, NEW)
        ]
        assert (plain["warnings"], new["status"]) == ([], "queued")
        assert "newer version of the workers" in new["warnings"][0]
        worker.beat(contract_version=4)
        assert (await client.get(new["links"]["self"])).json()["warnings"] == []


@pytest.mark.asyncio
async def test_an_older_api_says_to_ask_again_for_a_job_that_it_cannot_read(
    redis_url: str, redis_client: redis.Redis, store: LocalStore
) -> None:
    worker = FakeWorker(redis_client, store)
    worker.publish()
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        make_unreadable(redis_client, job["id"], version=4)
        for method in ("GET", "DELETE"):
            answer = await client.request(method, job["links"]["self"])
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert "newer version" in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) > 0
