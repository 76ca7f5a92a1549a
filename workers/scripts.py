"""The Lua that changes a job's life in one atomic step each.

Owns every multi-key decision that two processes could race for: claiming, renewing, committing, ending from outside,
handing back, recovering. Knows nothing of pictures. Keys are passed in by `workers.jobkeys`, so that key formats (ours
and RQ's) are written down once.

The clock is always the server's, so that machines need not agree about the time.

A server whose memory is full refuses what could take more. Jobs must go on to their ends then, because only ends give
memory back; so the scripts that lead there are flagged `allow-oom` (Redis 7 and later). What they write is small.

What a job's state is made of: the record's `outcome` (there or not: the only thing that ends a job), RQ's `status`
field (queued or started), membership in RQ's queue list or in its intermediate list, and the lease: the member
`<job>:<execution>` of RQ's StartedJobRegistry, with the time it expires as score.
"""

from __future__ import annotations

from workers.contract import EVENT_STREAM_LENGTH, PROGRESS_TTL_S, WEBHOOK_NEWS

DOORBELL_LENGTH = 64
"""Rings that are remembered; more workers than that need not wake for one burst."""
DOORBELL_TTL_S = 3600
"""A ring that nobody hears is forgotten; workers look at the queues every second anyway."""
INDEX_TTL_S = 30 * 24 * 3600
"""A tenant's index outlives its last change by this; entries of expired records leave it earlier."""

ALLOW_OOM = "#!lua flags=allow-oom\n"

PRELUDE = f"""
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end
local function emit(stream, job, kind)
  redis.call('XADD', stream, 'MAXLEN', '~', '{EVENT_STREAM_LENGTH}', '*', 'job', job, 'kind', kind)
end
local function ring(doorbell, job)
  redis.call('LPUSH', doorbell, job)
  redis.call('LTRIM', doorbell, 0, {DOORBELL_LENGTH - 1})
  redis.call('EXPIRE', doorbell, {DOORBELL_TTL_S})
end
local function stamp(seconds)
  return string.format('%.3f', seconds)
end
local function announce(k, job, event)
  -- The job's webhook, if it has one that wants this event, is due: at once, or, but for the end, once its receiver has
  -- had its rest. Whoever is telling it something now looks again afterwards. The end also tells one that does not want
  -- it that there is nothing more to wait for.
  local events, holder, rests_until = unpack(redis.call('HMGET', k.webhook, 'events', 'holder', 'rests_until'))
  if not events or (event ~= 'ended' and not string.find(events, event, 1, true)) then return end
  if holder then
    redis.call('HSET', k.webhook, 'news', event)
    return
  end
  local due = now()
  if event ~= 'ended' then due = math.max(due, tonumber(rests_until or 0)) end
  if redis.call('ZADD', k.webhooks, 'XX', 'LT', 'CH', stamp(due), job) == 1 then
    emit(k.events, '{WEBHOOK_NEWS}', 'status')
  end
end
local function to_front(k, job)
  redis.call('LPUSH', k.queue, job)
  local deadline = redis.call('HGET', k.record, 'deadline')
  if deadline then redis.call('ZADD', k.urgent, deadline, job) end
end
"""

