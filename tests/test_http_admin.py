"""What operators look at: all queues and all workers, in nobody else's sight."""

from __future__ import annotations

import time
from typing import Any

import pytest
from rq.suspension import suspend

from app.operator_view import QueueListDocument, WorkerListDocument
from tests.board_values import make_submission
from tests.fleet import Fleet
from tests.http_kit import ALICE, BOB, ENTRY, KEYS, FakeWorker, serving
from tests.test_http_errors import assert_problem
from workers.contract import BEAT_TTL_S, Priority
from workers.overview import Overview

PATHS = ("/admin/queues", "/admin/workers")


def submit(worker: FakeWorker, tenant: str, priority: Priority = "normal", steps: int = 10) -> str:
    submission = make_submission(tenant, model="first", priority=priority, steps=steps, prompt="a secret")
    asked = submission.model_copy(update={"request_id": f"post-of-{tenant}"})
    return worker.board.submit(asked, ENTRY)[0].record.id


# --- who may look ----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("path", PATHS)
async def test_only_operators_may_look_where_there_are_keys(redis_url, store, worker, path: str) -> None:
    async with serving(redis_url, store, api_keys=KEYS, operators="alice") as client:
        assert (await client.get(path, headers=ALICE)).status_code == 200
        assert_problem(await client.get(path, headers=BOB), "operator_required")
        assert_problem(await client.get(path, headers={"Authorization": "Bearer wrong"}), "key_unknown")
        assert_problem(await client.get(path), "key_required")
    async with serving(redis_url, store, api_keys=KEYS) as client:
        assert_problem(await client.get(path, headers=ALICE), "operator_required")


@pytest.mark.asyncio
@pytest.mark.parametrize("path", PATHS)
async def test_without_keys_whoever_reaches_the_server_may_look_but_no_foreign_page(
    redis_url, store, worker, path: str
) -> None:
    async with serving(redis_url, store) as client:
        assert (await client.get(path)).status_code == 200
        assert_problem(await client.get(path, headers={"Host": "evil.example"}), "host_refused")
        assert_problem(await client.get(path, headers={"Origin": "http://evil.example"}), "origin_refused")
        assert_problem(await client.post(path), "method_not_allowed")


# --- what is there to see --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_queues_are_told_by_model_priority_and_tenant_the_longest_wait_first(redis_url, store, worker) -> None:
    worker.beat(cost_per_s=10.0)
    first = submit(worker, "ann", "low", steps=10)
    submit(worker, "bob", "normal", steps=20)
    submit(worker, "ann", "low", steps=30)
    async with serving(redis_url, store) as client:
        answer = await client.get("/admin/queues")
    told = answer.json()
    assert told["suspended"] is False
    assert [(queue["model"], queue["priority"], queue["tenant"], queue["queued"]) for queue in told["queues"]] == [
        ("first", "low", "ann", 2),
        ("first", "normal", "bob", 1),
    ]
    assert told["queues"][0]["oldest_job"] == first
    assert told["queues"][0]["oldest_wait_s"] >= told["queues"][1]["oldest_wait_s"]
    small = 64 * 64 / 128**2
    assert told["queues"][0]["predicted_s"] == pytest.approx(60 * small / 10, abs=0.01), "all of them come before it"
    assert told["queues"][1]["predicted_s"] == pytest.approx(30 * small / 10, abs=0.01), "the first of ann's does"
    assert "secret" not in answer.text


@pytest.mark.asyncio
async def test_without_a_measured_speed_nothing_is_predicted(redis_url, store, worker) -> None:
    submit(worker, "ann")
    suspend(worker.client)
    async with serving(redis_url, store) as client:
        told = (await client.get("/admin/queues")).json()
    assert told["suspended"] is True
    assert [queue["predicted_s"] for queue in told["queues"]] == [None]


