"""Fixtures that every test may use: a real server, a client that finds it empty, a store, and workers on both."""

from __future__ import annotations

import os

# Before anything imports torch or transformers: one thread each, and no look at the network.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    DIFFUSERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
)

import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402

# A shell starts background commands with SIGINT ignored, and every process below would inherit that; some tests press
# Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import redis  # noqa: E402

from tests.fleet import Fleet  # noqa: E402
from tests.http_kit import FakeWorker  # noqa: E402
from tests.process_kit import Console  # noqa: E402
from workers.connection import connect  # noqa: E402
from workers.embedded import ensure_server  # noqa: E402
from workers.store import LocalStore  # noqa: E402


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server that lives as long as the test run. `redis_client` empties it."""
    server = ensure_server(tmp_path_factory.mktemp("server"))
    yield server.url
    server.stop()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of `redis_url`; the server is empty when the test starts."""
    client = connect(redis_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store on disk."""
    return LocalStore(tmp_path / "store")


@pytest.fixture
def worker(redis_client: redis.Redis, store: LocalStore) -> FakeWorker:
    """A stand-in for the worker that has published its model."""
    fake = FakeWorker(redis_client, store)
    fake.publish()
    return fake


@pytest.fixture
def fleet(redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Fleet]:
    """Real worker processes on the empty server, as soon as some are started."""
    with Fleet(redis_url, redis_client, tmp_path) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server with the bundled model and without keys, as `serve.sh` starts it. Tests that share it use
    no more than a second or two of it each and leave no jobs behind that run."""
    data = tmp_path_factory.mktemp("live")
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data)]
    with Console(command, DENOISED_WEBHOOK_ALLOW="127.0.0.1") as console:
        url = console.wait_for(r"ready on (http://[^ ]+)")[1]
        reader = threading.Thread(target=console.read_to_end)
        reader.start()
        yield url
        console.process.terminate()
        reader.join()
