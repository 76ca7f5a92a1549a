"""No key, no file and no entry of a registry outlives its time."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2
import pytest
import redis

from app import room
from bench.leftovers import find_leftovers
from tests.fleet import Fleet
from tests.http_kit import ALICE, BOB, KEYS, png, serving
from workers.contract import key, new_job_id
from workers.tidying import Tidying

RETENTION_S = 2
SHORT = {"prompt": "a pear", "num_inference_steps": 3, "width": 64, "height": 64, "guidance_scale": 1.0}
NOBODY = "http://127.0.0.1:65535/"
LONG = SHORT | {"num_inference_steps": 900}


async def post(client: httpx2.AsyncClient, tenant: dict[str, str], body: dict[str, Any], **headers: str) -> str:
    answer = await client.post("/generate", json=body, headers={**tenant, **headers})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def mixed_jobs(client: httpx2.AsyncClient, fleet: Fleet) -> None:
    """Jobs of every fate, of two tenants; afterwards all have ended."""
    image = base64.b64encode(png(64, 64)).decode()
    upload = SHORT | {"task": "image-to-image", "image": image}
    canceled = await post(client, ALICE, LONG | {"previews": True})
    await asyncio.to_thread(fleet.wait_for, lambda: fleet.board.preview(canceled))
    ids = [
        (ALICE, canceled),
        (ALICE, await post(client, ALICE, SHORT, **{"Idempotency-Key": "k"})),
        (ALICE, await post(client, ALICE, SHORT, **{"Idempotency-Key": "k"})),
        (ALICE, await post(client, ALICE, upload | {"num_images": 2})),
        (ALICE, await post(client, ALICE, upload, **{"Idempotency-Key": "l"})),  # holds the same upload now
        (ALICE, await post(client, ALICE, SHORT | {"prompt": "a fault"})),
        (BOB, await post(client, BOB, SHORT | {"priority": "low"})),
        (BOB, await post(client, BOB, SHORT | {"deadline_s": 600.0, "output_format": "webp"})),
        (BOB, await post(client, BOB, upload)),
        (
            BOB,
            await post(client, BOB, SHORT | {"webhook": {"url": NOBODY, "events": ["started", "progress", "ended"]}}),
        ),
        (BOB, await post(client, BOB, SHORT | {"webhook": {"url": NOBODY, "events": ["started"]}})),
    ]
    assert (await client.post("/generate", json=SHORT | {"width": 7}, headers=BOB)).status_code == 422
    assert (await client.post("/v1/images/generations", json=SHORT, headers=BOB)).status_code == 200
    assert (await client.delete(f"/jobs/{canceled}", headers=ALICE)).json()["status"] == "canceled"
    for tenant, job_id in ids:
        answer = await client.get(f"/jobs/{job_id}/events", headers=tenant)  # ends with the job
        assert answer.status_code == 410 or "event: end" in answer.text
    for tenant, job_id in (ids[4], ids[6]):
        assert (await client.delete(f"/jobs/{job_id}", headers=tenant)).status_code == 204


@pytest.mark.asyncio
async def test_nothing_of_any_job_is_left_when_its_time_is_over(
    redis_url: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROUND_S", 0.3)
    fleet.start(DENOISED_RETENTION_S=str(RETENTION_S), FAKE_STEP_S="0.01")
    async with serving(
        redis_url, fleet.store, api_keys=KEYS, retention_s=RETENTION_S, webhook_allow="127.0.0.1"
    ) as client:
        await mixed_jobs(client, fleet)
        assert len(find_leftovers(fleet.client, fleet.store.root)) > 20
        await asyncio.to_thread(fleet.wait_for, lambda: not find_leftovers(fleet.client, fleet.store.root))


def test_names_of_the_dead_are_dropped_and_those_of_the_living_stay(redis_client: redis.Redis) -> None:
    redis_client.sadd("rq:workers", "rq:worker:dead", "rq:worker:living")
    redis_client.hset("rq:worker:living", "state", "busy")
    gone, kept = new_job_id(), new_job_id()
    redis_client.hset(key("job", kept), "id", kept)
    redis_client.zadd(key("jobs", "ann"), {gone: 1.0, kept: 2.0})
    redis_client.zadd(key("jobs", "ben"), {gone: 1.0})
    full = [f"rq:queue:m.normal.{tenant}" for tenant in ("queued", "held", "failed")]
    redis_client.sadd("rq:queues", *full, "rq:queue:m.normal.empty", "rq:queue:default", "rq:queue:of.other.people")
    redis_client.rpush("rq:queue:m.normal.queued", kept)
    redis_client.zadd("rq:wip:m.normal.held", {f"{kept}:x": 1.0})
    redis_client.zadd("rq:failed:m.normal.failed", {gone: 1.0})
    Tidying(redis_client).run()
    assert redis_client.smembers("rq:workers") == {b"rq:worker:living"}
    assert redis_client.zrange(key("jobs", "ann"), 0, -1) == [kept.encode()]
    assert not redis_client.exists(key("jobs", "ben"))
    left = {raw.decode() for raw in redis_client.smembers("rq:queues")}
    assert left == {*full, "rq:queue:default", "rq:queue:of.other.people"}
