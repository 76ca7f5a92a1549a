"""Event streams: over ASGI, and over real sockets with a real server process."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app import streams
from app.events import EventHub
from app.main import create_app, make_log
from tests.http_kit import ALICE, BOB, KEYS, FakeWorker, client_of, serving, settings_for
from tests.process_kit import ApiServer
from workers.connection import LONGEST_BLOCK_S, connect, connect_async
from workers.contract import JobView, key
from workers.embedded import ensure_server
from workers.store import LocalStore

WEBP = b"RIFF....WEBP preview"


class Events:
    """Parses a stream as its bytes come."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> tuple[str, Any, str]:
        """(event, data, id) of the next event; comments are skipped. StopAsyncIteration at the end."""
        found: dict[str, str] = {}
        while True:
            line = await asyncio.wait_for(anext(self._lines), 20)
            if not line and "event" in found:
                return found["event"], json.loads(found["data"]), found["id"]
            name, separator, value = line.partition(": ")
            if separator and name:
                found[name] = value

    async def until(self, name: str) -> list[tuple[str, Any, str]]:
        """All events up to the first one of that name."""
        seen = [await self.next()]
        while seen[-1][0] != name:
            seen.append(await self.next())
        return seen


def parse(text: str) -> list[tuple[str, Any]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


# --- over ASGI -------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("ending", ["draw", "fail", "cancel"])
async def test_the_stream_of_an_ended_job_is_its_end(redis_url, store, worker, ending) -> None:
    async with serving(redis_url, store) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        if ending == "cancel":
            await client.delete(job["links"]["self"])
        else:
            getattr(worker, ending)(job["id"])
        answer = await client.get(job["links"]["events"])
        document = (await client.get(job["links"]["self"])).json()
        again = await client.get(job["links"]["events"], headers={"Last-Event-ID": "end"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert parse(answer.text) == [("end", document)]
    assert "id: end" in answer.text
    assert (again.status_code, again.content) == (204, b"")


@pytest.mark.asyncio
async def test_an_end_between_the_look_and_the_listening_is_not_waited_for(
    redis_url, store, worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "REREAD_S", 600.0)
    async with serving(redis_url, store) as client:
        job_id = (await client.post("/generate", json={"prompt": "a pear"})).json()["id"]
    before = worker.board.get(job_id)
    worker.draw(job_id)
    past = connect_async(redis_url)
    hub = EventHub(past, make_log("json"))  # it does not run: that event is past

    async def read() -> JobView | None:
        return worker.board.get(job_id)

    async def read_preview() -> bytes | None:
        return None

    async with asyncio.timeout(20):
        chunks = [chunk async for chunk in streams.JobStream(hub, before, read, read_preview).chunks()]
    await past.aclose()
    assert b"event: end" in chunks[-1]


@pytest.mark.asyncio
async def test_too_many_streams_are_refused(redis_url, store, worker) -> None:
    app = create_app(settings_for(redis_url, store, max_event_streams=1))
    async with client_of(app) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        with app.state.services.metrics.count_stream("local"):
            refused = await client.get(job["links"]["events"])
        worker.draw(job["id"])
        accepted = await client.get(job["links"]["events"])
    assert (refused.status_code, refused.json()["code"]) == (429, "streams_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert accepted.status_code == 200


@pytest.mark.asyncio
async def test_a_tenant_cannot_take_the_streams_of_the_others(redis_url, store, worker) -> None:
    app = create_app(settings_for(redis_url, store, api_keys=KEYS, max_tenant_streams=1))
    async with client_of(app) as client:
        jobs = [(await client.post("/generate", json={"prompt": "a pear"}, headers=who)).json() for who in (ALICE, BOB)]
        for job in jobs:
            worker.draw(job["id"])
        with app.state.services.metrics.count_stream("alice"):
            refused = await client.get(jobs[0]["links"]["events"], headers=ALICE)
            welcome = await client.get(jobs[1]["links"]["events"], headers=BOB)
        again = await client.get(jobs[0]["links"]["events"], headers=ALICE)
    assert (refused.status_code, refused.json()["code"]) == (429, "streams_full")
    assert (welcome.status_code, again.status_code) == (200, 200)


@pytest.mark.asyncio
async def test_the_end_arrives_even_when_no_event_tells_of_it(redis_url, store, worker) -> None:
    """The hub's reader is stopped: only the periodic look at the document is left."""
    app = create_app(settings_for(redis_url, store))
    async with client_of(app) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        app.state.services.hub._post = lambda fields: None
        following = asyncio.create_task(client.get(job["links"]["events"]))
        await asyncio.to_thread(worker.draw, job["id"])
        events = parse((await asyncio.wait_for(following, 20)).text)
    assert events[-1][0] == "end"
    assert events[-1][1]["status"] == "succeeded"


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_mailbox_keeps_kinds_not_events(redis_url, redis_client) -> None:
    client = connect_async(redis_url, blocks_s=LONGEST_BLOCK_S)
    hub = EventHub(client, make_log("json"))
    reader = asyncio.create_task(hub.run())
    await asyncio.wait_for(hub.is_reading.wait(), 10)
    with hub.listen("job-1") as mailbox, hub.listen("job-2") as other:
        assert await mailbox.take(0.01) <= {"status"}
        with redis_client.pipeline() as pipe:
            for _ in range(5000):
                pipe.xadd(key("events"), {"job": "job-1", "kind": "progress"})
            pipe.xadd(key("events"), {"job": "job-1", "kind": "end"})
            pipe.xadd(key("events"), {"job": "job-2", "kind": "preview"})
            pipe.execute()
        while "preview" not in await other.take(10):
            pass
        assert await mailbox.take(0.01) == {"progress", "end"}
        assert await mailbox.take(0.01) == frozenset()
    assert hub._listeners == {}
    while not reader.done():
        reader.cancel()
        await asyncio.wait([reader], timeout=0.1)
    await client.aclose()


@pytest.mark.asyncio
async def test_the_hub_goes_on_where_it_was_when_redis_comes_back(tmp_path: Path) -> None:
    server = ensure_server(tmp_path)
    client = connect_async(server.url, blocks_s=LONGEST_BLOCK_S)
    hub = EventHub(client, make_log("json"))
    reader = asyncio.create_task(hub.run())
    try:
        await asyncio.wait_for(hub.is_reading.wait(), 10)
        with hub.listen("job-1") as mailbox:
            await asyncio.to_thread(server.stop)
            server = ensure_server(tmp_path)
            connect(server.url).xadd(key("events"), {"job": "job-1", "kind": "end"})
            while "end" not in await mailbox.take(20):
                pass
    finally:
        while not reader.done():
            reader.cancel()
            await asyncio.wait([reader], timeout=0.1)
        await client.aclose()
        server.stop()


# --- over sockets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(redis_url: str, store: LocalStore, worker: FakeWorker) -> Iterator[ApiServer]:
    running = ApiServer(redis_url, store, DENOISED_API_KEYS=KEYS)
    yield running
    running.stop()


def client_to(server: ApiServer) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, headers=ALICE, timeout=30)


@pytest.mark.asyncio
async def test_a_job_is_followed_over_a_socket_from_start_to_end(server: ApiServer, worker: FakeWorker) -> None:
    async with client_to(server) as client:
        job = (await client.post("/generate", json={"prompt": "a pear", "previews": True})).json()
        silent = (await client.post("/generate", json={"prompt": "a pear"})).json()
        async with client.stream("GET", job["links"]["events"]) as stream:
            events = Events(stream.aiter_lines())
            name, document, first_id = await events.next()
            assert (name, document["status"], document["id"]) == ("status", "queued", job["id"])
            assert (await events.next())[1]["queue_position"] == 0
            await asyncio.to_thread(worker.claim, job["id"])
            running = await events.until("status")
            assert running[-1][1]["status"] == "running"
            await asyncio.to_thread(worker.progress, job["id"], 3, 20)
            progress = (await events.until("progress"))[-1][1]
            assert progress == {"step": 3, "steps": 20, "eta_s": 1.5, "queue_position": None}
            await asyncio.to_thread(worker.preview, job["id"], WEBP)
            preview = (await events.until("preview"))[-1][1]["image"]
            assert base64.b64decode(preview.removeprefix("data:image/webp;base64,")) == WEBP
            await asyncio.to_thread(worker.draw, job["id"])
            name, final, last_id = (await events.until("end"))[-1]
            assert (final["status"], last_id) == ("succeeded", "end")
            assert first_id != last_id
            with pytest.raises(StopAsyncIteration):
                await events.next()
        assert (await client.get(job["links"]["self"])).json() == final
        await asyncio.to_thread(worker.claim, silent["id"])
        async with client.stream("GET", silent["links"]["events"]) as stream:
            events = Events(stream.aiter_lines())
            await events.next()
            await asyncio.to_thread(worker.preview, silent["id"], WEBP)
            await asyncio.to_thread(worker.draw, silent["id"])
            assert "preview" not in {name for name, _, _ in await events.until("end")}


@pytest.mark.asyncio
async def test_a_job_erased_under_a_streams_eyes_ends_it_with_gone(server: ApiServer, worker: FakeWorker) -> None:
    async with client_to(server) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        async with client.stream("GET", job["links"]["events"]) as stream:
            events = Events(stream.aiter_lines())
            await events.next()
            worker.client.delete(key("job", job["id"]))  # as if it had expired
            name, data, _ = (await events.until("gone"))[-1]
            assert data["code"] == "job_gone"
            with pytest.raises(StopAsyncIteration):
                await events.next()


@pytest.mark.asyncio
async def test_a_client_that_comes_back_after_the_server_was_killed_gets_the_state_first(
    server: ApiServer, worker: FakeWorker
) -> None:
    async with client_to(server) as client:
        job = (await client.post("/generate", json={"prompt": "a pear"})).json()
        async with client.stream("GET", job["links"]["events"]) as stream:
            events = Events(stream.aiter_lines())
            await events.next()
            await asyncio.to_thread(worker.claim, job["id"])
            await asyncio.to_thread(worker.progress, job["id"], 5, 20)
            await asyncio.to_thread(server.kill)
            with pytest.raises(httpx2.TransportError):
                await events.until("end")
        await asyncio.to_thread(server.start)
        async with client.stream("GET", job["links"]["events"], headers={"Last-Event-ID": "2"}) as stream:
            events = Events(stream.aiter_lines())
            name, document, _ = await events.next()
            assert (name, document["status"], document["progress"]) == ("status", "running", {"step": 5, "steps": 20})
            await asyncio.to_thread(worker.draw, job["id"])
            assert (await events.until("end"))[-1][1]["status"] == "succeeded"


@pytest.mark.asyncio
async def test_a_reader_that_does_not_read_loses_steps_but_not_the_end_and_stops_nobody(
    server: ApiServer, worker: FakeWorker
) -> None:
    """16 MB of previews go past a client that reads nothing meanwhile: far more than all buffers between hold."""
    steps = 400
    async with client_to(server) as client:
        job = (await client.post("/generate", json={"prompt": "a pear", "previews": True})).json()
        await asyncio.to_thread(worker.claim, job["id"])
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**16)
        request = f"GET {job['links']['events']} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        writer.write(f"{request}Authorization: {ALICE['Authorization']}\r\n\r\n".encode())
        async with client.stream("GET", job["links"]["events"]) as stream:
            quick = Events(stream.aiter_lines())
            await quick.next()
            for step in range(1, steps + 1):
                await asyncio.to_thread(worker.preview, job["id"], step.to_bytes(2) + bytes(40_000))
                await asyncio.to_thread(worker.progress, job["id"], step, steps)
                if step % 50 == 0:
                    while (await quick.until("progress"))[-1][1]["step"] < step:
                        pass
            await asyncio.to_thread(worker.draw, job["id"])
            assert (await quick.until("end"))[-1][1]["status"] == "succeeded"
        late = await asyncio.wait_for(reader.read(-1), 30)
        writer.close()
    assert late.startswith(b"HTTP/1.1 200")
    assert late.count(b"event: progress") < steps
    assert late.rstrip().count(b"event: end") == 1
    assert b'"status":"succeeded"' in late[late.rindex(b"event: end") :]
