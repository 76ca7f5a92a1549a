"""Requests that are sent again because their answer was lost: each gets the pictures of one job, and of its own one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import redis

from app import attempts
from app.main import create_app
from tests.http_kit import ALICE, BOB, KEYS, FakeWorker, client_of, serving, settings_for
from tests.process_kit import ApiServer
from workers import repeats
from workers.contract import JobView, key
from workers.repeats import Attempt, Repeats
from workers.store import LocalStore

AGAIN = {"X-Stainless-Retry-Count": "1"}
PEAR = {"prompt": "a pear"}
PATH = "/v1/images/generations"


@pytest.fixture
def pools(redis_client: redis.Redis) -> Repeats:
    return Repeats(redis_client)


# --- pools -----------------------------------------------------------------------------------------------------------


def test_only_what_nobody_waits_for_is_taken_over(pools: Repeats) -> None:
    assert pools.take_over("ann", "d") is None
    first = pools.begin("ann", "d")
    assert pools.take_over("ann", "d") == "wait"
    pools.leave(first)
    taken = taken_over(pools)
    assert (taken.order, taken.name) != (first.order, first.name)
    assert taken.order == first.order
    assert pools.take_over("ann", "d") == "wait"
    pools.leave(first)  # word of the first connection comes late
    assert pools.take_over("ann", "d") == "wait"


def taken_over(pools: Repeats, tenant: str = "ann", digest: str = "d") -> Attempt:
    found = pools.take_over(tenant, digest)
    assert isinstance(found, Attempt)
    return found


def test_repeats_of_two_orders_that_say_the_same_get_one_each(pools: Repeats) -> None:
    lost = [pools.begin("ann", "d") for _ in range(3)]
    for attempt in lost:
        pools.leave(attempt)
    assert {taken_over(pools).order for _ in lost} == {attempt.order for attempt in lost}
    assert pools.take_over("ann", "d") == "wait"


def test_pools_of_other_tenants_and_bodies_are_closed(pools: Repeats) -> None:
    pools.leave(pools.begin("ann", "d"))
    assert pools.take_over("ben", "d") is None
    assert pools.take_over("ann", "e") is None


def test_an_answered_order_is_not_taken_over(pools: Repeats) -> None:
    answered = pools.begin("ann", "d")
    pools.close(answered)
    assert pools.take_over("ann", "d") is None


def test_an_order_is_given_up_only_by_who_was_the_last_to_wait(pools: Repeats) -> None:
    first = pools.begin("ann", "d")
    pools.leave(first)
    second = taken_over(pools)
    assert not pools.give_up(first)
    pools.leave(second)
    assert not pools.give_up(first)
    assert pools.give_up(second)
    assert pools.take_over("ann", "d") is None


def test_two_that_name_the_same_order_wait_for_it_together(pools: Repeats) -> None:
    one, other = pools.begin_named("ann", "key"), pools.begin_named("ann", "key")
    assert one.order == other.order
    pools.leave(other)
    assert not pools.give_up(other)
    pools.leave(one)
    assert pools.give_up(one)


def test_an_attempt_whose_process_died_lapses_and_in_the_end_nothing_is_left(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "LEASE_S", 0.05)
    monkeypatch.setattr(repeats, "_KEPT_MS", 400)
    pools = Repeats(redis_client)
    dead = pools.begin("ann", "d")
    while (found := pools.take_over("ann", "d")) == "wait":
        pass
    assert isinstance(found, Attempt)
    assert found.order == dead.order
    assert 0 < redis_client.pttl(key("repeats", "ann", "d")) <= 400


def test_what_was_left_too_long_ago_is_nobodys(pools: Repeats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "GRACE_S", 0.0)
    pools.leave(pools.begin("ann", "d"))
    assert pools.take_over("ann", "d") is None


# --- over HTTP -------------------------------------------------------------------------------------------------------


class Sending:
    """One request that its client can drop: what a server hears when a connection closes."""

    def __init__(self, app: Any, headers: dict[str, str], *, hangs_up_at: str = "", stops_at: str = "") -> None:
        """hangs_up_at: kind of message of the answer that the client is gone at; stops_at: that it takes its time for.

        It takes it until `goes_on` is set."""
        self._stops_at, self.stopped, self.goes_on = stops_at, asyncio.Event(), asyncio.Event()
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": json.dumps(PEAR).encode(), "more_body": False})
        self._hangs_up_at = hangs_up_at
        fields = {"host": "localhost", "content-type": "application/json", **headers}
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in fields.items()],
        }
        self.task = asyncio.create_task(app(scope, self._messages.get, self._send))

    async def _send(self, message: Any) -> None:
        if message["type"] == self._hangs_up_at:
            self.hang_up()
        if message["type"] == self._stops_at:
            self.stopped.set()
            await self.goes_on.wait()

    def hang_up(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


@pytest_asyncio.fixture
async def client(redis_url: str, store: LocalStore, worker: FakeWorker) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, store) as client:
        yield client


def app_of(client: httpx2.AsyncClient) -> Any:
    return client._transport.app  # type: ignore[attr-defined]


async def jobs_of(client: httpx2.AsyncClient, count: int, **headers: dict[str, str]) -> list[dict[str, Any]]:
    """All jobs, as soon as there are so many."""
    while True:
        jobs = (await client.get("/jobs", **headers)).json()["jobs"]
        if len(jobs) >= count:
            return list(jobs)
        await asyncio.sleep(0.01)


async def post(client: httpx2.AsyncClient, **headers: str) -> httpx2.Response:
    return await client.post(PATH, json=PEAR, headers=headers)


async def until_left(worker: FakeWorker) -> None:
    """Until some attempt has been left: its lease is over."""
    while True:
        left = [worker.client.zcount(name, "-inf", now_of(worker)) for name in worker.client.keys(key("repeats", "*"))]
        if any(left):
            return
        await asyncio.sleep(0.01)


async def until_renewed(worker: FakeWorker) -> None:
    """Until the one attempt that there is has a newer lease."""
    (pool,) = worker.client.keys(key("repeats", "*"))
    ((_, first_until_s),) = worker.client.zrange(pool, 0, -1, withscores=True)
    while True:
        ((_, until_s),) = worker.client.zrange(pool, 0, -1, withscores=True)
        if until_s > first_until_s:
            return
        await asyncio.sleep(0.01)


def now_of(worker: FakeWorker) -> float:
    seconds, microseconds = worker.client.time()
    return float(seconds) + microseconds / 1e6


@pytest.mark.asyncio
async def test_a_repeat_gets_the_job_of_the_request_whose_client_hung_up(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    lost = Sending(app_of(client), {})
    (job,) = await jobs_of(client, 1)
    lost.hang_up()
    await until_left(worker)
    repeat = asyncio.create_task(post(client, **AGAIN))
    files = await asyncio.to_thread(worker.draw, job["id"])
    answer = (await repeat).json()
    assert answer["id"] == job["id"]
    assert files
    await lost.task
    assert len((await client.get("/jobs")).json()["jobs"]) == 1
    assert not worker.client.keys(key("repeats", "*"))


@pytest.mark.asyncio
async def test_a_repeat_after_the_job_has_ended_gets_its_pictures(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    lost = Sending(app_of(client), {})
    (job,) = await jobs_of(client, 1)
    lost.hang_up()
    await until_left(worker)
    await asyncio.to_thread(worker.draw, job["id"])
    await lost.task
    assert (await post(client, **AGAIN)).json()["id"] == job["id"]


@pytest.mark.asyncio
async def test_two_first_requests_are_two_jobs_and_their_repeats_get_one_each(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    lost = [Sending(app_of(client), {}) for _ in range(2)]
    jobs = await jobs_of(client, 2)
    assert jobs[0]["request"]["seed"] != jobs[1]["request"]["seed"]
    for sending in lost:
        sending.hang_up()
    again = [asyncio.create_task(post(client, **AGAIN)) for _ in lost]
    for job in jobs:
        await asyncio.to_thread(worker.draw, job["id"])
    answers = await asyncio.gather(*again)
    assert {answer.json()["id"] for answer in answers} == {job["id"] for job in jobs}
    assert len((await client.get("/jobs")).json()["jobs"]) == 2
    for sending in lost:
        await sending.task


@pytest.mark.asyncio
async def test_what_somebody_waits_for_is_not_given_to_a_repeat_of_another_request(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "LOOK_S", 0.01)
    monkeypatch.setattr(attempts, "LEASE_S", 0.1)  # how long a repeat looks
    first = asyncio.create_task(post(client))
    await jobs_of(client, 1)
    never_arrived = asyncio.create_task(post(client, **AGAIN))
    jobs = await jobs_of(client, 2)
    for job in jobs:
        await asyncio.to_thread(worker.draw, job["id"])
    assert {(await first).json()["id"], (await never_arrived).json()["id"]} == {job["id"] for job in jobs}


@pytest.mark.asyncio
async def test_what_was_answered_is_not_given_to_a_later_request(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    first = asyncio.create_task(post(client))
    (job,) = await jobs_of(client, 1)
    await asyncio.to_thread(worker.draw, job["id"])
    assert (await first).json()["id"] == job["id"]
    later = asyncio.create_task(post(client, **AGAIN))
    newest, _ = await jobs_of(client, 2)
    await asyncio.to_thread(worker.draw, newest["id"])
    assert (await later).json()["id"] == newest["id"]


@pytest.mark.asyncio
async def test_an_answer_that_meets_a_closed_line_is_not_delivered(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    lost = Sending(app_of(client), {}, hangs_up_at="http.response.start")
    (job,) = await jobs_of(client, 1)
    await asyncio.to_thread(worker.draw, job["id"])
    await lost.task
    assert (await post(client, **AGAIN)).json()["id"] == job["id"]


@pytest.mark.asyncio
async def test_an_answer_that_takes_long_to_be_sent_is_still_waited_for(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "RENEW_S", 0.01)
    slow = Sending(app_of(client), {}, stops_at="http.response.body")
    (job,) = await jobs_of(client, 1)
    await asyncio.to_thread(worker.draw, job["id"])
    await slow.stopped.wait()
    await until_renewed(worker)
    slow.hang_up()
    slow.goes_on.set()
    await slow.task
    assert (await post(client, **AGAIN)).json()["id"] == job["id"]


@pytest.mark.asyncio
async def test_the_job_of_who_does_not_come_back_is_canceled(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "GRACE_S", 0.05)
    lost = Sending(app_of(client), {})
    (job,) = await jobs_of(client, 1)
    lost.hang_up()
    await lost.task
    assert view_of(worker, job["id"]).status == "canceled"
    assert not worker.client.keys(key("repeats", "*"))
    fresh = asyncio.create_task(post(client, **AGAIN))
    newest, _ = await jobs_of(client, 2)
    await asyncio.to_thread(worker.draw, newest["id"])
    assert (await fresh).status_code == 200


def view_of(worker: FakeWorker, job_id: str) -> JobView:
    view = worker.board.get(job_id)
    assert view is not None
    return view


@pytest.mark.asyncio
async def test_the_job_of_who_comes_back_is_not_canceled(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "GRACE_S", 0.3)
    lost = Sending(app_of(client), {})
    (job,) = await jobs_of(client, 1)
    lost.hang_up()
    await until_left(worker)
    repeat = asyncio.create_task(post(client, **AGAIN))
    await lost.task  # its grace is over
    assert view_of(worker, job["id"]).status == "queued"
    await asyncio.to_thread(worker.draw, job["id"])
    assert (await repeat).json()["id"] == job["id"]


@pytest.mark.asyncio
async def test_a_request_that_has_a_key_is_told_apart_by_it(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    named = {"Idempotency-Key": "one"}
    first = asyncio.create_task(post(client, **named))
    (job,) = await jobs_of(client, 1)
    second = asyncio.create_task(post(client, **named))
    await asyncio.to_thread(worker.draw, job["id"])
    assert (await first).json()["id"] == (await second).json()["id"] == job["id"]
    assert (await post(client, **named, **AGAIN)).json()["id"] == job["id"]
    other = await client.post(PATH, json={"prompt": "a plum"}, headers=named)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_conflict")


@pytest.mark.asyncio
async def test_who_is_refused_under_a_name_in_use_changes_nothing_for_who_uses_it(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "GRACE_S", 0.05)
    named = {"Idempotency-Key": "one"}
    first = Sending(app_of(client), named)
    (job,) = await jobs_of(client, 1)
    assert (await client.post(PATH, json={"prompt": "a plum"}, headers=named)).status_code == 400
    first.hang_up()
    await first.task
    assert view_of(worker, job["id"]).status == "canceled"


@pytest.mark.asyncio
async def test_repeats_are_the_tenants_own(redis_url: str, store: LocalStore, worker: FakeWorker) -> None:
    async with serving(redis_url, store, api_keys=KEYS) as client:
        lost = Sending(app_of(client), ALICE)
        (job,) = await jobs_of(client, 1, headers=ALICE)
        lost.hang_up()
        await until_left(worker)
        theirs = asyncio.create_task(post(client, **BOB, **AGAIN))
        (other,) = await jobs_of(client, 1, headers=BOB)
        await asyncio.to_thread(worker.draw, other["id"])
        assert (await theirs).json()["id"] == other["id"]
        await asyncio.to_thread(worker.draw, job["id"])
        await lost.task


@pytest.mark.asyncio
async def test_a_refused_request_leaves_no_order(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    assert (await client.post(PATH, json={"prompt": " "})).status_code == 400
    assert not worker.client.keys(key("repeats", "*"))


@pytest.mark.asyncio
async def test_what_a_full_queue_refused_is_queued_by_its_repeat_at_once(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    async with serving(redis_url, store, max_queued=1) as client:
        first = asyncio.create_task(post(client))
        (job,) = await jobs_of(client, 1)
        full = await post(client)
        assert (full.status_code, full.headers["x-should-retry"]) == (429, "true")
        await asyncio.to_thread(worker.draw, job["id"])
        assert (await first).json()["id"] == job["id"]
        repeat = asyncio.create_task(post(client, **AGAIN))
        newest, _ = await jobs_of(client, 2)
        await asyncio.to_thread(worker.draw, newest["id"])
        assert (await repeat).json()["id"] == newest["id"]
        assert not worker.client.keys(key("repeats", "*"))


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LOOK_S", 0.02)
    monkeypatch.setattr(repeats, "LEASE_S", 0.4)


@pytest.mark.asyncio
@pytest.mark.usefixtures("short_leases")
async def test_a_repeat_finds_the_job_that_another_process_queued_before_it_died(
    redis_url: str, store: LocalStore, worker: FakeWorker
) -> None:
    async with client_of(create_app(settings_for(redis_url, store))) as client:
        dying = Sending(app_of(client), {})
        (job,) = await jobs_of(client, 1)
        dying.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dying.task
    async with client_of(create_app(settings_for(redis_url, store))) as client:
        repeat = asyncio.create_task(post(client, **AGAIN))
        await asyncio.to_thread(worker.draw, job["id"])
        assert (await repeat).json()["id"] == job["id"]
        assert len((await client.get("/jobs")).json()["jobs"]) == 1


@pytest.fixture
def server(redis_url: str, store: LocalStore, worker: FakeWorker) -> Iterator[ApiServer]:
    running = ApiServer(redis_url, store)
    yield running
    running.stop()


@pytest.mark.asyncio
async def test_a_killed_process_costs_no_second_job(server: ApiServer, worker: FakeWorker) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        lost = asyncio.create_task(post(client))
        (job,) = await jobs_of(client, 1)
        await asyncio.to_thread(server.kill)
        with pytest.raises(httpx2.TransportError):
            await lost
        server.start()
        repeat = asyncio.create_task(post(client, **AGAIN))
        await asyncio.to_thread(worker.draw, job["id"])
        assert (await repeat).json()["id"] == job["id"]
        assert len((await client.get("/jobs")).json()["jobs"]) == 1