_RECORD_OUTCOME = f"""
-- The commit point. Callers have made sure that there is no outcome yet.
local function record_outcome(k, job, outcome, retention)
  local ttl = tonumber(retention)
  local tenant = redis.call('HGET', k.record, 'tenant')
  redis.call('HSET', k.record, 'outcome', outcome)
  redis.call('EXPIRE', k.record, ttl)
  redis.call('EXPIRE', k.progress, ttl)
  redis.call('DEL', k.preview)
  redis.call('HDEL', k.costs, job)
  redis.call('ZREM', k.urgent, job)
  local ended = cjson.decode(outcome)
  redis.call('HINCRBY', k.ended, ended.status, 1)
  if type(ended.error) == 'table' then redis.call('HINCRBY', k.ended, 'code:' .. ended.error.code, 1) end
  redis.call('SET', k.gone, tenant, 'EX', 2 * ttl)
  for companion in string.gmatch(redis.call('HGET', k.record, 'companions') or '', '[^\\n]+') do
    local value = redis.call('GET', companion)
    -- Another job may have taken the key over.
    if value and string.sub(value, -#job) == job then redis.call('EXPIRE', companion, ttl) end
  end
  -- Each ended job looks at the four oldest of its tenant's index, so the index cannot outgrow the records.
  for _, old in ipairs(redis.call('ZRANGE', k.index, 0, 3)) do
    if redis.call('EXISTS', k.record_prefix .. old) == 0 then redis.call('ZREM', k.index, old) end
  end
  redis.call('EXPIRE', k.index, {INDEX_TTL_S} + ttl)
  redis.call('EXPIRE', k.webhook, ttl)
  emit(k.events, job, 'end')
  announce(k, job, 'ended')
end
"""

_KEYS = """
local k = {}
for i, name in ipairs({'rq_job', 'record', 'queue', 'intermediate', 'lease', 'canceled', 'progress', 'preview',
                       'costs', 'index', 'gone', 'events', 'queues', 'doorbell', 'suspects', 'ended', 'urgent',
                       'webhook', 'webhooks'}) do
  k[name] = KEYS[i]
end
local job = ARGV[1]
k.record_prefix = string.sub(k.record, 1, #k.record - #job)
"""
"""Names for KEYS; the same order as `workers.jobkeys.JobKeys`."""

_HEAD_WITHIN_MEMORY = PRELUDE + _RECORD_OUTCOME + _KEYS
_HEAD = ALLOW_OOM + _HEAD_WITHIN_MEMORY

POP = (
    ALLOW_OOM
    + """
-- KEYS: queue, intermediate, urgent. A job of the queue moves to the list of those that are not started yet: that with
-- the nearest deadline, or else the first.
local nearest = redis.call('ZPOPMIN', KEYS[3])[1]
while nearest do
  if redis.call('LREM', KEYS[1], 1, nearest) == 1 then
    redis.call('RPUSH', KEYS[2], nearest)
    return nearest
  end
  nearest = redis.call('ZPOPMIN', KEYS[3])[1]  -- that one was taken out with RQ's tools
end
return redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
"""
)

