-- The replay queue's rules (replay/state.py) inside Redis: one call is one transition, and no other
-- call sees it half done. Here: what is kept, and the steps that transitions are made of. In
-- redis_ready.lua follows which groups are handed out, in redis_restart.lua and redis_queue.lua the
-- transitions; all are one script.
--
-- KEYS[1]: the run's `meta`; every other key of the run begins as it does.
-- KEYS[2]: the last reply to this client and the number of its request, so that a call repeated
--          after a lost connection has its effect once, and none when it comes late. A client numbers
--          its requests upwards and makes one after the other: it is one thread.
-- ARGV: operation, number, '1' for a repeated request, the time ('' for Redis's own), arguments.
-- Returns {verdict, result}: 'ok', 'missing' (no such run here), 'closed', 'full', 'restarting' (come
-- again), 'invalid' (with the reason), 'taken' (with the owner, when it was last seen, and how long
-- ago) or 'fenced' (with the epoch of a learner whose place is taken).
--
-- meta         hash: settings, frontier, counters
-- items        hash: ordinal -> {stage, failed, tombstone, lease id, since, reasons, how many groups
--              were acked when its samples came in}
-- parked       hash: as items, of survivors of a restart that the window has no room for yet
-- payloads     hash: ordinal -> bytes of its stage; none in to_sample, whose tickets are computed
-- leases       hash: lease id -> {ordinal, stage, worker, ttl, deadline unless renewed, call}
-- newest       hash: worker -> its last call of `lease`, unless that was given nothing; now and then
--              cleared of those that hold nothing
-- acked        sorted set of the acked ordinals above `next_unacked`
-- STAGE:ready, STAGE:since, STAGE:deadlines    sorted sets: ordinals by ordinal and by the time they
--              entered, lease ids by the time they end
-- STAGE:waits  list of the latest waits
-- quarantine, reasons    lists of what was given up and why deliveries failed
-- expired      hash: worker -> expired leases, of the latest workers that had any
-- expired_at   sorted set: these workers by when they had the last one
-- seen         sorted set: workers by when they last asked for work, within some seconds

local meta = KEYS[1]
local base = string.sub(meta, 1, -5)
local operation, request, again, clock = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4]
local STAGES = {'to_sample', 'to_score', 'to_train'}
local NUMBERS = {to_sample = 1, to_score = 2, to_train = 3}
local SAMPLE, TRAIN = 1, 3
local KEPT_WAITS, KEPT_QUARANTINED, KEPT_REASONS = 1024, 1000, 20
local KEPT_EXPIRED, KEPT_SEEN = 4096, 100000  -- workers, whose names are the callers' to choose
local SEEN_SECONDS, SEEN_STEP = 60, 20  -- the first as replay/queue.py has it
local REPLY_SECONDS = 3600
local AWAY_SECONDS, SERVED_STEP = 3, 1
local STAGE, FAILED, TOMBSTONE, LEASE, SINCE, REASONS, SAMPLED_AT = 1, 2, 3, 4, 5, 6, 7  -- of an item
local ORDINAL, WORKER, TTL, CALL = 1, 3, 4, 6                             -- of a lease, and STAGE = 2

local call = redis.call
local keys, keys_of_stage = {}, {{}, {}, {}}  -- made once: a string costs more than a look at a table
local function key(name)
  local made = keys[name]
  if not made then
    made = base .. name
    keys[name] = made
  end
  return made
end
local function of_stage(stage, name)
  local made = keys_of_stage[stage][name]
  if not made then
    made = base .. STAGES[stage] .. ':' .. name
    keys_of_stage[stage][name] = made
  end
  return made
end
-- Numbers as text, each made once: a call says the same few again and again.
local function made_once(format)
  local texts = {}
  return function(number)
    local text = texts[number]
    if not text then
      text = string.format(format, number)
      texts[number] = text
    end
    return text
  end
end
local whole, exact = made_once('%.0f'), made_once('%.17g')

local now = tonumber(clock)
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end

-- Redis refuses a script's first write when memory is full, and lets all later ones pass. So the
-- first one here, which changes nothing, tells whether it is full, and the second opens the door:
-- only what adds a payload is refused, what drains the queue goes on.
local full = nil
local function begin_writing()
  if full ~= nil then return end
  local probe = redis.pcall('HSETNX', meta, 'block', '')
  full = type(probe) == 'table' and probe.err ~= nil
  if full and not string.find(probe.err, 'OOM', 1, true) then error(probe.err) end
  call('HDEL', meta, 'probe')
end

local FIELDS = {'block', 'next_unacked', 'dropped', 'next_block', 'lease_count', 'window', 'total',
                'ordered', 'max_deliveries', 'ttl1', 'ttl2', 'ttl3', 'closed', 'fences',
                'restarted', 'begun', 'served'}
