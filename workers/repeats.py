"""Who waits for the answer to what: so that a request that is sent again gets the job that its first sending queued.

Some clients send a request again when its answer was lost, and give it no name by which the two could be told to be
one (an Idempotency-Key). What such a client wants once is an **order** here, and each sending of it an **attempt**.
Orders of one tenant that say the same lie in one pool, since nobody can tell whose is whose: an attempt that is told to
be a repeat takes over an order of its pool that nobody waits for any more, and never one that somebody waits for.

An attempt waits as long as it renews its lease; it is left when its client has hung up, and lapses when its process
dies. An order that is left stays to be taken over for GRACE_S. The order's id is the idempotency key of its job, and
the order is in the pool before the job is queued: whatever dies in between, a repeat queues the job or finds it.

What remains: an answer that the server has sent and the client has not got (a line that is dead without either of
them knowing) counts as delivered, and its repeat is drawn anew. An attempt whose process stood still for LEASE_S is
taken for dead; if the repeat of another order that says the same comes just then, both get the same pictures.

Owns the pools in Redis. Knows nothing of jobs, HTTP or headers.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

import redis

from workers.contract import key
from workers.jobkeys import text

LEASE_S = 5.0
"""An attempt that was not renewed for so long is dead. A repeat waits as long before it is taken for a new order."""
GRACE_S = 15.0
"""A repeat comes within that, or not at all: clients wait 0.5 to 8 seconds in between."""
_KEPT_MS = int((LEASE_S + GRACE_S) * 1000) + 1000

_PRELUDE = """
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local pool = KEYS[1]
local function stamp(seconds)
  return string.format('%.6f', seconds)
end
local function order_of(member)
  return string.match(member, '^[^ ]+')
end
local function close(order)
  for _, member in ipairs(redis.call('ZRANGE', pool, 0, -1)) do
    if order_of(member) == order then redis.call('ZREM', pool, member) end
  end
end
"""
_ATTEND = (
    _PRELUDE
    + """
-- ARGV: member, lease seconds, milliseconds that the pool is kept.
redis.call('ZADD', pool, stamp(now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', pool, ARGV[3])
"""
)
_RENEW = (
    _PRELUDE
    + """
-- ARGV as before; the lease is 0 for an attempt that is left. One that was taken over stays so.
redis.call('ZADD', pool, 'XX', stamp(now + ARGV[2]), ARGV[1])
redis.call('PEXPIRE', pool, ARGV[3])
"""
)
_TAKE_OVER = (
    _PRELUDE
    + """
-- ARGV: attempt, lease seconds, milliseconds that the pool is kept, grace seconds.
-- Of the orders that nobody waits for that which was left first.
local waits_until, is_waited_for, found = {}, false, nil
local members = redis.call('ZRANGE', pool, 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do  -- by score: the last one of an order is its latest
  waits_until[order_of(members[i])] = tonumber(members[i + 1])
end
for order, until_s in pairs(waits_until) do
  if until_s > now then
    is_waited_for = true
  elseif until_s >= now - ARGV[4] and (not found or until_s < waits_until[found]) then
    found = order
  end
end
if not found then return is_waited_for and 'wait' or '' end
close(found)
redis.call('ZADD', pool, stamp(now + ARGV[2]), found .. ' ' .. ARGV[1])
redis.call('PEXPIRE', pool, ARGV[3])
return found
"""
)
_GIVE_UP = (
    _PRELUDE
    + """
-- ARGV: member, order. Closes an order that this attempt was the last one to wait for; 0 when it has been taken over.
if not redis.call('ZSCORE', pool, ARGV[1]) then return 0 end
for _, member in ipairs(redis.call('ZRANGE', pool, '(' .. stamp(now), '+inf', 'BYSCORE')) do
  if order_of(member) == ARGV[2] then return 0 end
end
close(ARGV[2])
return 1
"""
)
_CLOSE = _PRELUDE + "close(ARGV[1])"


@dataclass(frozen=True)
class Attempt:
    """One sending of an order. `order`: the idempotency key of its job, unless its client gave it one."""

    pool: str
    order: str
    name: str

    @property
    def member(self) -> str:
        return f"{self.order} {self.name}"


class Repeats:
    """The pools of one Redis. Thread-safe. `digest`: over all that an order says."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._attend = client.register_script(_ATTEND)
        self._renew = client.register_script(_RENEW)
        self._take_over = client.register_script(_TAKE_OVER)
        self._give_up = client.register_script(_GIVE_UP)
        self._close = client.register_script(_CLOSE)

    def begin(self, tenant: str, digest: str) -> Attempt:
        """The first attempt of a new order."""
        return self._begin(_pool(tenant, digest), secrets.token_hex(16))

    def _begin(self, pool: str, order: str) -> Attempt:
        attempt = Attempt(pool, order, secrets.token_hex(8))
        self._attend(keys=[attempt.pool], args=[attempt.member, LEASE_S, _KEPT_MS])
        return attempt

    def begin_named(self, tenant: str, name: str) -> Attempt:
        """An attempt of the order that its client has named, be it the first or not."""
        order = hashlib.sha256(name.encode()).hexdigest()
        return self._begin(_pool(tenant, order), order)

    def take_over(self, tenant: str, digest: str) -> Attempt | Literal["wait"] | None:
        """The next attempt of an order that nobody waits for any more; "wait" when there are only orders that somebody
        waits for, as far as is known by now; None when there are none."""
        pool, name = _pool(tenant, digest), secrets.token_hex(8)
        order = text(self._take_over(keys=[pool], args=[name, LEASE_S, _KEPT_MS, GRACE_S]))
        if order == "wait":
            return "wait"
        return Attempt(pool, order, name) if order else None

    def renew(self, attempt: Attempt) -> None:
        """Somebody waits for it for another LEASE_S."""
        self._renew(keys=[attempt.pool], args=[attempt.member, LEASE_S, _KEPT_MS])

    def leave(self, attempt: Attempt) -> None:
        """Nobody waits for it any more; a repeat may take it over."""
        self._renew(keys=[attempt.pool], args=[attempt.member, 0, _KEPT_MS])

    def give_up(self, attempt: Attempt) -> bool:
        """Closes an order that was left and not taken over; False when it was."""
        return bool(self._give_up(keys=[attempt.pool], args=[attempt.member, attempt.order]))

    def withdraw(self, attempt: Attempt) -> None:
        """It was refused. Others that named the same order wait on."""
        self._redis.zrem(attempt.pool, attempt.member)

    def close(self, attempt: Attempt) -> None:
        """The order has its answer."""
        self._close(keys=[attempt.pool], args=[attempt.order])


def _pool(tenant: str, digest: str) -> str:
    return key("repeats", tenant, digest)
