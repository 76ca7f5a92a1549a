"""Operators load and unload models; others are told nothing of the workers' inside."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from tests.http_kit import ALICE, BOB, KEYS, FakeWorker, serving
from workers.contract import key

FAULT = {"code": "checkpoint_missing", "detail": "unet/config.json is missing."}
OPEN = {"loaded": True, "warmed": True}


async def asked_of(worker: FakeWorker, model: str) -> str:
    """Id of what an operator asks of a model; waits for it."""
    for _ in range(1000):
        if model in worker.board.wishes():
            break
        await asyncio.sleep(0.01)
    return worker.board.wishes()[model].id


@pytest.mark.asyncio
async def test_a_wish_reaches_the_workers_and_is_answered_at_once(redis_url, store, worker) -> None:
    worker.beat()
    async with serving(redis_url, store) as client:
        answer = await client.post("/models/first/unload")
    assert answer.status_code == 202
    assert answer.json() == {
        "name": "first",
        "loaded": True,
        "workers": [{"worker": "fake", "loaded": True, "done": False, "error": None}],
    }
    assert worker.board.wishes()["first"].action == "unload"


@pytest.mark.asyncio
async def test_who_waits_is_answered_when_every_worker_is_done(redis_url, store, worker) -> None:
    worker.beat()
    async with serving(redis_url, store) as client:
        asked = asyncio.create_task(client.post("/models/first/unload", headers={"Prefer": "wait=20"}))
        wish = await asked_of(worker, "first")
        assert not asked.done()
        worker.beat(models={"first": {"loaded": False, "warmed": True}}, wishes={"first": wish})
        answer = await asked
    assert answer.status_code == 200
    assert answer.json()["loaded"] is False
    assert answer.json()["workers"][0]["done"] is True


@pytest.mark.asyncio
async def test_a_model_that_cannot_be_loaded_says_why(redis_url, store, worker) -> None:
    worker.beat(faults={"broken": FAULT})
    async with serving(redis_url, store) as client:
        asked = asyncio.create_task(client.post("/models/broken/load", headers={"Prefer": "wait=20"}))
        worker.beat(faults={"broken": FAULT}, wishes={"broken": await asked_of(worker, "broken")})
        answer = await asked
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "model_unusable")
    assert FAULT["detail"] in problem["detail"]


@pytest.mark.asyncio
async def test_the_first_of_two_workers_is_not_enough(redis_url, store, worker, redis_client) -> None:
    worker.beat()
    raw = redis_client.hget(key("workers"), "fake")
    redis_client.hset(key("workers"), "other", raw.replace(b'"name":"fake"', b'"name":"other"'))
    async with serving(redis_url, store) as client:
        asked = asyncio.create_task(client.post("/models/first/load", headers={"Prefer": "wait=1"}))
        worker.beat(wishes={"first": await asked_of(worker, "first")})
        answer = await asked
    assert answer.status_code == 202
    assert {told["worker"]: told["done"] for told in answer.json()["workers"]} == {"fake": True, "other": False}


@pytest.mark.asyncio
@pytest.mark.parametrize("action", ["load", "unload"])
async def test_only_operators_may_ask_where_there_are_keys(redis_url, store, worker, action: str) -> None:
    worker.beat(faults={"broken": FAULT})
    async with serving(redis_url, store, api_keys=KEYS, operators="alice") as client:
        refused = await client.post(f"/models/first/{action}", headers=BOB)
        assert (refused.status_code, refused.json()["code"]) == (403, "operator_required")
        assert (await client.post(f"/models/first/{action}")).json()["code"] == "key_required"
        assert worker.board.wishes() == {}
        assert (await client.post(f"/models/first/{action}", headers=ALICE)).status_code == 202


@pytest.mark.asyncio
async def test_only_operators_see_what_the_workers_cannot_load(redis_url, store, worker) -> None:
    worker.beat(faults={"broken": FAULT})

    async def faults(client: httpx2.AsyncClient, headers: dict[str, str]) -> Any:
        return (await client.get("/models", headers=headers)).json()["faults"]

    async with serving(redis_url, store, api_keys=KEYS, operators="alice") as client:
        assert await faults(client, BOB) == []
        assert await faults(client, ALICE) == [{"model": "broken", "worker": "fake", "error": FAULT}]
    async with serving(redis_url, store) as client:
        assert len(await faults(client, {})) == 1


@pytest.mark.asyncio
async def test_models_that_no_worker_has_are_refused(redis_url, store, worker) -> None:
    async with serving(redis_url, store) as client:
        assert (await client.post("/models/first/load")).json()["code"] == "no_worker"
        worker.beat()
        for name in ("second", "a/b", "%2e%2e"):
            answer = await client.post(f"/models/{name}/load")
            assert (answer.status_code, answer.json()["code"]) == (404, "model_absent"), name
    assert worker.board.wishes() == {}


@pytest.mark.asyncio
async def test_names_with_a_slash_reach_their_model(redis_url, store, worker) -> None:
    worker.beat(models={"house/style": OPEN})
    async with serving(redis_url, store) as client:
        assert (await client.post("/models/house/style/load")).status_code == 202
    assert set(worker.board.wishes()) == {"house/style"}
