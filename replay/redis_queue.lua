-- The transitions of the replay queue inside Redis, one for each call. redis_groups.lua,
-- redis_ready.lua and redis_restart.lua go before.

function operations.lease(arguments)
  local joined = arguments[7]  -- the queue that the worker means; '' if it is any of the run's name
  if run.closed == 1 or joined ~= '' and joined ~= run.incarnation then return {'closed'} end
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
  local ids, fields = {}, {}
  local last, before = last_request()
  if last == request then
    load_leases(before)
    for _, id in ipairs(before) do  -- what this request was given and still holds
      if leases[id] then
        table.insert(ids, id)
        table.insert(fields, whole(leases[id][ORDINAL]))
      end
    end
    return {'ok', #ids > 0 and shown(ids, fields) or {}}
  end
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
    if again then remember({}) end  -- else it is the only one of its number
    return {'ok', {}}
  end
  begin_writing()
  for i, member in ipairs(ordinals) do fields[i] = whole(tonumber(member)) end
  load(items, 'items', fields)
  local redelivered, first = 0, run.lease_count + 1
  for i, field in ipairs(fields) do
    local ordinal, item = tonumber(field), items[field]
    take_ready(ordinal, stage)
    later('RPUSH', of_stage(stage, 'waits'), waited(item[SINCE]))
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

-- Why none of these may be completed or failed; nil: they may.
local function no_outcome(ids)
  load_leases(ids)
  for _, id in ipairs(ids) do
    local lease = lease_of(id)
    if lease and lease[2] == TRAIN then
      return {'invalid', string.format('ordinal %s is in to_train, where it is acked instead',
                                       whole(lease[ORDINAL]))}
    end
    if operation == 'complete' and full and lease and lease[2] == SAMPLE then return {'full'} end
  end
end

function operations.complete(given)
  expire()
  begin_writing()
  local completions, ids, acked = {}, {}, acked_count()
  for i = 1, #given, 2 do table.insert(ids, given[i]) end
  local refused = no_outcome(ids)
  if refused then return refused end
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
  return {'ok', completions}
end

function operations.fail(given)
  expire()
  begin_writing()
  local completions, ids = {}, {}
  for i = 1, #given, 3 do table.insert(ids, given[i]) end
  local refused = no_outcome(ids)
  if refused then return refused end
  for i = 1, #given, 3 do
    local lease = lease_of(given[i])
    if lease then
      fail(given[i], lease, given[i + 1], given[i + 2] == 'data')
    else
      count('too_late')
    end
    table.insert(completions, lease and 1 or 0)
  end
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

-- Tells a controller whose run another one has taken while it was away; '' is nobody's controller.
local function taken_from(owner)
  local now_at_work = owner ~= '' and call('HMGET', meta, 'owner', 'seen')
  if now_at_work and now_at_work[1] ~= owner then
    return {'taken', now_at_work[1], now_at_work[2], exact(now - now_at_work[2])}
  end
end

function operations.release_worker(arguments)
  local worker, reason, taken = arguments[1], arguments[2], taken_from(arguments[3])
  if taken then return taken end
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

function operations.fence(arguments)
  local taken = taken_from(arguments[1])
  if taken then return taken end
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

-- The queue of a run: taken up where it is one of the same identity, else empty from ordinal 0; with
-- the settings given as field and value. Taken while another owner is at work.
function operations.open(arguments)
  local owner, seconds, identity = arguments[1], tonumber(arguments[2]), arguments[3]
  local before = call('HMGET', meta, 'owner', 'seen', 'identity')
  local ago = now - (tonumber(before[2]) or 0)
  if before[1] and before[1] ~= owner and ago < seconds then
    return {'taken', before[1], before[2], exact(ago)}
  end
  local goes_on = found[1] and before[3] == identity
  begin_writing()
  if goes_on then  -- whoever held leases ended with the run's last command, however long ago
    call('HDEL', meta, 'closed', 'total', 'redelivered', 'expired', 'too_late')
    local held = call('HKEYS', key('leases'))
    load_leases(held)
    for _, id in ipairs(held) do give_back(id, leases[id]) end
    clear({'newest', 'expired', 'expired_at', 'seen'})
  else
    clear({'meta', 'items', 'parked', 'payloads', 'leases', 'newest', 'acked', 'quarantine',
           'reasons', 'expired', 'expired_at', 'seen'})
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

-- Asked by the owner, it is seen to be at work, and told whether memory is full.
function operations.stats(arguments)
  local taken = taken_from(arguments[1])
  if taken then return taken end
  expire()
  if run.closed ~= 1 and arguments[1] ~= '' then
    begin_writing()
    call('HSET', meta, 'seen', exact(now))
  end
  local stages = {}
  for stage = 1, 3 do
    local oldest = call('ZRANGE', of_stage(stage, 'since'), 0, 0, 'WITHSCORES')[2]
    table.insert(stages, {call('ZCARD', of_stage(stage, 'ready')),
                          call('ZCARD', of_stage(stage, 'deadlines')),
                          oldest and waited(tonumber(oldest)) or '0',
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
                 run.closed == 1 and 1 or 0, flat, full and 1 or 0}}
end

-- What a repetition must not do again; `lease` remembers by itself, and others may be done twice.
local ONCE = {open = true, complete = true, fail = true, release_worker = true, fence = true,
              restart = true, close = true}
local arguments = {}
for i = 5, #ARGV do arguments[i - 4] = ARGV[i] end
if found[1] then note_served() end
if restarting and run.closed ~= 1 and not GOES_ON[operation] then
  return operation == 'lease' and {'ok', {}} or {'restarting'}
end
local once = ONCE[operation]
if once or operation == 'lease' then
  local last, result = last_request()
  if request < last then
    return {'invalid', string.format('request %s comes after request %s of the same client',
                                     whole(request), whole(last))}
  end
  if once and request == last then return {'ok', result} end
end
local answer = operations[operation](arguments)
if once and answer[1] == 'ok' then remember(answer[2] or false) end
flush()
return answer
