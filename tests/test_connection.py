"""The Redis clients: which options they carry, and what that means against a real server."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from tests.line import Line
from workers.connection import (
    COMMAND_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    HEALTH_CHECK_INTERVAL_S,
    LONGEST_BLOCK_S,
    RETRIES,
    connect,
    connect_async,
)
from workers.embedded import ensure_server

URLS = ["redis://localhost:6379/3", "rediss://user:secret@example.org:6380/0", "unix:///run/some%20where/valkey.sock"]


@pytest.mark.parametrize("factory", [connect, connect_async])
@pytest.mark.parametrize("url", URLS)
def test_every_kind_of_url_gives_a_client_with_our_options(factory, url: str) -> None:
    options = factory(url).connection_pool.connection_kwargs
    assert options["socket_timeout"] == COMMAND_TIMEOUT_S
    assert options["socket_connect_timeout"] == CONNECT_TIMEOUT_S
    assert options["health_check_interval"] == HEALTH_CHECK_INTERVAL_S
    assert options["retry"].get_retries() == RETRIES
    assert options["decode_responses"] is False


@pytest.mark.parametrize("factory", [connect, connect_async])
@pytest.mark.parametrize("url", URLS)
def test_a_blocking_client_waits_longer_than_the_longest_block_and_repeats_nothing(factory, url: str) -> None:
    options = factory(url, blocks_s=LONGEST_BLOCK_S).connection_pool.connection_kwargs
    assert options["socket_timeout"] > LONGEST_BLOCK_S
    assert options["retry"].get_retries() == 0


@pytest.mark.parametrize("factory", [connect, connect_async])
def test_another_kind_of_url_is_refused(factory) -> None:
    with pytest.raises(ValueError, match="redis://"):
        factory("http://localhost:6379")


def test_a_blocking_client_hears_the_doorbell(redis_url: str, redis_client: redis.Redis) -> None:
    redis_client.rpush("bell", "ring")
    waiting = connect(redis_url, blocks_s=LONGEST_BLOCK_S)
    assert waiting.blpop(["bell"], timeout=5) == (b"bell", b"ring")
    waiting.close()


async def _set_and_read(url: str) -> bytes | None:
    client = connect_async(url, blocks_s=LONGEST_BLOCK_S)
    try:
        await client.xadd("events", {"job": "a"})
        [[_, [[_, fields]]]] = await client.xread({"events": "0"}, block=5_000)
        return fields[b"job"]
    finally:
        await client.aclose()


@pytest.mark.asyncio
async def test_the_async_client_reads_a_stream(redis_url: str, redis_client: redis.Redis) -> None:
    assert await _set_and_read(redis_url) == b"a"


def test_a_blocking_client_does_not_repeat_a_pop_whose_line_broke(redis_url: str, redis_client: redis.Redis) -> None:
    waiting = connect(redis_url, blocks_s=LONGEST_BLOCK_S)
    with ThreadPoolExecutor(1) as pool:
        popped = pool.submit(waiting.blpop, ["bell"], 20)
        while not (blocked := [one for one in redis_client.client_list() if one["cmd"] == "blpop"]):
            assert not popped.done()
        redis_client.client_kill_filter(_id=blocked[0]["id"])
        with pytest.raises(redis.ConnectionError):
            popped.result()
    redis_client.rpush("bell", "ring")
    assert waiting.blpop(["bell"], timeout=5) == (b"bell", b"ring")
    waiting.close()


def test_a_line_that_has_died_holds_its_caller_for_one_command_and_no_longer(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.connection.COMMAND_TIMEOUT_S", 0.2)
    with Line(redis_url.removeprefix("unix://")) as line:
        url = f"redis://127.0.0.1:{line.port}/0"
        for client, wait in ((connect(url), redis.Redis.ping), (connect(url, blocks_s=0.1), block)):
            wait(client)
            line.cut()
            with pytest.raises(redis.TimeoutError):
                wait(client)
            line.replace()
            wait(client)
            client.close()
        assert line.connections == 4, "one before and one after; none to repeat what got no answer"


def block(client: redis.Redis) -> None:
    client.blpop(["nothing"], timeout=0.1)


def test_a_client_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    server = ensure_server(tmp_path)
    client = connect(server.url)
    try:
        assert client.set("kept", "yes")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        server = ensure_server(tmp_path)
        assert client.get("kept") == b"yes"
    finally:
        client.close()
        server.stop()


def test_a_server_that_is_not_there_is_a_connection_error(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/none.sock")
    with pytest.raises(redis.ConnectionError):
        client.ping()
    client.close()


def test_the_module_needs_no_torch() -> None:
    code = "import sys, workers.connection, workers.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
