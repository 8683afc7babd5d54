-- Which groups are handed out next, in Redis; redis_groups.lua goes before.

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
    if parked[fields[i]] then later('HDEL', key('parked'), fields[i]) end
    make_ready(ordinal, parked[fields[i]] or new_item())
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
  if first + n > run.next_block * run.block then return {} end  -- they are not out
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
