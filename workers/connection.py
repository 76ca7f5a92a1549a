"""Redis clients, with every option that matters said aloud.

Owns the options, and what a server must be like to keep what was accepted. The client library's own defaults do not
suit us: a blocking read of more than five seconds times out, is repeated ten times in silence (what a dead attempt
popped is lost) and fails after a minute.
"""

from __future__ import annotations

import re
from typing import Any, TypedDict

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

CONNECT_TIMEOUT_S = 2.0
"""A server that is there accepts at once; one that is not should soon be a 503."""
COMMAND_TIMEOUT_S = 5.0
"""Commands take milliseconds; five seconds without an answer is a frozen server or a broken line."""
LONGEST_BLOCK_S = 30.0
"""The API's readers of streams wait no longer than this in one XREAD."""
DOORBELL_BLOCK_S = 1.0
"""The same for a worker at its doorbells: its loop stands still for as long as a line that has died is not noticed."""
HEALTH_CHECK_INTERVAL_S = 15
"""A connection that lay idle for longer is pinged first, so a command is not lost on one that died meanwhile."""
RETRIES = 3
"""With back-off from 0.02 s up to 0.5 s: rides out a server's restart of a blink, fails within a second otherwise. A
command without an answer is not repeated: a line that has died would hold its caller four times as long."""


OLDEST_SERVER = (7, 0)
"""Of Redis; our scripts are flagged in its way. Valkey calls itself Redis 7.2 here."""


class _Options(TypedDict):
    socket_timeout: float
    socket_connect_timeout: float
    health_check_interval: int
    protocol: int
    decode_responses: bool
    client_name: str


def connect(url: str, *, blocks_s: float = 0.0) -> redis.Redis:
    """A client for `redis://`, `rediss://` or `unix://`. Opens no connection yet; answers are bytes.

    `blocks_s`: for BLPOP, BLMOVE, XREAD of up to so many seconds. Such a client repeats nothing by itself, because a
    repeated pop loses what the dead attempt took: the caller meets the ConnectionError and looks again.
    Raises ValueError for any other URL.
    """
    backoff = ExponentialBackoff(cap=0.5, base=0.02)
    retry = Retry(NoBackoff(), 0) if blocks_s else Retry(backoff, RETRIES, (redis.ConnectionError,))
    return redis.Redis.from_url(url, retry=retry, **_options(blocks_s))


def connect_async(url: str, *, blocks_s: float = 0.0) -> redis.asyncio.Redis:
    """The same for asyncio. Close it with `await client.aclose()`."""
    backoff = ExponentialBackoff(cap=0.5, base=0.02)
    retry = AsyncRetry(NoBackoff(), 0) if blocks_s else AsyncRetry(backoff, RETRIES, (redis.ConnectionError,))
    return redis.asyncio.Redis.from_url(url, retry=retry, **_options(blocks_s))


def misgivings(client: redis.Redis) -> tuple[str, ...]:
    """What about this server could lose accepted jobs, a sentence each; none when all is well.

    Asks INFO alone, which hosted servers allow, too. Raises RedisError.
    """
    info: dict[str, Any] = client.info()
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(f"Redis has maxmemory-policy {policy} and may drop jobs: set it to noeviction.")
    if str(info.get("aof_enabled", 1)) == "0":
        found.append("Redis has appendonly no and loses jobs when it ends: set it to yes.")
    version = tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "")))[:2])
    if version and version < OLDEST_SERVER:
        found.append(f"Redis {info['redis_version']} is too old: 7.0 or later, or Valkey, is needed.")
    return tuple(found)


def _options(blocks_s: float) -> _Options:
    return {
        "socket_timeout": blocks_s + COMMAND_TIMEOUT_S,  # above the block, and finite: a half-open line is noticed
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
        "protocol": 2,  # one reply shape with every server since 6.2, and no extra handshake
        "decode_responses": False,  # RQ reads bytes
        "client_name": "denoised",
    }
