-- A learner goes on from a frontier, see `ReplayQueue.restart`, in Redis; redis_ready.lua goes before.
--
-- It takes several calls, since Redis serves nobody else in a call: one `restart`, and `restart_on`
-- until it says 0. Between them the queue hands out nothing and takes nothing in. At each moment no
-- survivor is lost, so that another restart may begin in the midst of one.
--
-- `restarting` of meta: how far it is. First the parked groups are looked through, then those that
-- are out; then the blocks up to the last survivor's are filled up with new groups.
local operations = {}
local PHASE, CURSOR, LIMIT, LAST, ACKED = 1, 2, 3, 4, 5
local PARKED, OUT, FILL = 1, 2, 3
local PIECE = 4000
local GOES_ON = {restart = true, restart_on = true, open = true, close = true, fence = true,
                 stats = true, quarantine = true, frontier = true}

local function save(at)
  flush()
  call('HSET', meta, 'restarting', cmsgpack.pack(at))
end

-- Whether a learner that goes on from the frontier may train with it.
local function survives(ordinal, item, acked)
  return not is_acked(ordinal)
         and (run.ordered == 1 or item[TOMBSTONE] == 1
              or item[STAGE] ~= SAMPLE and item[SAMPLED_AT] < acked)
end

local function take_out(field, item)
  if item[LEASE] ~= '' then
    drop_lease(item[LEASE], lease_of(item[LEASE]))
  else
    take_ready(tonumber(field), item[STAGE])
  end
  later('HDEL', key('items'), field)
end

-- Where the blocks end that the window has room for.
local function room_until(above)
  local size, out = run.block, 0
  local start = run.next_block * size
  local last = run.total and run.total + math.ceil(made_up_for() / size) * size or math.huge
  while start < last do
    for ordinal = start, start + size - 1 do
      if ordinal >= run.next_unacked and not above[ordinal] then out = out + 1 end
    end
    if out > run.window then break end
    start = start + size
  end
  return start
end

-- What is quarantined stays so, acked since or not.
local function park_quarantined(acked)
  for _, packed in ipairs(call('LRANGE', key('quarantine'), 0, -1)) do
    local ordinal, _, reasons = unpack(cmsgpack.unpack(packed))
    local field = whole(ordinal)
    local out = item_of(ordinal)
    load(parked, 'parked', {field})
    local survivor = out or parked[field]
    if not is_acked(ordinal) and not (survivor and survives(ordinal, survivor, acked)) then
      if out then take_out(field, out) end
      items[field] = false
      later('HDEL', key('payloads'), field)
      later('HSET', key('parked'), field, cmsgpack.pack({TRAIN, 0, 1, '', now, reasons, 0}))
    end
  end
end

function operations.restart(arguments)
  local epoch_given = arguments[1]
  if is_fenced(epoch_given) then return {'fenced', epoch_given} end
  if epoch_given ~= '' and run.begun == run.fences then return {'ok'} end  -- sent again
  expire()
  begin_writing()
  local above = {}
  clear({'acked'})
  clear_stages({'waits'})
  for i = 4, #arguments do
    above[tonumber(arguments[i])] = true
    later('ZADD', key('acked'), arguments[i], arguments[i])
  end
  flush()
  run.next_unacked, run.dropped = tonumber(arguments[2]), tonumber(arguments[3])
  run.next_block = math.floor(run.next_unacked / run.block)
  if epoch_given ~= '' then call('HSET', meta, 'begun', whole(run.fences)) end
  call('HSET', meta, 'next_unacked', whole(run.next_unacked), 'dropped', whole(run.dropped),
       'next_block', whole(run.next_block), 'restarted', exact(now))
  local at = {PARKED, '0', room_until(above), -1, acked_count()}
  park_quarantined(at[ACKED])
  save(at)
  return {'ok'}
end

local LOOK = {}

LOOK[PARKED] = function(field, ordinal, item, at)
  if ordinal < at[LIMIT] then
    later('HDEL', key('parked'), field)
    make_ready(ordinal, item)
  end
end

LOOK[OUT] = function(field, ordinal, item, at)
  if ordinal >= at[LIMIT] then
    take_out(field, item)
    item[LEASE] = ''
    later('HSET', key('parked'), field, cmsgpack.pack(item))
  elseif item[STAGE] == TRAIN and item[LEASE] ~= '' then  -- the learner is a new one
    items[field] = item
    give_back(item[LEASE], lease_of(item[LEASE]))
  end
end

-- The next piece of a hash; returns whether it was the last one.
local function look_through(name, at)
  local cursor, all = unpack(call('HSCAN', key(name), at[CURSOR], 'COUNT', PIECE))
  for i = 1, #all, 2 do
    local field, ordinal, item = all[i], tonumber(all[i]), cmsgpack.unpack(all[i + 1])
    if survives(ordinal, item, at[ACKED]) then
      at[LAST] = math.max(at[LAST], ordinal)
      LOOK[at[PHASE]](field, ordinal, item, at)
    else
      if name == 'items' then take_out(field, item) else later('HDEL', key(name), field) end
      later('HDEL', key('payloads'), field)
    end
  end
  at[CURSOR] = cursor
  return cursor == '0'
end

-- The next piece of the ordinals that are to be out.
local function fill_up(at)
  local last = math.min(at[LIMIT], (math.floor(at[LAST] / run.block) + 1) * run.block)
  local from, fields = tonumber(at[CURSOR]), {}
  for ordinal = from, math.min(last, from + PIECE) - 1 do
    if not is_acked(ordinal) then table.insert(fields, whole(ordinal)) end
  end
  load(items, 'items', fields)
  for _, field in ipairs(fields) do
    if not items[field] then make_ready(tonumber(field), new_item()) end
  end
  at[CURSOR] = whole(from + PIECE)
  if from + PIECE < last then return false end
  run.next_block = math.max(run.next_block, last / run.block)
  call('HSET', meta, 'next_block', whole(run.next_block))
  return true
end

-- '1' after the epoch goes through all of it once more: a cursor means nothing to another process
-- of Redis, and what was done already changes nothing.
function operations.restart_on(arguments)
  if is_fenced(arguments[1]) then return {'fenced', arguments[1]} end
  local at = restarting
  if not at then return {'ok', 0} end  -- it is done, and the answer was lost
  begin_writing()
  if arguments[2] == '1' then at[PHASE], at[CURSOR] = PARKED, '0' end
  if at[PHASE] == FILL then
    if fill_up(at) then
      call('HDEL', meta, 'restarting')
      return {'ok', 0}
    end
  elseif look_through(at[PHASE] == PARKED and 'parked' or 'items', at) then
    at[PHASE] = at[PHASE] + 1
    if at[PHASE] == FILL then at[CURSOR] = whole(run.next_block * run.block) end
  end
  save(at)
  return {'ok', 1}
end
