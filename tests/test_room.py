"""Room in the store: what is accepted has its room, what has none is refused at the door, and nothing stays behind."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from app.main import create_app
from app.room import BYTES_PER_PICTURE, BYTES_PER_PIXEL
from tests.http_kit import client_of, is_untouched, png, settings_for
from tests.process_kit import ROOT
from tests.test_http_errors import assert_problem
from workers.contract import key, new_job_id
from workers.reservations import ABANDONED_S, Reservations

PICTURE = 128 * 128 * BYTES_PER_PIXEL + BYTES_PER_PICTURE
"""What a picture of the first model may take."""
BODY = {"prompt": "a pear"}


def reserved(client: redis.Redis) -> int:
    return sum(map(int, client.hvals(key("reserved"))))


@pytest.mark.asyncio
async def test_a_quota_counts_what_accepted_jobs_may_still_write(redis_url, store, worker) -> None:
    app = create_app(settings_for(redis_url, store, store_quota=2 * PICTURE))
    async with client_of(app) as client:
        job = (await client.post("/generate", json=BODY)).json()["id"]
        assert_problem(await client.post("/generate", json=BODY | {"num_images": 2}), "store_full")
        assert reserved(worker.client) == PICTURE
        files = worker.draw(job)
        worker.client.delete(key("counting"))
        app.state.services.room.count()
        assert reserved(worker.client) == 0
        assert int(worker.client.get(key("stored"))) == sum(map(len, files)) == store.used_bytes()
        assert (await client.post("/generate", json=BODY)).status_code == 202  # it was smaller than it could have been
        assert_problem(await client.post("/generate", json=BODY), "store_full")
        assert (await client.delete(f"/jobs/{job}")).status_code == 204  # there is always a way to make room


@pytest.mark.asyncio
async def test_processes_that_want_the_last_room_at_once_do_not_overfill_it(redis_url, store, worker) -> None:
    apps = [create_app(settings_for(redis_url, store, store_quota=5 * PICTURE)) for _ in range(2)]
    async with client_of(apps[0]) as one, client_of(apps[1]) as other:
        answers = await asyncio.gather(*(client.post("/generate", json=BODY) for client in (one, other) * 8))
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) <= 5
    assert reserved(worker.client) == len(accepted) * PICTURE
    assert {answer.json()["code"] for answer in answers if answer not in accepted} == {"store_full"}


@pytest.mark.asyncio
async def test_requests_are_refused_before_the_disk_is_full(redis_url, store, worker) -> None:
    upload = {"task": "image-to-image", "image": base64.b64encode(png()).decode(), **BODY}
    async with client_of(create_app(settings_for(redis_url, store, store_reserve=2**60))) as client:
        for body in (BODY, upload):
            answer = await client.post("/generate", json=body)
            assert_problem(answer, "store_full")
            assert answer.headers["Retry-After"] == "60"
    assert is_untouched(worker.client, store)


@pytest.mark.asyncio
async def test_a_repeat_and_a_refused_job_reserve_nothing(redis_url, store, worker) -> None:
    headers = {"Idempotency-Key": "k"}
    async with client_of(create_app(settings_for(redis_url, store, max_queued=1))) as client:
        for _ in range(2):
            assert (await client.post("/generate", json=BODY, headers=headers)).status_code == 202
        assert_problem(await client.post("/generate", json=BODY), "queue_full")
    assert reserved(worker.client) == PICTURE


@pytest.mark.asyncio
async def test_an_upload_takes_room_too(redis_url, store, worker) -> None:
    image = base64.b64encode(png(64, 64)).decode()
    async with client_of(create_app(settings_for(redis_url, store))) as client:
        body: dict[str, Any] = {"task": "image-to-image", "image": image, "width": 64, "height": 64, **BODY}
        assert (await client.post("/generate", json=body)).status_code == 202
    size = sum(path.stat().st_size for path in store.root.rglob("*.png"))
    assert reserved(worker.client) == 64 * 64 * BYTES_PER_PIXEL + BYTES_PER_PICTURE + size


def test_a_reservation_whose_process_died_is_given_up_in_time(redis_client: redis.Redis) -> None:
    reservations = Reservations(redis_client)
    fresh = new_job_id()
    old = f"{int((time.time() - ABANDONED_S - 1) * 1000):012x}{fresh[12:]}"
    for job_id in (fresh, old):
        reservations.reserve(job_id, 1000)
    assert reservations.settled() == [old]
    assert reservations.is_our_turn()
    assert not Reservations(redis_client).is_our_turn()
    reservations.finish([old], None, 0.001)
    assert reservations.reserve(fresh, 1000).reserved == 1000


def can_mount() -> bool:
    """A small disk of one's own, without being root: Linux with user namespaces."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    trial = "mount -t tmpfs -o size=64k tmpfs /mnt"
    return subprocess.run(["unshare", "-Urm", "sh", "-c", trial], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk")
def test_on_a_disk_that_is_really_full_the_door_refuses_and_the_worker_keeps_its_jobs(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f'mount -t tmpfs -o size=4m tmpfs "$0" && exec {sys.executable} -m tests.full_disk "$0"'
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command, str(disk)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "kept its promises\n", ended.stdout + ended.stderr