local run = {}
local found = call('HMGET', meta, 'incarnation', 'restarting', unpack(FIELDS))
if not found[1] and operation ~= 'open' then return {'missing'} end
for i, field in ipairs(FIELDS) do run[field] = tonumber(found[i + 2]) end
run.incarnation = found[1]
local restarting = found[2] and cmsgpack.unpack(found[2])  -- see redis_restart.lua

-- Reads and writes are gathered, since a command costs more than what it carries: groups and leases
-- are read many at a time and kept here, writes are made at the end, or before what they write is
-- read again from Redis.
local CHUNK = 4000  -- of Lua's stack
local items, leases, parked, newly_acked = {}, {}, {}, {}
local pending, order = {}, {}

-- With a field, or a field and a value.
local function later(command, name, first, second)
  local writes = pending[command]
  if not writes then
    writes = {}
    pending[command] = writes
  end
  local write = writes[name]
  if not write then
    write = {command, name, {}}
    writes[name] = write
    table.insert(order, write)
  end
  local arguments = write[3]
  arguments[#arguments + 1] = first
  if second then arguments[#arguments + 1] = second end
end

local function flush()
  for _, write in ipairs(order) do
    for from = 1, #write[3], CHUNK do
      call(write[1], write[2], unpack(write[3], from, math.min(#write[3], from + CHUNK - 1)))
    end
  end
  pending, order = {}, {}
end

local function many(name, fields)
  local values = {}
  for from = 1, #fields, CHUNK do
    local to = math.min(#fields, from + CHUNK - 1)
    for _, value in ipairs(call('HMGET', key(name), unpack(fields, from, to))) do
      table.insert(values, value)
    end
  end
  return values
end
local function load(cache, name, fields)
  for i, packed in ipairs(many(name, fields)) do
    if cache[fields[i]] == nil then cache[fields[i]] = packed and cmsgpack.unpack(packed) end
  end
end
local function load_leases(ids)
  load(leases, 'leases', ids)
  local ordinals = {}
  for _, id in ipairs(ids) do
    if leases[id] then table.insert(ordinals, whole(leases[id][ORDINAL])) end
  end
  load(items, 'items', ordinals)
end

local function item_of(ordinal)
  local field = whole(ordinal)
  if items[field] == nil then load(items, 'items', {field}) end
  return items[field]
end
local function put_item(ordinal, item)
  items[whole(ordinal)] = item
  later('HSET', key('items'), whole(ordinal), cmsgpack.pack(item))
end
local function lease_of(id)
  if leases[id] == nil then load(leases, 'leases', {id}) end
  return leases[id]
end

local some_acked = nil
local function is_acked(ordinal)
  if ordinal < run.next_unacked or newly_acked[ordinal] then return true end
  if some_acked == nil then some_acked = call('ZCARD', key('acked')) > 0 end
  return some_acked and call('ZSCORE', key('acked'), whole(ordinal)) ~= false
end
local function acked_count() return run.next_unacked + call('ZCARD', key('acked')) end
local function count(field, by) call('HINCRBY', meta, field, by or 1) end

local function make_ready(ordinal, item)
  item[LEASE], item[SINCE] = '', now
  put_item(ordinal, item)
  later('ZADD', of_stage(item[STAGE], 'ready'), whole(ordinal), whole(ordinal))
  later('ZADD', of_stage(item[STAGE], 'since'), exact(now), whole(ordinal))
end

local function new_item() return {SAMPLE, 0, 0, '', now, {}, 0} end
-- Waits before a restart are not of this life of the queue.
local function waited(since) return exact(now - math.max(since, run.restarted or 0)) end

local function take_ready(ordinal, stage)
  later('ZREM', of_stage(stage, 'ready'), whole(ordinal))
  later('ZREM', of_stage(stage, 'since'), whole(ordinal))
end

local function drop_lease(id, lease)
  leases[id] = false
  later('HDEL', key('leases'), id)
  later('ZREM', of_stage(lease[2], 'deadlines'), id)
end

local function fail(id, lease, reason, is_data)
  local ordinal, stage = lease[ORDINAL], lease[2]
  local item = item_of(ordinal)
  drop_lease(id, lease)
  item[FAILED] = item[FAILED] + 1
  table.insert(item[REASONS], reason)
  if #item[REASONS] > KEPT_REASONS then table.remove(item[REASONS], 1) end
  call('RPUSH', key('reasons'),
       string.format('ordinal %s, %s: ', whole(ordinal), STAGES[stage]) .. reason)
  call('LTRIM', key('reasons'), -KEPT_REASONS, -1)
  if (is_data or item[FAILED] >= run.max_deliveries) and item[TOMBSTONE] == 0 then
    count('quarantined')
    call('RPUSH', key('quarantine'), cmsgpack.pack({ordinal, STAGES[stage], item[REASONS]}))
    call('LTRIM', key('quarantine'), -KEPT_QUARANTINED, -1)
    later('HDEL', key('payloads'), whole(ordinal))
    item[STAGE], item[FAILED], item[TOMBSTONE] = TRAIN, 0, 1
  end
  make_ready(ordinal, item)
end

local function give_back(id, lease)
  drop_lease(id, lease)
  make_ready(lease[ORDINAL], item_of(lease[ORDINAL]))
end

-- From a worker that died or fell silent: it fails what it was handed last, and nothing else. What a
-- learner held is not failed: the next one trains the same groups.
local function take_back(id, lease, reason)
  if lease[2] ~= TRAIN and tonumber(call('HGET', key('newest'), lease[WORKER]) or nil) == lease[CALL] then
    fail(id, lease, reason, false)
  else
    give_back(id, lease)
  end
end

local function expire()
  if restarting then return end
  for stage = 1, 3 do
    local due = call('ZRANGEBYSCORE', of_stage(stage, 'deadlines'), '-inf', exact(now))
    for _, id in ipairs(due) do
      begin_writing()
      local lease = lease_of(id)
      count('expired')
      call('HINCRBY', key('expired'), lease[WORKER], 1)
      call('ZADD', key('expired_at'), exact(now), lease[WORKER])
      take_back(id, lease, string.format('lease of %s expired: not renewed within %g s',
                                         lease[WORKER], lease[TTL]))
    end
  end
  local surplus = call('HLEN', key('expired')) - KEPT_EXPIRED
  if surplus > 0 then
    begin_writing()
    local oldest = call('ZPOPMIN', key('expired_at'), whole(surplus))
    for i = 1, #oldest, 2 do call('HDEL', key('expired'), oldest[i]) end
  end
  flush()
end

-- While Redis is away, or stands still, nobody can renew: leases last for so much longer. A run is
-- asked for something every second, at least by its controller. A time that is told does not stand.
local function note_served()
  if clock ~= '' or run.served and math.abs(now - run.served) < SERVED_STEP then return end
  begin_writing()
  local away = run.served and now - run.served or 0
  for stage = 1, away > AWAY_SECONDS and 3 or 0 do
    local ends = call('ZRANGE', of_stage(stage, 'deadlines'), 0, -1, 'WITHSCORES')
    for i = 1, #ends, 2 do
      later('ZADD', of_stage(stage, 'deadlines'), exact(ends[i + 1] + away), ends[i])
    end
  end
  flush()
  call('HSET', meta, 'served', exact(now))
end

-- What is told of leases, as one JSON, since its parts cost more one by one; and their payloads.
local function shown(ids, ordinals)
  local told = {}
  for i, id in ipairs(ids) do
    local lease = leases[id]
    local item = items[ordinals[i]]
    told[i] = {id, ordinals[i], exact(lease[TTL]), exact(lease[5]), item[FAILED] + 1,
               item[REASONS], whole(lease[ORDINAL] - lease[ORDINAL] % run.block)}
  end
  return {cjson.encode(told), many('payloads', ordinals)}
end

local function remember(result)
  begin_writing()
  call('SET', KEYS[2], cmsgpack.pack({request, result}), 'EX', REPLY_SECONDS)
end
-- The number of the last request of this client that is remembered, and its result.
local function last_request()
  local packed = call('GET', KEYS[2])
  if packed then return unpack(cmsgpack.unpack(packed)) end
  return 0
end

local function clear(names)
  for _, name in ipairs(names) do call('UNLINK', key(name)) end
end
local function clear_stages(names)
  for _, stage in ipairs(STAGES) do
    for _, name in ipairs(names) do call('UNLINK', key(stage .. ':' .. name)) end
  end
end

-- The last learner's; '' is what is not checked.
local function epoch() return run.incarnation .. '.' .. whole(run.fences or 0) end
local function is_fenced(given) return given ~= '' and given ~= epoch() end

-- A worker asks often while it waits: that is written down now and then.
local function see(worker)
  local before = tonumber(call('ZSCORE', key('seen'), worker) or nil)
  if before and now - before < SEEN_STEP then return end
  begin_writing()
  if full then return end
  call('ZADD', key('seen'), exact(now), worker)
  call('ZREMRANGEBYSCORE', key('seen'), '-inf', exact(now - SEEN_SECONDS - SEEN_STEP))
  call('ZREMRANGEBYRANK', key('seen'), 0, -KEPT_SEEN - 1)
end

-- Names are the workers' to choose, so those that hold nothing must not add up.
local function forget_idle_workers()
  if call('HLEN', key('newest')) <= 2 * call('HLEN', key('leases')) + 1024 then return end
  local busy = {}
  for _, packed in ipairs(call('HVALS', key('leases'))) do
    busy[cmsgpack.unpack(packed)[WORKER]] = true
  end
  for _, worker in ipairs(call('HKEYS', key('newest'))) do
    if not busy[worker] then later('HDEL', key('newest'), worker) end
  end
  flush()
end
