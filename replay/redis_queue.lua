-- The replay queue's rules (replay/state.py) inside Redis: one call is one transition, and no other
-- call sees it half done.
--
-- KEYS[1]: the run's `meta`; every other key of the run begins as it does.
-- KEYS[2]: the last reply to this client, so that a call repeated after a lost connection has its
--          effect once.
-- ARGV: operation, request id, '1' for a repeated request, the time ('' for Redis's own), arguments.
-- Returns {verdict, result}: 'ok', 'missing' (no such run here), 'closed', 'full', 'invalid' (with
-- the reason), 'taken' (with the owner) or 'fenced' (with the epoch of a learner whose place is taken).
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
-- expired      hash: worker -> expired leases
-- seen         sorted set: workers by when they last asked for work, within some seconds

local meta = KEYS[1]
local base = string.sub(meta, 1, -5)
local operation, request, again, clock = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local STAGES = {'to_sample', 'to_score', 'to_train'}
local NUMBERS = {to_sample = 1, to_score = 2, to_train = 3}
local SAMPLE, TRAIN = 1, 3
local KEPT_WAITS, KEPT_QUARANTINED, KEPT_REASONS = 1024, 1000, 20
local SEEN_SECONDS, SEEN_STEP = 60, 20  -- the first as replay/queue.py has it
local REPLY_SECONDS = 3600
local STAGE, FAILED, TOMBSTONE, LEASE, SINCE, REASONS, SAMPLED_AT = 1, 2, 3, 4, 5, 6, 7  -- of an item
local ORDINAL, WORKER, TTL, CALL = 1, 3, 4, 6                             -- of a lease, and STAGE = 2

local call = redis.call
local function key(name) return base .. name end
local function of_stage(stage, name) return base .. STAGES[stage] .. ':' .. name end
local function whole(number) return string.format('%.0f', number) end
local function exact(number) return string.format('%.17g', number) end

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
                'ordered', 'max_deliveries', 'ttl1', 'ttl2', 'ttl3', 'closed', 'fences'}
local run = {}
local found = call('HMGET', meta, 'incarnation', unpack(FIELDS))
if not found[1] and operation ~= 'open' then return {'missing'} end
for i, field in ipairs(FIELDS) do run[field] = tonumber(found[i + 1]) end
run.incarnation = found[1]

-- Reads and writes are gathered, since a command costs more than what it carries: groups and leases
-- are read many at a time and kept here, writes are made at the end, or before what they write is
-- read again from Redis.
local CHUNK = 4000  -- of Lua's stack
local items, leases, parked, newly_acked = {}, {}, {}, {}
local pending, order = {}, {}

local function later(command, name, ...)
  local id = command .. name
  local write = pending[id]
  if not write then
    write = {command, name, {}}
    pending[id] = write
    table.insert(order, write)
  end
  for _, argument in ipairs({...}) do table.insert(write[3], argument) end
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
  for stage = 1, 3 do
    local due = call('ZRANGEBYSCORE', of_stage(stage, 'deadlines'), '-inf', exact(now))
    for _, id in ipairs(due) do
      begin_writing()
      local lease = lease_of(id)
      count('expired')
      call('HINCRBY', key('expired'), lease[WORKER], 1)
      take_back(id, lease, string.format('lease of %s expired: not renewed within %g s',
                                         lease[WORKER], lease[TTL]))
    end
  end
  flush()
end

-- Dropped groups that new ones replace; in ordered mode a step is its ordinals.
local function made_up_for() return run.ordered == 1 and 0 or run.dropped end

-- Makes the next block, with the survivors that were parked, if window and memory have room.
local function mint_block()
  local start, fresh, fields = run.next_block * run.block, {}, {}
  if run.total and start >= run.total + math.ceil(made_up_for() / run.block) * run.block then
    return false
  end
  for ordinal = start, start + run.block - 1 do
    if not is_acked(ordinal) then
      table.insert(fresh, ordinal)
      table.insert(fields, whole(ordinal))
    end
  end
  if call('HLEN', key('items')) + #fresh > run.window then return false end
  begin_writing()
  if full then return false end
  run.next_block = run.next_block + 1
  call('HSET', meta, 'next_block', whole(run.next_block))
  if call('EXISTS', key('parked')) == 1 then load(parked, 'parked', fields) end
  for i, ordinal in ipairs(fresh) do
    local item = parked[fields[i]]
    if item then later('HDEL', key('parked'), fields[i]) end
    if item and item[LEASE] ~= '' then
      put_item(ordinal, item)
    else
      make_ready(ordinal, item or {SAMPLE, 0, 0, '', now, {}, 0})
    end
  end
  flush()
  return true
