"""Hosts that share Redis and a store of objects and nothing else, each on lines of its own, which are cut.

A host is a real worker process with its own working directory and data directory. Redis is the real server, the store
is S3 as moto serves it, through s3fs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import redis
from moto.server import ThreadedMotoServer

from tests.board_values import make_submission
from tests.fleet import Fleet, WorkerProcess
from tests.line import Line
from workers.connection import COMMAND_TIMEOUT_S
from workers.contract import key

SLOW = {"FAKE_STEP_S": "0.02"}
BUCKET = "pictures"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Host:
    """A machine: its folder and its two lines."""

    folder: Path
    to_redis: Line
    to_store: Line

    @property
    def environment(self) -> dict[str, str]:
        return {
            **CREDENTIALS,  # workers are forked from a process that may be older than this test's environment
            "PWD": str(self.folder),
            "DENOISED_DATA_DIR": str(self.folder),
            "REDIS_URL": f"redis://127.0.0.1:{self.to_redis.port}/0",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.to_store.port}",
        }

    def cut(self) -> None:
        self.to_redis.cut()
        self.to_store.cut()

    def mend(self, how: str) -> None:
        for line in (self.to_redis, self.to_store):
            line.mend() if how == "mended" else line.replace()


class Installation(Fleet):
    """A fleet on hosts."""

    def __init__(self, url: str, client: redis.Redis, folder: Path, store_address: tuple[str, int]) -> None:
        super().__init__(url, client, folder, f"s3://{BUCKET}/{folder.name}")
        self._redis_socket = url.removeprefix("unix://")
        self._store_address = store_address
        self.hosts: list[Host] = []

    def start_host(self, **environment: str) -> tuple[Host, WorkerProcess]:
        folder = self._folder / f"host-{len(self.hosts)}"
        folder.mkdir()
        host = Host(folder, Line(self._redis_socket), Line(self._store_address))
        self.hosts.append(host)
        return host, self.start(**host.environment, **environment)

    def close(self) -> None:
        for host in self.hosts:
            host.to_redis.close()
            host.to_store.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def installation(
    redis_url: str, redis_client: redis.Redis, tmp_path: Path, s3: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Installation]:
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": "http://{}:{}".format(*s3)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    with Installation(redis_url, redis_client, tmp_path, s3) as installation:
        yield installation
    installation.close()


def test_hosts_share_the_work_and_keep_nothing_to_themselves(installation: Installation) -> None:
    workers = [installation.start_host(FAKE_ROOM="2", **SLOW)[1] for _ in range(2)]
    ids = installation.submit(*(make_submission(seed=seed, steps=20) for seed in range(12)))
    installation.wait_ended(ids)
    installation.assert_each_succeeded_once(ids)
    names = {installation.rq_job(job_id).worker_name for job_id in ids}
    assert names == {installation.name_of(worker) for worker in workers}
    for host in installation.hosts:
        assert [path for path in host.folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("how", ["mended", "replaced"])
def test_a_host_that_was_cut_off_in_mid_denoise_is_fenced_when_it_is_back(installation: Installation, how: str) -> None:
    """Cut from Redis and store, it draws on, and is back when its jobs have been drawn by another.

    mended: what it had said arrives late. replaced: what it had said is lost, and its connections never answer again.
    """
    host, first = installation.start_host(**SLOW)
    ids = installation.submit(*(make_submission(seed=seed, steps=60) for seed in range(4)))
    installation.wait_running(ids)
    first_name = installation.name_of(first)
    host.cut()
    _, second = installation.start_host()
    installation.wait_ended(ids)
    host.mend(how)
    installation.wait_for(lambda: installation.logs().count('"dropped"') == len(ids))
    installation.assert_each_succeeded_once(ids)
    assert {installation.rq_job(job_id).worker_name for job_id in ids} == {installation.name_of(second)}
    second.terminate()
    assert second.wait(20) == 0
    more = installation.submit(*(make_submission(seed=seed) for seed in range(4)))
    installation.wait_ended(more)
    installation.assert_each_succeeded_once(more)
    assert {installation.rq_job(job_id).worker_name for job_id in more} == {first_name}


@pytest.mark.parametrize("how", ["mended", "replaced"])
def test_a_host_that_is_back_before_its_jobs_are_taken_keeps_those_it_may(installation: Installation, how: str) -> None:
    """Nobody else was there: it renews nothing, others' looks find nothing, and every job ends once all the same."""
    host, _ = installation.start_host(**SLOW)
    ids = installation.submit(*(make_submission(seed=seed, steps=60) for seed in range(4)))
    installation.wait_running(ids)
    host.cut()
    threading.Event().wait(3.0)  # two leases long
    host.mend(how)
    installation.wait_ended(ids)
    installation.assert_each_succeeded_once(ids)


@pytest.mark.parametrize("how", ["mended", "replaced"])
def test_a_store_that_hangs_is_asked_again_and_the_job_is_drawn_once(installation: Installation, how: str) -> None:
    """Redis is there, so that nobody takes the job over: a connection that never answers must not hold it for ever."""
    host, worker = installation.start_host(FAKE_STORE_TIMEOUT_S="1")
    installation.wait_ended(installation.submit(make_submission()))  # it has open connections
    host.to_store.cut()
    (job_id,) = installation.submit(make_submission(seed=5))
    installation.wait_for(lambda: "the store refuses; asking again" in installation.logs())
    assert installation.view(job_id).status == "running"
    host.to_store.mend() if how == "mended" else host.to_store.replace()
    installation.wait_ended([job_id])
    installation.assert_each_succeeded_once([job_id])
    assert worker.poll() is None
    assert installation.view(job_id).record.deaths == 0


def test_an_idle_worker_that_was_cut_off_hears_of_jobs_soon_after_it_is_back(installation: Installation) -> None:
    host, worker = installation.start_host()
    name = installation.name_of(worker)
    host.cut()
    installation.wait_for(lambda: "no heartbeat" in installation.logs())
    host.mend("replaced")
    (job_id,) = installation.submit(make_submission())
    before = installation.client.time()[0]
    installation.wait_ended([job_id])
    assert installation.client.time()[0] - before < 3 * COMMAND_TIMEOUT_S, "and not after a minute of blocking"
    assert installation.rq_job(job_id).worker_name == name
    assert installation.client.hexists(key("workers"), name)


def test_a_worker_that_is_cut_off_can_be_ended(installation: Installation) -> None:
    host, worker = installation.start_host(FAKE_STORE_TIMEOUT_S="1", **SLOW)
    ids = installation.submit(*(make_submission(seed=seed, steps=60) for seed in range(2)))
    installation.wait_running(ids)
    host.cut()
    worker.terminate()
    threading.Event().wait(0.5)
    worker.terminate()
    worker.wait(60)
    installation.start_host()
    installation.wait_ended(ids)
    installation.assert_each_succeeded_once(ids)
