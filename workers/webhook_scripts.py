"""The Lua of webhooks: taking those that are due, and giving them back.

Owns the lease of a webhook: its `holder` (a token) and, while it lasts, its place in `webhooks`, by when the lease is
over. `announce` of `workers.scripts` is the other side: it makes a webhook due when its job has changed. Both may run
when Redis has no memory left: what they write is small, and in the end they give some back.
"""

from __future__ import annotations

from workers.scripts import ALLOW_OOM, INDEX_TTL_S, PRELUDE

TAKE = (
    ALLOW_OOM
    + PRELUDE
    + """
-- KEYS: webhooks. ARGV: prefixes of `webhook:` and of `job:`, token, lease seconds, most to take, most to one host and
-- for one tenant, and as JSON what is under way to each host and for each tenant. Webhooks that are due, or whose lease
-- is over, become ours: those that have waited longest, but for hosts and tenants that have their share.
-- Returns the seconds until the next one is due ('' when none is), then {job, tenant, its hash} each.
local hashes, records, token = ARGV[1], ARGV[2], ARGV[3]
local lease, most = tonumber(ARGV[4]), tonumber(ARGV[5])
local most_to_host, most_of_tenant = tonumber(ARGV[6]), tonumber(ARGV[7])
local hosts, tenants = cjson.decode(ARGV[8]), cjson.decode(ARGV[9])
local scanned = 500
local t = now() + 0.001  -- times are rounded to that
local taken, passed = {''}, {}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', t, 'LIMIT', 0, scanned)
for _, job in ipairs(due) do
  local hash = hashes .. job
  local host, tenant = redis.call('HGET', hash, 'host'), redis.call('HGET', records .. job, 'tenant')
  if not host or not tenant then
    redis.call('ZREM', KEYS[1], job)  -- the time of its job is over
    redis.call('DEL', hash)
  elseif #taken <= most and (hosts[host] or 0) < most_to_host and (tenants[tenant] or 0) < most_of_tenant then
    hosts[host], tenants[tenant] = (hosts[host] or 0) + 1, (tenants[tenant] or 0) + 1
    redis.call('HSET', hash, 'holder', token)
    redis.call('HDEL', hash, 'news')
    redis.call('ZADD', KEYS[1], stamp(t + lease), job)
    table.insert(taken, {job, tenant, redis.call('HGETALL', hash)})
  else
    table.insert(passed, job)
  end
end
if #due == scanned then  -- those behind them get their turn, too, and at once
  for _, job in ipairs(passed) do redis.call('ZADD', KEYS[1], stamp(t + 1), job) end
  taken[1] = '0'
  return taken
end
local following = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. t, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if following[2] then taken[1] = tostring(tonumber(following[2]) - t) end
return taken
"""
)

SETTLE = (
    ALLOW_OOM
    + PRELUDE
    + f"""
-- KEYS: webhooks, webhook:<id>, job:<id>. ARGV: job, token, seconds until it is looked at again ('' when it is over),
-- seconds of rest, then fields and values. Whoever took a webhook gives it back.
if redis.call('HGET', KEYS[2], 'holder') ~= ARGV[2] then return 'lost' end
local ttl_ms = redis.call('PTTL', KEYS[3])
if ttl_ms == -2 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[2])
  return 'erased'
end
if #ARGV > 4 then redis.call('HSET', KEYS[2], unpack(ARGV, 5)) end
local news = redis.call('HGET', KEYS[2], 'news')
redis.call('HDEL', KEYS[2], 'holder', 'news')
if ttl_ms >= 0 then redis.call('PEXPIRE', KEYS[2], ttl_ms) end  -- a worker of an older version has not done it
local t = now()
if ARGV[3] ~= '' then
  local due, rests_until = t + tonumber(ARGV[3]), t + tonumber(ARGV[4])
  if news == 'ended' then due = t elseif news then due = math.min(due, rests_until) end
  if ttl_ms < 0 or due < t + ttl_ms / 1000 then
    redis.call('HSET', KEYS[2], 'rests_until', stamp(rests_until), 'next_at', stamp(due))
    redis.call('ZADD', KEYS[1], stamp(due), ARGV[1])
    return 'kept'
  end
  redis.call('HSET', KEYS[2], 'end', 'given_up')
end
if ttl_ms == -1 then redis.call('EXPIRE', KEYS[2], {INDEX_TTL_S}) end  -- the end of the job sets it anew
redis.call('HDEL', KEYS[2], 'next_at')
redis.call('ZREM', KEYS[1], ARGV[1])
return 'over'
"""
)