end

-- The ready ordinals of the lowest n blocks that have any.
local function next_blocks(n)
  local ready, size, ordinals, from = of_stage(SAMPLE, 'ready'), run.block, {}, 0
  for _ = 1, n do
    local lowest = call('ZRANGEBYSCORE', ready, from, '+inf', 'LIMIT', 0, 1)[1]
    while not lowest and mint_block() do
      lowest = call('ZRANGEBYSCORE', ready, from, '+inf', 'LIMIT', 0, 1)[1]
    end
    if not lowest then break end
    local block_end = (math.floor(tonumber(lowest) / size) + 1) * size
    for _, member in ipairs(call('ZRANGEBYSCORE', ready, from, '(' .. whole(block_end))) do
      table.insert(ordinals, tonumber(member))
    end
    from = block_end
  end
  return ordinals
end

-- The first n ordinals that are neither acked nor being trained; none unless all are ready.
local function next_step(n)
  local ordinals, ordinal, ready = {}, run.next_unacked, of_stage(TRAIN, 'ready')
  while #ordinals < n do
    if call('ZSCORE', ready, whole(ordinal)) then
      table.insert(ordinals, ordinal)
    elseif not is_acked(ordinal) then
      local item = item_of(ordinal)
      if #ordinals > 0 or not item or item[STAGE] ~= TRAIN then return {} end
    end
    ordinal = ordinal + 1
  end
  return ordinals
end

-- n ordinals from `first` on; none unless each is ready or in this worker's hands.
local function share(first, n, worker)
  local ordinals, fields, held, ids = {}, {}, {}, {}
  for ordinal = first, first + n - 1 do
    table.insert(ordinals, ordinal)
    table.insert(fields, whole(ordinal))
  end
  load(items, 'items', fields)
  for _, field in ipairs(fields) do
    local item = items[field]
    if not item or item[STAGE] ~= TRAIN then return {} end
    if item[LEASE] ~= '' then table.insert(held, item[LEASE]) end
  end
  load(leases, 'leases', held)
  for _, id in ipairs(held) do
    if leases[id][WORKER] ~= worker then return {} end
  end
  if #held > 0 then begin_writing() end
  for _, id in ipairs(held) do give_back(id, leases[id]) end
  flush()
  return ordinals
end

local function shown(ids, ordinals)
  local answer, payloads = {}, many('payloads', ordinals)
  for i, id in ipairs(ids) do
    local lease = leases[id]
    local item = items[ordinals[i]]
    answer[i] = {id, ordinals[i], exact(lease[TTL]), exact(lease[5]), item[FAILED] + 1,
                 payloads[i], item[REASONS],
                 whole(lease[ORDINAL] - lease[ORDINAL] % run.block)}
  end
  return answer
end

local function remember(result)
  call('SET', KEYS[2], cmsgpack.pack({request, result}), 'EX', REPLY_SECONDS)
end
local function remembered()
  local packed = again and call('GET', KEYS[2])
  local reply = packed and cmsgpack.unpack(packed)
  return reply and reply[1] == request and reply[2]
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

local operations = {}

