"""`denoised serve`: children that live, die and end in order; and the refusals at the door.

The supervisor is driven with small stand-in children; the tests at the end run the real server.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from PIL import Image

from app.cli.generate import own_server
from app.client import Client, Job
from app.supervisor import Backoff, describe
from tests.process_kit import ROOT, Console, wait_until_gone
from workers.connection import connect
from workers.embedded import find_binary

# --- the supervisor with stand-in children ---------------------------------------------------------------------------

DRIVER = r"""
import os, sys
from app.supervisor import Backoff, Program, Supervisor

def say(line):
    print(line, file=sys.stderr, flush=True)

def child(name, code, **options):
    return Program(name, (sys.executable, "-c", code), dict(os.environ), **options)

WAIT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));"
UP = "sys.stderr.write('UP\\n'); signal.pause()"
STUBBORN = '''
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stderr.write("UP\\n")
while True:
    signal.pause()
'''
SLOW = '''
import signal, sys, time
def finish(*_):
    time.sleep(0.3)
    sys.stderr.write("SLOW IS DONE\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
sys.stderr.write("UP\\n")
signal.pause()
'''
LAST = '''
import signal, sys
def finish(*_):
    sys.stderr.write("LAST IS DONE\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
sys.stderr.write("UP\\n")
signal.pause()
'''
sys.exit(Supervisor([{programs}], say, Backoff(first_s=0.05)).run())
"""


def drive(programs: str) -> Console:
    return Console([sys.executable, "-c", DRIVER.replace("{programs}", programs)])


def pids_of(console: Console) -> list[int]:
    return [int(match[1]) for line in console.lines if (match := re.search(r"started \(pid (\d+)\)", line))]


def test_a_killed_child_is_started_again() -> None:
    with drive('child("worker", WAIT + UP)') as console:
        first = int(console.wait_for(r"worker started \(pid (\d+)\)")[1])
        console.wait_for("UP")
        seen = len(console.lines)
        os.kill(first, signal.SIGKILL)
        console.wait_for(r"worker ended \(killed by SIGKILL\); starting it again in 0\.05 s", seen)
        second = int(console.wait_for(r"worker started \(pid (\d+)\)", seen)[1])
        assert second != first
        console.process.terminate()
        assert console.wait_for_end() == 0
        wait_until_gone(first, second)


def test_the_first_signal_lets_each_stage_finish_before_the_next_is_asked() -> None:
    with drive('child("worker", SLOW), child("api", LAST, stop_stage=1)') as console:
        console.wait_for("api started")
        while console.lines.count("UP") < 2:
            console.wait_for("UP", len(console.lines))
        console.process.send_signal(signal.SIGINT)
        assert console.wait_for_end() == 0
        assert [line for line in console.lines if "DONE" in line] == ["SLOW IS DONE", "LAST IS DONE"]


def test_a_second_signal_ends_at_once() -> None:
    with drive('child("worker", STUBBORN)') as console:
        console.wait_for("UP")
        console.process.send_signal(signal.SIGINT)
        console.wait_for("stopping")
        console.process.send_signal(signal.SIGTERM)
        assert console.wait_for_end() == 128 + signal.SIGTERM
        wait_until_gone(*pids_of(console))


def test_a_child_that_does_not_end_in_its_time_is_killed() -> None:
    with drive('child("api", STUBBORN, stop_timeout_s=0.1)') as console:
        console.wait_for("UP")
        console.process.terminate()
        assert console.wait_for_end() == 0
        wait_until_gone(*pids_of(console))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
def test_children_die_with_a_killed_supervisor() -> None:
    with drive('child("worker", STUBBORN), child("api", STUBBORN)') as console:
        while console.lines.count("UP") < 2:
            console.wait_for("UP", len(console.lines))
        console.process.kill()
        wait_until_gone(*pids_of(console))
        assert len(pids_of(console)) == 2


def test_a_child_that_cannot_work_with_the_settings_ends_everything() -> None:
    with drive('child("api", WAIT + UP, stop_stage=1), child("worker", "raise SystemExit(2)")') as console:
        assert console.wait_for_end() == 2
        console.wait_for("worker cannot work with these settings")
        wait_until_gone(*pids_of(console))


def test_the_wait_before_a_restart_doubles_up_to_half_a_minute() -> None:
    backoff, waits, delay = Backoff(), [], None
    for _ in range(7):
        delay = backoff.delay_s(delay, lived_s=0.5)
        waits.append(delay)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_the_wait_starts_over_after_a_healthy_minute() -> None:
    assert Backoff().delay_s(30.0, lived_s=60.0) == 1.0
    assert Backoff().delay_s(30.0, lived_s=59.0) == 30.0


def test_an_exit_status_is_described_in_words() -> None:
    assert describe(3) == "exit status 3"
    assert describe(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert describe(-125) == "killed by signal 125"


# --- the real server -------------------------------------------------------------------------------------------------


def serve(data_dir: Path, *options: str, **environment: str) -> Console:
    words = [sys.executable, "-m", "app.cli", "serve", "--data-dir", str(data_dir), *options]
    return Console(words, DENOISED_LOG_FORMAT="console", **environment)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path, taken_port: int) -> None:
    with serve(tmp_path / "data", "--port", str(taken_port)) as console:
        assert console.wait_for_end() == 4
        console.wait_for(rf"Port {taken_port} on 127\.0\.0\.1 is in use.*--port")
        assert not (tmp_path / "data").exists()


def test_an_open_address_without_keys_is_refused(tmp_path: Path) -> None:
    with serve(tmp_path / "data", "--host", "0.0.0.0", "--port", "0") as console:
        assert console.wait_for_end() == 2
        console.wait_for("there are no keys")


def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with serve(tmp_path / "data", "--port", "0", DENOISED_MAX_QUEUED="none") as console:
        assert console.wait_for_end() == 2
        console.wait_for("DENOISED_MAX_QUEUED: ")


@pytest.mark.parametrize("url", ["localhost:6379", "redis://here:port", "redis://here?socket_timeout=soon"])
def test_an_address_that_is_no_redis_is_named(tmp_path: Path, url: str) -> None:
    with serve(tmp_path / "data", "--port", "0", REDIS_URL=url) as console:
        assert console.wait_for_end() == 2
        console.wait_for("^denoised: REDIS_URL: ")
        assert len(console.lines) == 1


@pytest.mark.parametrize("url", ["nothing://here", "file://there/pictures", "/dev/null/pictures"])
def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path, url: str) -> None:
    words = [sys.executable, "-m", "app.cli", "api", "--port", "0"]
    with Console(words, DENOISED_STORE_URL=url, DENOISED_DATA_DIR=str(tmp_path)) as console:
        assert console.wait_for_end() == 2
        console.wait_for(f"^denoised: .*{url}")
        assert len(console.lines) == 1


QUICK = {"DENOISED_LEASE_S": "3", "DENOISED_BEAT_S": "0.5", "DENOISED_MAINTENANCE_INTERVAL_S": "0.5"}


def url_when_ready(console: Console, start: int = 0) -> str:
    return console.wait_for(r"ready on (http://\S+)", start)[1]


def pid_of(console: Console, name: str, start: int = 0) -> int:
    return int(console.wait_for(rf"{name} started \(pid (\d+)\)", start)[1])


def valkey_pid(data_dir: Path) -> int:
    connection = connect("unix://" + quote(str(data_dir / "valkey" / "valkey.sock")))
    try:
        return int(connection.info("server")["process_id"])
    finally:
        connection.close()


def begin(client: Client, steps: int) -> Job:
    """A job that a worker has begun."""
    job = client.submit({"prompt": "a red heart", "num_inference_steps": steps})
    with closing(client.events(job)) as events:
        return next(news for news in events if isinstance(news, Job) and news.progress)


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    # Short: a unix socket's path has to fit into a hundred bytes, or the server's address changes with every start.
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def running(data_dir: Path) -> Iterator[Console]:
    """A real server with the bundled model, ready to draw."""
    with serve(data_dir, "--port", "0", **QUICK) as console:
        url_when_ready(console)
        yield console
        console.process.terminate()
        assert console.wait_for_end() == 0


def test_the_bundled_model_draws_through_the_server(running: Console) -> None:
    with Client(url_when_ready(running)) as client:
        (image,) = client.generate({"prompt": "a red heart", "num_inference_steps": 2}).images
        assert Image.open(io.BytesIO(client.download(image))).size == (image.width, image.height)


def test_what_the_bundled_model_draws_is_enlarged_by_the_bundled_upscaler(running: Console) -> None:
    with Client(url_when_ready(running)) as client:
        (image,) = client.generate({"prompt": "a red heart", "num_inference_steps": 2, "upscale": True}).images
        assert (image.width, image.height) == (512, 512)


def worker_health(redis_url: str) -> int:
    """Exit status of the health check in the worker's image."""
    script = str(ROOT / "docker" / "worker_health.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url}
    return subprocess.run([sys.executable, script], env=environment, check=False).returncode


def test_the_health_check_of_the_worker_image_knows_a_living_worker(
    running: Console, data_dir: Path, redis_client: redis.Redis, redis_url: str
) -> None:
    assert worker_health("unix://" + quote(str(data_dir / "valkey" / "valkey.sock"))) == 0
    assert worker_health(redis_url) == 1


def test_a_killed_worker_is_replaced_and_its_job_is_drawn(running: Console) -> None:
    with Client(url_when_ready(running)) as client:
        start = len(running.lines)
        worker = int([line for line in running.lines if "worker started" in line][-1].split("pid ")[1].rstrip(")"))
        job = begin(client, steps=60)
        os.kill(worker, signal.SIGKILL)
        running.wait_for(r"worker ended \(killed by SIGKILL\)", start)
        assert pid_of(running, "worker", start) != worker
        assert client.wait(job).status == "succeeded"


def test_a_killed_api_is_replaced_and_no_connection_is_refused_meanwhile(running: Console) -> None:
    with Client(url_when_ready(running)) as client:
        start = len(running.lines)
        os.kill(pid_of(running, "api"), signal.SIGKILL)
        running.wait_for(r"api ended \(killed by SIGKILL\)", start)
        assert client.is_ready()  # waits in the backlog of the socket until the next one accepts


def test_a_killed_redis_comes_back_with_its_jobs(running: Console, data_dir: Path) -> None:
    with Client(url_when_ready(running)) as client:
        job = client.generate({"prompt": "a red heart", "num_inference_steps": 2})
        start, server = len(running.lines), valkey_pid(data_dir)
        os.kill(server, signal.SIGKILL)
        running.wait_for("embedded Redis server ended", start)
        assert client.wait(job.id).images == job.images
        assert valkey_pid(data_dir) != server
        assert client.generate({"prompt": "a sun", "num_inference_steps": 2}).images


@pytest.mark.parametrize("dies", ["nothing", "redis"])
def test_what_has_begun_at_the_first_signal_goes_on_at_the_next_start(tmp_path: Path, dies: str) -> None:
    data = tmp_path / "data"
    with serve(data, "--port", "0", **QUICK) as console, Client(url_when_ready(console)) as client:
        begun = begin(client, steps=150)
        everything = [console.process.pid, pid_of(console, "api"), pid_of(console, "worker"), valkey_pid(data)]
        console.process.send_signal(signal.SIGINT)
        console.wait_for("stopping")
        if dies == "redis":
            os.kill(valkey_pid(data), signal.SIGKILL)
        assert console.wait_for_end() == 0
        console.wait_for("stopped")
    wait_until_gone(*everything)
    with serve(data, "--port", "0", **QUICK) as console, Client(url_when_ready(console)) as client:
        ended = client.wait(begun)
        assert ended.status == "succeeded"
        assert ended.document["resumed_from_step"] > 0
        console.process.terminate()
        assert console.wait_for_end() == 0


def test_a_stop_ends_even_when_redis_is_gone_for_good(tmp_path: Path) -> None:
    mark, program = tmp_path / "broken", tmp_path / "valkey"
    program.write_text(f'#!/bin/sh\n[ ! -e "{mark}" ] && exec "{find_binary()}" "$@"\n')
    program.chmod(0o755)
    settings = {**QUICK, "DENOISED_VALKEY": str(program)}
    with serve(tmp_path / "data", "--port", "0", **settings) as console, Client(url_when_ready(console)) as client:
        begin(client, steps=900)
        everything = [pid_of(console, "api"), pid_of(console, "worker")]
        console.process.send_signal(signal.SIGINT)
        console.wait_for("stopping")
        mark.touch()
        os.kill(valkey_pid(tmp_path / "data"), signal.SIGKILL)
        console.wait_for("taken up later")
        assert console.wait_for_end() == 0
    wait_until_gone(*everything)


def test_generate_brings_its_own_server_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("DENOISED_", "REDIS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DENOISED_DATA_DIR", str(tmp_path))
    said: list[str] = []
    with own_server(said.append) as url, Client(url) as client:
        assert client.is_ready()
        server = valkey_pid(tmp_path)
    wait_until_gone(server)
    assert said