@pytest.mark.asyncio
async def test_empty_queues_and_no_workers_are_empty_lists(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        assert (await client.get("/admin/queues")).json() == {"suspended": False, "queues": []}
        assert (await client.get("/admin/workers")).json() == {"workers": []}


@pytest.mark.asyncio
async def test_a_worker_is_told_with_its_models_and_the_jobs_in_its_hands(redis_url, store, worker) -> None:
    ids = [submit(worker, tenant) for tenant in ("ann", "bob", "carol")]
    for job_id in ids[:2]:
        worker.claim(job_id)
    worker.progress(ids[0], 3, 10)
    worker.board.cancel(ids[1])
    counters = {"jobs_succeeded": 2.0, "rows:first": 5.0, "step_seconds<=0.1:first": 1.0}
    fault = {"code": "checkpoint_missing", "detail": "It is not there."}
    worker.beat(cost_per_s=4.0, counters=counters, faults={"broken": fault})
    async with serving(redis_url, store) as client:
        answer = await client.get("/admin/workers")
    (told,) = answer.json()["workers"]
    assert (told["name"], told["host"], told["pid"], told["state"]) == ("fake", "here", 1, "running")
    assert told["beat_age_s"] < BEAT_TTL_S
    assert told["models"]["first"]["cost_per_s"] == 4.0
    assert told["faults"] == {"broken": fault}
    assert told["counters"] == {"jobs_succeeded": 2.0, "rows:first": 5.0}
    (job,) = told["jobs"]
    assert (job["id"], job["tenant"], job["model"], job["request_id"]) == (ids[0], "ann", "first", "post-of-ann")
    assert (job["progress"], job["eta_s"], job["deaths"]) == ({"step": 3, "steps": 10}, 1.5, 0)
    assert job["execution"] == f"execution-{ids[0][-8:]}"
    assert "secret" not in answer.text


@pytest.mark.asyncio
async def test_a_worker_that_fell_silent_is_shown_as_silent(redis_url, store, worker) -> None:
    worker.beat(beat_at=time.time() - BEAT_TTL_S - 5)
    async with serving(redis_url, store) as client:
        (told,) = (await client.get("/admin/workers")).json()["workers"]
        assert "denoised_worker_up{" not in (await client.get("/metrics")).text
    assert told["state"] == "silent"
    assert told["beat_age_s"] > BEAT_TTL_S


@pytest.mark.asyncio
async def test_answers_are_what_the_reference_says(redis_url, store, worker) -> None:
    submit(worker, "ann")
    worker.claim(submit(worker, "bob"))
    worker.beat(cost_per_s=4.0)
    documents: dict[str, Any] = {"/admin/queues": QueueListDocument, "/admin/workers": WorkerListDocument}
    async with serving(redis_url, store) as client:
        reference = (await client.get("/openapi.json")).json()
        for path, document in documents.items():
            operation = reference["paths"][path]["get"]
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{document.__name__}"}
            assert {"401", "403", "421", "503"} <= set(operation["responses"])
            answer = await client.get(path)
            assert document.model_validate_json(answer.content).model_dump(mode="json") == answer.json()


# --- real workers ----------------------------------------------------------------------------------------------------


def test_each_running_job_is_in_the_hands_of_one_worker(fleet: Fleet) -> None:
    overview = Overview(fleet.client)

    def in_hands() -> dict[str, str]:
        return {view.record.id: worker.beat.name for worker in overview.workers() for view in worker.jobs}

    first = fleet.start(FAKE_STEP_S="0.02", FAKE_ROOM="2")
    ids = fleet.submit(*(make_submission(steps=1000) for _ in range(2)))
    fleet.wait_running(ids)
    name = fleet.name_of(first)
    assert in_hands() == dict.fromkeys(ids, name)
    first.kill()
    second = fleet.start(FAKE_STEP_S="0.02")
    fleet.wait_for(lambda: in_hands() == dict.fromkeys(ids, fleet.name_of(second)))
    for job_id in ids:
        fleet.board.cancel(job_id)
    fleet.wait_for(lambda: in_hands() == {})