function operations.lease(arguments)
  if run.closed == 1 then return {'closed'} end
  if is_fenced(arguments[5]) then return {'fenced', arguments[5]} end
  local stage, n, worker = NUMBERS[arguments[1]], tonumber(arguments[2]), arguments[4]
  local ttl = tonumber(arguments[3]) or run['ttl' .. stage]
  local in_order = stage == TRAIN and run.ordered == 1
  if in_order and n > run.window then
    return {'invalid', string.format(
      '%s asks to_train for n=%s in order; only %s fit the window, so they would never be ready '
      .. 'together', worker, whole(n), whole(run.window))}
  end
  expire()
  see(worker)
  local before, ids, fields = remembered() or {}, {}, {}
  load_leases(before)
  for _, id in ipairs(before) do  -- what this request was given and still holds
    if leases[id] then
      table.insert(ids, id)
      table.insert(fields, whole(leases[id][ORDINAL]))
    end
  end
  if #ids > 0 then return {'ok', shown(ids, fields)} end
  local ordinals
  local from = tonumber(arguments[6])
  if stage == SAMPLE then
    ordinals = next_blocks(n)
  elseif in_order and from then
    ordinals = share(from, n, worker)
  elseif in_order then
    ordinals = next_step(n)
  else
    ordinals = call('ZRANGE', of_stage(stage, 'ready'), 0, whole(n - 1))
  end
  if #ordinals == 0 then
    if call('HEXISTS', key('newest'), worker) == 1 then
      begin_writing()
      call('HDEL', key('newest'), worker)
    end
    return {'ok', {}}
  end
  begin_writing()
  for i, member in ipairs(ordinals) do fields[i] = whole(tonumber(member)) end
  load(items, 'items', fields)
  local redelivered, first = 0, run.lease_count + 1
  for i, field in ipairs(fields) do
    local ordinal, item = tonumber(field), items[field]
    take_ready(ordinal, stage)
    later('RPUSH', of_stage(stage, 'waits'), exact(now - item[SINCE]))
    run.lease_count = run.lease_count + 1
    local id = run.incarnation .. '.' .. whole(run.lease_count) .. '.' .. stage .. '.' .. field
    local lease = {ordinal, stage, worker, ttl, now + ttl, first}
    item[LEASE] = id
    put_item(ordinal, item)
    leases[id], ids[i] = lease, id
    later('HSET', key('leases'), id, cmsgpack.pack(lease))
    later('ZADD', of_stage(stage, 'deadlines'), exact(lease[5]), id)
    if item[FAILED] > 0 then redelivered = redelivered + 1 end
  end
  flush()
  call('LTRIM', of_stage(stage, 'waits'), -KEPT_WAITS, -1)
  call('HSET', meta, 'lease_count', whole(run.lease_count))
  call('HSET', key('newest'), worker, whole(first))
  forget_idle_workers()
  if redelivered > 0 then count('redelivered', redelivered) end
  remember(ids)
  return {'ok', shown(ids, fields)}
end

function operations.renew(ids)
  expire()
  begin_writing()
  local held = {}
  load(leases, 'leases', ids)
  for _, id in ipairs(ids) do
    local lease = lease_of(id)
    if lease then
      later('ZADD', of_stage(lease[2], 'deadlines'), exact(now + lease[TTL]), id)
      table.insert(held, id)
    end
  end
  return {'ok', held}
end

function operations.complete(given)
  local before = remembered()
  if before then return {'ok', before} end
  expire()
  begin_writing()
  local completions, ids, acked = {}, {}, acked_count()
  for i = 1, #given, 2 do table.insert(ids, given[i]) end
  load_leases(ids)
  for i = 1, #given, 2 do
    local lease = lease_of(given[i])
    if lease and lease[2] == TRAIN then
      return {'invalid', string.format('ordinal %s is in to_train, where it is acked instead',
                                       whole(lease[ORDINAL]))}
    end
    if lease and lease[2] == SAMPLE and full then return {'full'} end
  end
  for i = 1, #given, 2 do
    local id, payload = given[i], given[i + 1]
    local lease = lease_of(id)
    if lease then
      local item = item_of(lease[ORDINAL])
      drop_lease(id, lease)
      later('HSET', key('payloads'), whole(lease[ORDINAL]), payload)
      if lease[2] == SAMPLE then item[SAMPLED_AT] = acked end
      item[STAGE], item[FAILED] = lease[2] + 1, 0
      make_ready(lease[ORDINAL], item)
    else
      count('too_late')
    end
    table.insert(completions, lease and 1 or 0)
  end
  remember(completions)
  return {'ok', completions}
end

function operations.fail(given)
  local before = remembered()
  if before then return {'ok', before} end
  expire()
  begin_writing()
  local completions = {}
  for i = 1, #given, 3 do
    local lease = lease_of(given[i])
    if lease then
      fail(given[i], lease, given[i + 1], given[i + 2] == 'data')
    else
      count('too_late')
    end
    table.insert(completions, lease and 1 or 0)
  end
  remember(completions)
  return {'ok', completions}
end

function operations.release(ids)
  expire()
  begin_writing()
  load_leases(ids)
  for _, id in ipairs(ids) do
    local lease = lease_of(id)
    if lease then give_back(id, lease) end
  end
  return {'ok'}
end