BEAT = (
    ALLOW_OOM
    + """
-- KEYS: workers. ARGV: worker, its beat.
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
)

CLAIM = (
    _HEAD
    + """
-- ARGV: job, execution, lease seconds. A popped job becomes ours, or leaves the intermediate list.
local execution, lease = ARGV[2], tonumber(ARGV[3])
if redis.call('HGET', k.record, 'execution') == execution then return 'claimed' end  -- a repeated call
redis.call('LREM', k.intermediate, 1, job)
if redis.call('EXISTS', k.record) == 0 then return 'gone' end
local status = redis.call('HGET', k.rq_job, 'status')
if redis.call('HEXISTS', k.record, 'outcome') == 1 then
  if status ~= 'queued' then return 'ended' end
  -- Its worker died between the commit point and telling RQ; whoever gets this answer tells RQ.
  redis.call('HSET', k.rq_job, 'status', 'started')
  redis.call('EXPIRE', k.rq_job, redis.call('TTL', k.record))
  return 'untold'
end
if status ~= 'queued' then return 'taken' end
local before = redis.call('HGET', k.record, 'execution')
if before then
  -- Whoever held it never handed it back: a death, unless the job got further than ever before.
  local reached = tonumber(redis.call('HGET', k.record, 'reached') or 0)
  local best = tonumber(redis.call('HGET', k.record, 'best_step') or 0)
  if reached > best then
    redis.call('HSET', k.record, 'best_step', reached)
  else
    redis.call('HINCRBY', k.record, 'deaths', 1)
  end
  redis.call('ZREM', k.lease, job .. ':' .. before)
end
local t = now()
redis.call('HSET', k.rq_job, 'status', 'started')
redis.call('ZADD', k.lease, stamp(t + lease), job .. ':' .. execution)
redis.call('HSET', k.record, 'execution', execution, 'started_at', stamp(t))
redis.call('HINCRBY', k.record, 'claims', 1)
redis.call('HDEL', k.record, 'reached')
redis.call('DEL', k.progress, k.preview)
redis.call('HDEL', k.suspects, job)
emit(k.events, job, 'status')
announce(k, job, 'started')
return 'claimed'
"""
)

RENEW = (
    _HEAD
    + """
-- ARGV: job, execution, lease seconds. The heartbeat of one held job.
local execution, lease = ARGV[2], tonumber(ARGV[3])
if redis.call('HEXISTS', k.record, 'outcome') == 1 then return 'ended' end
local member = job .. ':' .. execution
if redis.call('HGET', k.record, 'execution') ~= execution or not redis.call('ZSCORE', k.lease, member) then
  return 'lost'
end
redis.call('ZADD', k.lease, 'XX', stamp(now() + lease), member)
return 'held'
"""
)

PROGRESS = (
    _HEAD
    + f"""
-- ARGV: job, execution, step, steps, eta or '', warnings as JSON or ''. Only the holder writes, and only until the end.
if redis.call('HEXISTS', k.record, 'outcome') == 1 then return 'ended' end
if redis.call('HGET', k.record, 'execution') ~= ARGV[2] then return 'lost' end
if ARGV[6] ~= '' then redis.call('HSET', k.record, 'warnings', ARGV[6]) end
redis.call('HSET', k.record, 'reached', ARGV[3])  -- outlives the progress, which expires
redis.call('HSET', k.progress, 'step', ARGV[3], 'steps', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', k.progress, 'eta_s', ARGV[5]) end
redis.call('EXPIRE', k.progress, {PROGRESS_TTL_S})
emit(k.events, job, 'progress')
announce(k, job, 'progress')
return 'held'
"""
)

PREVIEW = (
    _HEAD_WITHIN_MEMORY
    + f"""
-- ARGV: job, execution, picture bytes. As PROGRESS, but only while there is memory.
if redis.call('HEXISTS', k.record, 'outcome') == 1 then return 'ended' end
if redis.call('HGET', k.record, 'execution') ~= ARGV[2] then return 'lost' end
redis.call('SET', k.preview, ARGV[3], 'EX', {PROGRESS_TTL_S})
emit(k.events, job, 'preview')
return 'held'
"""
)

COMMIT = (
    _HEAD
    + """
-- ARGV: job, execution, lease seconds, outcome, retention seconds, steps done ('' when it did not succeed).
-- A worker ends a job that it still holds.
local execution, lease, outcome = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local written = redis.call('HGET', k.record, 'outcome')
if written == outcome then return 'committed' end  -- a repeated call
if written then return 'ended' end
local member = job .. ':' .. execution
if redis.call('HGET', k.record, 'execution') ~= execution or not redis.call('ZSCORE', k.lease, member) then
  return 'lost'
end
redis.call('ZADD', k.lease, 'XX', stamp(now() + lease), member)
if ARGV[6] ~= '' then
  redis.call('HSET', k.progress, 'step', ARGV[6], 'steps', ARGV[6])
  redis.call('HDEL', k.progress, 'eta_s')
end
record_outcome(k, job, outcome, ARGV[5])
redis.call('EXPIRE', k.rq_job, tonumber(ARGV[5]))
return 'committed'
"""
)

END = (
    _HEAD
    + """
-- ARGV: job, outcome, retention seconds, RQ status to leave behind. Ends a job from outside, whoever holds it.
local outcome, retention, left = ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', k.record) == 0 then return 'gone' end
if redis.call('HEXISTS', k.record, 'outcome') == 1 then return 'ended' end
record_outcome(k, job, outcome, retention)
redis.call('LREM', k.queue, 0, job)
redis.call('LREM', k.intermediate, 0, job)
redis.call('HDEL', k.suspects, job)
local execution = redis.call('HGET', k.record, 'execution')
if execution then redis.call('ZREM', k.lease, job .. ':' .. execution) end
if redis.call('EXISTS', k.rq_job) == 1 then
  if left ~= '' then
    redis.call('HSET', k.rq_job, 'status', left)
    redis.call('ZADD', k.canceled, stamp(now()), job)
    redis.call('EXPIRE', k.canceled, 2 * tonumber(retention))
  end
  redis.call('EXPIRE', k.rq_job, tonumber(retention))
end
return 'committed'
"""
)

HAND_BACK = (
    _HEAD
    + """
-- ARGV: job, execution, queue name, blame (1: it counts as a death). A held job goes back to the front of its queue.
local execution, name, blame = ARGV[2], ARGV[3], ARGV[4]
local member = job .. ':' .. execution
if redis.call('HEXISTS', k.record, 'outcome') == 1 then return 'ended' end
if redis.call('HGET', k.record, 'execution') ~= execution or not redis.call('ZSCORE', k.lease, member) then
  return 'lost'
end
redis.call('ZREM', k.lease, member)
redis.call('HSET', k.rq_job, 'status', 'queued')
redis.call('HDEL', k.record, 'started_at')
if blame ~= '1' then
  redis.call('HDEL', k.record, 'execution')
  redis.call('DEL', k.progress, k.preview)
end
to_front(k, job)
redis.call('SADD', k.queues, name)
ring(k.doorbell, job)
emit(k.events, job, 'status')
return 'queued'
"""
)

ERASE = (
    _HEAD
    + """
-- ARGV: job, seconds that its id is remembered. Forgets a job that has ended.
local tenant = redis.call('HGET', k.record, 'tenant')
if not tenant then return 'gone' end
if redis.call('HEXISTS', k.record, 'outcome') == 0 then return 'unended' end
redis.call('DEL', k.record, k.progress, k.preview, k.webhook)
redis.call('ZREM', k.index, job)
redis.call('ZREM', k.webhooks, job)
redis.call('SET', k.gone, tenant, 'EX', tonumber(ARGV[2]))
emit(k.events, job, 'status')
return 'erased'
"""
)

PUT_BACK = (
    _HEAD
    + """
-- ARGV: job. A popped job that was not claimed goes back to the front of its queue.
if redis.call('LREM', k.intermediate, 1, job) == 0 then return 'lost' end
to_front(k, job)
return 'queued'
"""
)

RECOVER = (
    _HEAD
    + """
-- ARGV: job, queue name, age seconds. Looks at a job that is in no queue: leave it, watch it, or queue it again.
local name, age = ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', k.record) == 0 then
  redis.call('HDEL', k.costs, job)
  redis.call('HDEL', k.suspects, job)
  return 'gone'
end
if redis.call('HEXISTS', k.record, 'outcome') == 1 then return 'ended' end
local status = redis.call('HGET', k.rq_job, 'status')
if status ~= 'queued' and status ~= 'started' then return 'foreign' end  -- ended with RQ's own tools
local t = now()
local execution = redis.call('HGET', k.record, 'execution')
local member = job .. ':' .. (execution or '')
local expires = execution and redis.call('ZSCORE', k.lease, member)
if status == 'started' and expires and tonumber(expires) > t then
  redis.call('HDEL', k.suspects, job)
  return 'held'
end
if status == 'queued' and redis.call('LPOS', k.queue, job) then
  redis.call('HDEL', k.suspects, job)
  return 'queued'
end
if not (status == 'started' and expires) then
  -- No lease at all: on its way from the queue to a worker, or lost there. Only age tells.
  redis.call('HSETNX', k.suspects, job, stamp(t))
  if t - tonumber(redis.call('HGET', k.suspects, job)) < age then return 'watched' end
end
redis.call('ZREM', k.lease, member)
redis.call('LREM', k.intermediate, 0, job)
redis.call('HDEL', k.suspects, job)
redis.call('HSET', k.rq_job, 'status', 'queued')
redis.call('HDEL', k.record, 'started_at')
to_front(k, job)
redis.call('SADD', k.queues, name)
ring(k.doorbell, job)
emit(k.events, job, 'status')
return 'recovered'
"""
)

RESERVE = """
-- KEYS: reserved. ARGV: job, bytes. Reserves, then answers with the sum over all jobs.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local sum = 0
for _, bytes in ipairs(redis.call('HVALS', KEYS[1])) do sum = sum + tonumber(bytes) end
return string.format('%.0f', sum)
"""

FORGET_QUEUE = """
-- KEYS: queues set, then what may be left of the queue. ARGV: its name. Drops the name of a queue that holds nothing.
if redis.call('EXISTS', unpack(KEYS, 2)) > 0 then return 0 end
return redis.call('SREM', KEYS[1], ARGV[1])
"""

LOOK = """
-- KEYS: RQ's suspension flag, then the queues set of each model. ARGV: prefix of RQ's queue keys.
-- Returns whether RQ is suspended, then {set's number, queue name, length, first job id} of each queue with jobs.
local found = {redis.call('EXISTS', KEYS[1])}
for i = 2, #KEYS do
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[i])) do
    local length = redis.call('LLEN', ARGV[1] .. name)
    if length > 0 then
      table.insert(found, {i - 2, name, length, redis.call('LINDEX', ARGV[1] .. name, 0)})
    end
  end
end
return found
"""

PLACE = """
-- KEYS: queues set, costs. ARGV: prefix of RQ's queue keys, job, name of its queue.
-- Returns the jobs that should start before this one, and their cost; nothing when it is not queued. A tenant's jobs go
-- by priority, then by age. Of each other tenant those are before it that are not further back among their own than
-- this one among its own, and of two equally far back the older one.
local prefix, job, own = ARGV[1], ARGV[2], ARGV[3]
local at = redis.call('LPOS', prefix .. own, job)
if not at then return {} end
local ranks = {high = 1, normal = 2, low = 3}
local function parse(name)
  local priority, tenant = string.match(name, '^[^.]*%.([^.]*)%.([^.]*)$')
  return ranks[priority or ''], tenant
end
local jobs, cost = 0, 0
local function count(name, number)
  if number == 0 then return end
  local ids = redis.call('LRANGE', prefix .. name, 0, number - 1)
  jobs = jobs + #ids
  for start = 1, #ids, 1000 do
    for _, one in ipairs(redis.call('HMGET', KEYS[2], unpack(ids, start, math.min(#ids, start + 999)))) do
      cost = cost + (tonumber(one) or 0)
    end
  end
end
local own_rank, own_tenant = parse(own)
local rivals = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local rank, tenant = parse(name)
  local length = rank and redis.call('LLEN', prefix .. name) or 0
  if length > 0 and tenant ~= own_tenant then
    rivals[tenant] = rivals[tenant] or {}
    rivals[tenant][rank] = {name, length}
  elseif length > 0 and rank < own_rank then
    count(name, length)
  end
end
count(own, at)
local place = jobs
for _, queues in pairs(rivals) do
  local left = place
  for rank = 1, 3 do
    local name, length = unpack(queues[rank] or {'', 0})
    if left < length then
      local rival = redis.call('LINDEX', prefix .. name, left)
      count(name, rival < job and left + 1 or left)
      break
    end
    count(name, length)
    left = left - length
  end
end
return {jobs, tostring(cost)}
"""
