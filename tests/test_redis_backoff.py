"""What counts as a server that is away: real refusals of a real server, and faults of ours that do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from workers.connection import connect
from workers.embedded import ensure_server
from workers.redis_backoff import RedisBackoff, is_away


def write(client: redis.Redis) -> None:
    client.set("a", 1)


def write_in_a_transaction(client: redis.Redis) -> None:
    with client.pipeline() as pipe:
        pipe.set("a", 1)
        pipe.execute()


def write_in_a_pipeline(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.set("a", 1)
        pipe.execute()


def write_in_a_script(client: redis.Redis) -> None:
    client.eval("return redis.call('SET', KEYS[1], 1)", 1, "a")


WAYS = [write, write_in_a_transaction, write_in_a_pipeline, write_in_a_script]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("setting", ["min-replicas-to-write", "maxmemory"])
def test_a_server_that_refuses_every_write_is_away(
    redis_client: redis.Redis, way: Callable[[redis.Redis], None], setting: str
) -> None:
    redis_client.config_set(setting, 1)
    try:
        with pytest.raises(redis.ResponseError) as refusal:
            way(redis_client)
    finally:
        redis_client.config_set(setting, 0)
    assert is_away(refusal.value)
    way(redis_client)


def test_a_server_whose_disk_refuses_is_away(tmp_path: Path) -> None:
    server = ensure_server(tmp_path / "data")
    client = connect(server.url)
    try:
        client.config_set("save", "900 1")
        client.config_set("stop-writes-on-bgsave-error", "yes")
        shutil.rmtree(client.config_get("dir")["dir"], ignore_errors=True)
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            pass
        for way in WAYS:
            with pytest.raises(redis.ResponseError, match="MISCONF") as refusal:
                way(client)
            assert is_away(refusal.value)
    finally:
        client.close()
        server.stop()


def test_a_mistake_of_ours_is_not_taken_for_a_server_that_is_away(redis_client: redis.Redis) -> None:
    redis_client.set("a", 1)
    with pytest.raises(redis.ResponseError) as mistake:
        redis_client.lpush("a", 1)
    assert not is_away(mistake.value)
    with pytest.raises(redis.ResponseError):
        RedisBackoff().lost(mistake.value)


def test_waits_grow_up_to_two_seconds_and_end_with_the_first_answer() -> None:
    now = [0.0]
    backoff = RedisBackoff(lambda: now[0])
    waits = []
    for _ in range(7):
        backoff.lost(redis.ConnectionError("away"))
        started = now[0]
        while not backoff.is_due:
            now[0] += 0.05
        waits.append(round(now[0] - started, 1))
    assert waits[0] == 0.1
    assert waits == sorted(waits)
    assert waits[-1] == 2.0
    assert backoff.found()
    assert backoff.is_due
    assert not backoff.found()