function operations.release_worker(arguments)
  local worker, reason = arguments[1], arguments[2]
  expire()
  local held, all = {}, call('HGETALL', key('leases'))
  for i = 1, #all, 2 do
    local lease = cmsgpack.unpack(all[i + 1])
    if lease[WORKER] == worker then table.insert(held, {all[i], lease}) end
  end
  if #held > 0 then begin_writing() end
  table.sort(held, function(a, b) return a[2][ORDINAL] < b[2][ORDINAL] end)
  for _, pair in ipairs(held) do take_back(pair[1], pair[2], reason) end
  return {'ok', #held}
end

function operations.fence()
  begin_writing()
  count('fences')
  run.fences = (run.fences or 0) + 1
  return {'ok', epoch()}
end

function operations.ack(ordinals)
  local given = table.remove(ordinals, 1)
  if is_fenced(given) then return {'fenced', given} end
  expire()
  begin_writing()
  local trained = tonumber(table.remove(ordinals, 1))  -- so many; the others are dropped
  load(items, 'items', ordinals)
  for i, text in ipairs(ordinals) do
    local ordinal = tonumber(text)
    ordinals[i] = ordinal
    if not is_acked(ordinal) then
      local item = item_of(ordinal)
      if not item or item[STAGE] ~= TRAIN then
        local where = item and 'in ' .. STAGES[item[STAGE]] or 'not handed out'
        return {'invalid', string.format('cannot ack ordinal %s: it is %s, not in to_train', text,
                                         where)}
      end
    end
  end
  for i, ordinal in ipairs(ordinals) do
    if not is_acked(ordinal) then
      local item = item_of(ordinal)
      if item[LEASE] ~= '' then
        drop_lease(item[LEASE], lease_of(item[LEASE]))
      else
        take_ready(ordinal, TRAIN)
      end
      later('HDEL', key('items'), whole(ordinal))
      later('HDEL', key('payloads'), whole(ordinal))
      newly_acked[ordinal] = true
      if i > trained then run.dropped = run.dropped + 1 end
    end
  end
  while true do
    local known = newly_acked[run.next_unacked]
    if not known and (not some_acked
                      or call('ZREM', key('acked'), whole(run.next_unacked)) == 0) then break end
    newly_acked[run.next_unacked] = nil
    run.next_unacked = run.next_unacked + 1
  end
  for ordinal in pairs(newly_acked) do later('ZADD', key('acked'), whole(ordinal), whole(ordinal)) end
  call('HSET', meta, 'next_unacked', whole(run.next_unacked), 'dropped', whole(run.dropped))
  return {'ok'}
end

function operations.frontier()
  return {'ok', {whole(run.next_unacked), whole(run.dropped), call('ZRANGE', key('acked'), 0, -1)}}
end

-- The groups that a learner which goes on from a frontier may train with: see `ReplayQueue.restart`.
local function survivors_of(is_out, acked)
  local survivors = {}
  for _, packed in ipairs(call('LRANGE', key('quarantine'), 0, -1)) do
    local given_up = cmsgpack.unpack(packed)
    if is_out(given_up[1]) then
      survivors[whole(given_up[1])] = {TRAIN, 0, 1, '', now, given_up[3], 0}
    end
  end
  for _, name in ipairs({'parked', 'items'}) do
    local all = call('HGETALL', key(name))
    for i = 1, #all, 2 do
      local field, item = all[i], cmsgpack.unpack(all[i + 1])
      local known = run.ordered == 1 or item[TOMBSTONE] == 1
                    or item[STAGE] ~= SAMPLE and item[SAMPLED_AT] < acked
      if known and is_out(tonumber(field)) then
        if item[STAGE] == TRAIN then item[LEASE] = '' end  -- the learner is a new one
        survivors[field] = item
      else
        later('HDEL', key('payloads'), field)
      end
    end
  end
  return survivors
end

function operations.restart(arguments)
  if is_fenced(arguments[1]) then return {'fenced', arguments[1]} end
  expire()
  begin_writing()
  local next_unacked, above = tonumber(arguments[2]), {}
  for i = 4, #arguments do above[tonumber(arguments[i])] = true end
  local function is_out(ordinal) return ordinal >= next_unacked and not above[ordinal] end
  local survivors = survivors_of(is_out, next_unacked + #arguments - 3)
  clear({'items', 'parked', 'acked'})
  clear_stages({'ready', 'since', 'waits'})
  items, parked, some_acked = {}, {}, nil
  for field, item in pairs(survivors) do
    later('HSET', key('parked'), field, cmsgpack.pack(item))
  end
  for ordinal in pairs(above) do later('ZADD', key('acked'), whole(ordinal), whole(ordinal)) end
  flush()
  run.next_unacked, run.dropped = next_unacked, tonumber(arguments[3])
  run.next_block = math.floor(next_unacked / run.block)
  call('HSET', meta, 'next_unacked', whole(run.next_unacked), 'dropped', whole(run.dropped),
       'next_block', whole(run.next_block))
  while call('EXISTS', key('parked')) == 1 and mint_block() do end
  local held = call('HKEYS', key('leases'))
  load_leases(held)
  for _, id in ipairs(held) do
    local item = items[whole(leases[id][ORDINAL])]
    if not item or item[LEASE] ~= id then drop_lease(id, leases[id]) end
  end
  local left = call('HGETALL', key('parked'))
  for i = 1, #left, 2 do
    local item = cmsgpack.unpack(left[i + 1])
    item[LEASE] = ''
    later('HSET', key('parked'), left[i], cmsgpack.pack(item))
  end
  return {'ok'}
end

-- The queue of a run: taken up where it is one of the same identity, else empty from ordinal 0; with
-- the settings given as field and value. Taken while another owner is at work.
function operations.open(arguments)
  local owner, seconds, identity = arguments[1], tonumber(arguments[2]), arguments[3]
  local before = call('HMGET', meta, 'owner', 'seen', 'identity')
  if before[1] and before[1] ~= owner and now - (tonumber(before[2]) or 0) < seconds then
    return {'taken', before[1]}
  end
  local goes_on = found[1] and before[3] == identity
  if goes_on then expire() end
  begin_writing()
  if goes_on then  -- whoever held leases ended with the run's last command
    call('HDEL', meta, 'closed', 'total')
    local held = call('HKEYS', key('leases'))
    load_leases(held)
    for _, id in ipairs(held) do give_back(id, leases[id]) end
    clear({'newest'})
  else
    clear({'meta', 'items', 'parked', 'payloads', 'leases', 'newest', 'acked', 'quarantine',
           'reasons', 'expired', 'seen'})
    clear_stages({'ready', 'since', 'deadlines', 'waits'})
    call('HSET', meta, 'next_unacked', 0, 'dropped', 0, 'next_block', 0, 'lease_count', 0,
         'incarnation', arguments[4])
  end
  call('HSET', meta, 'owner', owner, 'seen', exact(now), 'identity', identity,
       unpack(arguments, 5))
  return {'ok', goes_on and 1 or 0}
end

function operations.close()
  begin_writing()
  call('HSET', meta, 'closed', 1, 'seen', 0)
  return {'ok'}
end

function operations.quarantine()
  local given_up = {}
  for _, packed in ipairs(call('LRANGE', key('quarantine'), 0, -1)) do
    local entry = cmsgpack.unpack(packed)
    table.insert(given_up, {whole(entry[1]), entry[2], entry[3]})
  end
  return {'ok', given_up}
end

-- Asked by who runs the queue: it is seen to be at work.
function operations.stats()
  expire()
  begin_writing()
  if run.closed ~= 1 then call('HSET', meta, 'seen', exact(now)) end
  local stages = {}
  for stage = 1, 3 do
    local oldest = call('ZRANGE', of_stage(stage, 'since'), 0, 0, 'WITHSCORES')[2]
    table.insert(stages, {call('ZCARD', of_stage(stage, 'ready')),
                          call('ZCARD', of_stage(stage, 'deadlines')),
                          exact(oldest and now - tonumber(oldest) or 0),
                          call('LRANGE', of_stage(stage, 'waits'), 0, -1)})
  end
  local counters = call('HMGET', meta, 'quarantined', 'redelivered', 'expired', 'too_late')
  for i = 1, 4 do counters[i] = tonumber(counters[i]) or 0 end
  local held, flat = {}, {}
  local lately = exact(now - SEEN_SECONDS - SEEN_STEP)
  for _, worker in ipairs(call('ZRANGEBYSCORE', key('seen'), lately, '+inf')) do held[worker] = 0 end
  for _, packed in ipairs(call('HVALS', key('leases'))) do
    local worker = cmsgpack.unpack(packed)[WORKER]
    held[worker] = (held[worker] or 0) + 1
  end
  for worker, leases_of_it in pairs(held) do
    table.insert(flat, worker)
    table.insert(flat, leases_of_it)
  end
  return {'ok', {stages, call('HLEN', key('items')), run.window,
                 whole(acked_count()), whole(run.dropped),
                 whole(made_up_for()), run.total and whole(run.total) or false, counters,
                 call('HGETALL', key('expired')), call('LRANGE', key('reasons'), 0, -1),
                 run.closed == 1 and 1 or 0, flat}}
end

local arguments = {}
for i = 5, #ARGV do arguments[i - 4] = ARGV[i] end
local answer = operations[operation](arguments)
flush()
return answer
