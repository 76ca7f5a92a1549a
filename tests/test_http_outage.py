"""While Redis is away the answer is 503 with Retry-After, everywhere; afterwards it is as before."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app.main import create_app
from tests.http_kit import FakeWorker, client_of, png, settings_for
from tests.test_http_errors import assert_problem
from workers import board
from workers.connection import connect
from workers.embedded import EmbeddedServer, ensure_server
from workers.store import LocalStore


class Outage:
    """A server of its own that a test may take away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: EmbeddedServer = ensure_server(folder)

    def begin(self) -> None:
        self.server.stop()

    def end(self) -> None:
        self.server = ensure_server(self.folder)


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Outage]:
    own = Outage(tmp_path / "own")
    yield own
    own.server.stop()


@pytest.fixture
def own_client(outage: Outage) -> Iterator[redis.Redis]:
    client = connect(outage.server.url)
    yield client
    client.close()


@pytest.mark.asyncio
async def test_every_route_says_so_and_recovers(outage: Outage, own_client: redis.Redis, store: LocalStore) -> None:
    worker = FakeWorker(own_client, store)
    worker.publish()
    worker.beat()
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode()}
    async with client_of(create_app(settings_for(outage.server.url, store))) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        worker.draw(job["id"])
        path = job["links"]["self"]
        files = sorted(file for file in store.root.rglob("*") if file.is_file())

        async def ask_everything() -> list[Any]:
            return await asyncio.gather(
                client.post("/generate", json=body),
                client.post("/generate", json=body, headers={"Idempotency-Key": "k", "Prefer": "wait=0"}),
                client.get("/jobs"),
                client.get(path),
                client.delete(path),
                client.get(f"{path}/images/0"),
                client.get(f"{path}/events"),
                client.get("/models"),
                client.get("/admin/queues"),
                client.get("/admin/workers"),
                client.get("/readyz"),
            )

        outage.begin()
        for answer in await ask_everything():
            assert_problem(answer, "redis_unavailable")
        assert (await client.get("/healthz")).status_code == 200
        assert "denoised_redis_up 0.0" in (await client.get("/metrics")).text
        assert sorted(file for file in store.root.rglob("*") if file.is_file()) == files
        outage.end()
        worker.beat()
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get(path)).json()["status"] == "succeeded"
        assert (await client.post("/generate", json=body)).status_code == 202


@pytest.mark.asyncio
async def test_a_stream_and_a_waiting_post_outlive_an_outage(
    outage: Outage, own_client: redis.Redis, store: LocalStore
) -> None:
    worker = FakeWorker(own_client, store)
    worker.publish()
    app = create_app(settings_for(outage.server.url, store))
    async with client_of(app) as client:
        waiting = asyncio.create_task(
            client.post("/generate", json={"prompt": "a pear"}, headers={"Prefer": "wait=50"})
        )
        job_id = await asyncio.to_thread(worker.next_job)
        following = asyncio.create_task(client.get(f"/jobs/{job_id}/events"))
        while app.state.services.metrics.open_streams == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        outage.begin()
        assert_problem(await client.get(f"/jobs/{job_id}"), "redis_unavailable")
        outage.end()
        await asyncio.to_thread(worker.draw, job_id)
        answer, stream = await asyncio.wait_for(asyncio.gather(waiting, following), 40)
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert stream.text.count("event: end") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["full", "read-only"])
async def test_a_redis_that_takes_nothing_is_unavailable_and_nothing_stays_behind(
    outage: Outage, own_client: redis.Redis, store: LocalStore, fault: str
) -> None:
    FakeWorker(own_client, store).publish()
    body = {"task": "image-to-image", "prompt": "a pear", "image": base64.b64encode(png()).decode()}
    async with client_of(create_app(settings_for(outage.server.url, store))) as client:
        if fault == "full":
            own_client.config_set("maxmemory", "1")
        else:
            own_client.replicaof("127.0.0.1", 1)
        assert_problem(await client.post("/generate", json=body), "redis_unavailable")
        assert not [file for file in store.root.rglob("*") if file.is_file()]
        own_client.config_set("maxmemory", "0")
        own_client.replicaof("NO", "ONE")
        assert (await client.get("/jobs")).json()["jobs"] == []
        assert (await client.post("/generate", json=body)).status_code == 202


@pytest.mark.asyncio
async def test_the_application_starts_without_redis(outage: Outage, store: LocalStore) -> None:
    outage.begin()
    async with client_of(create_app(settings_for(outage.server.url, store))) as client:
        assert (await client.get("/healthz")).status_code == 200
        assert_problem(await client.get("/readyz"), "redis_unavailable")
        outage.end()
        assert_problem(await client.get("/readyz"), "no_worker")


@pytest.mark.asyncio
async def test_readiness_warns_of_a_redis_that_could_lose_jobs(
    outage: Outage, own_client: redis.Redis, store: LocalStore
) -> None:
    FakeWorker(own_client, store).beat()
    own_client.config_set("maxmemory-policy", "volatile-lru")
    own_client.config_set("appendonly", "no")
    async with client_of(create_app(settings_for(outage.server.url, store))) as client:
        warnings = (await client.get("/readyz")).json()["warnings"]
    assert [word for sentence in warnings for word in sentence.split() if word in ("noeviction.", "yes.")] == [
        "noeviction.",
        "yes.",
    ]


@pytest.mark.asyncio
async def test_a_202_comes_after_the_disk_when_that_is_asked_for(
    outage: Outage, own_client: redis.Redis, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "DURABLE_WITHIN_S", 0.2)
    FakeWorker(own_client, store).publish()
    app = create_app(settings_for(outage.server.url, store, durability="always"))
    headers = {"Idempotency-Key": "k"}
    async with client_of(app) as client:
        own_client.config_set("appendfsync", "no")  # the disk never answers
        refused = await client.post("/generate", json={"prompt": "a pear"}, headers=headers)
        assert_problem(refused, "durability_unconfirmed")
        assert_problem(
            await client.post("/generate", json={"prompt": "a pear"}, headers=headers), "durability_unconfirmed"
        )
        own_client.config_set("appendfsync", "always")
        repeated = await client.post("/generate", json={"prompt": "a pear"}, headers=headers)
        jobs = (await client.get("/jobs")).json()["jobs"]
    assert repeated.status_code == 202
    assert repeated.headers["Location"] == refused.headers["Location"]
    assert [job["id"] for job in jobs] == [repeated.json()["id"]]


@pytest.mark.asyncio
async def test_a_redis_that_cannot_promise_durability_accepts_nothing_when_that_is_asked_for(
    outage: Outage, own_client: redis.Redis, store: LocalStore
) -> None:
    own_client.config_set("appendonly", "no")
    FakeWorker(own_client, store).publish()
    async with client_of(create_app(settings_for(outage.server.url, store, durability="always"))) as client:
        assert_problem(await client.post("/generate", json={"prompt": "a pear"}), "redis_unavailable")
