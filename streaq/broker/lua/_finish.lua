-- any state -> done. The end of a task and all that follows from it: its result stored and
-- published, its key gone, and its dependents released or failed, however deep they go.

-- What the caller may want to tell hooks: dependents released, failed or skipped.
local events = {}

local function tell(what, id, t, by)
  events[#events + 1] = {
    what, id, t.fn or '', t.pri or '', by, t.made or '', t.due or '', t.kind or '', t.head or '',
    t.links or '',
  }
end

-- Of a result that is not kept (ttl 0), its first lines are, for so long: enqueueing or settling it
-- again, because an answer was lost, finds that the task has ended.
local TOMBSTONE_MS = 60000
local WITHOUT_WORDS = '^' .. string.rep('[^\n]*\n', 11)

-- Keep a result record for its time, and publish it.
local function put(id, record, keep)
  if keep ~= 0 then
    local key = base .. 'result:' .. id
    if keep > 0 then
      redis.call('SET', key, record, 'PX', int(keep))
      longest_keep = math.max(longest_keep, keep)
    else
      redis.call('SET', key, record)
      longest_keep = math.max(longest_keep, 86400000 * 365)
    end
    ended[#ended + 1] = id
  else
    redis.call('SET', base .. 'ended:' .. id, string.match(record, WITHOUT_WORDS), 'PX', TOMBSTONE_MS)
  end
  redis.call('PUBLISH', base .. 'done:' .. id, record)
end

-- The result record of a task that no attempt ended: one line a field, the serialised value last
-- (see wire.py).
local function make_record(id, t, status, reason, value, text)
  return table.concat({
    '1', status, reason, t.fn or '', id, t.made or '', message_ms(t.msg), t.began or '', now_text,
    t.try or '0', t.who or '', t.pri or '', t.due or '', '', text or '', t.log or '', value or '',
  }, '\n')
end

local function store(id, t, status, reason, value, text, keep)
  local record = make_record(id, t, status, reason, value, text)
  tally(reason == 'expired' and 'expired' or status, t.pri)
  put(id, record, tonumber(keep or t.keep) or DEFAULT_KEEP)
  return record
end

-- status, value and trace of a record
local function read_record(record)
  local from = 1
  local fields = {}
  for i = 1, 16 do
    local stop = string.find(record, '\n', from, true)
    fields[i] = string.sub(record, from, stop - 1)
    from = stop + 1
  end
  return fields[2], string.sub(record, from), fields[14]
end

local DEPENDENT = { 'state', 'fn', 'pri', 'made', 'kind', 'head', 'keep', 'needs', 'due', 'links',
  'deps' }

local function read_dependent(id)
  local raw = redis.call('HMGET', base .. 'task:' .. id, unpack(DEPENDENT))
  local t = {}
  for i, name in ipairs(DEPENDENT) do
    t[name] = raw[i] or nil
  end
  return t
end

-- blocked -> done, without having run
local function end_blocked(id, t, status, reason, value, text)
  redis.call('ZREM', base .. 'blocked:' .. t.pri, id)
  for _, other in ipairs(redis.call('SMEMBERS', base .. 'dependencies:' .. id)) do
    redis.call('HDEL', base .. 'dependents:' .. other, id)
  end
  redis.call('DEL', base .. 'dependencies:' .. id, base .. 'task:' .. id)
  store(id, t, status, reason, value, text)
end

-- blocked -> queued, when nothing else is waited for
local function release(id, t, by)
  if redis.call('SCARD', base .. 'dependencies:' .. id) > 0 then
    return
  end
  redis.call('ZREM', base .. 'blocked:' .. t.pri, id)
  enqueue(id, t.pri, now_text)
  tell('released', id, t, by.id)
end

-- What the end of `by` means for one task that waits for it; returns an end that follows from it.
local function settle_dependent(id, mode, by)
  redis.call('SREM', base .. 'dependencies:' .. id, by.id)
  local t = read_dependent(id)
  if t.state ~= 'blocked' then
    return nil
  end
  if by.ok and mode == 'otherwise' then
    end_blocked(id, t, 'success', 'skipped', by.value, '')
    tell('skipped', id, t, by.id)
    return { id = id, ok = true, value = by.value, trace = by.trace }
  end
  local input = nil
  if by.ok and mode == 'then' then
    input = by.value
  elseif not by.ok and mode == 'otherwise' then
    input = by.input
  end
  if by.trace and by.trace ~= '' then
    t.links = t.links and (t.links .. ' ' .. by.trace) or by.trace
  end
  local runnable = (by.ok or mode == 'otherwise') and not (mode ~= 'after' and t.needs and not input)
  if not runnable then
    end_blocked(id, t, 'failed', 'dependency', '', 'task ' .. by.id .. ' ' .. by.text)
    tell('failed', id, t, by.id)
    return { id = id, ok = false, text = 'failed because a task before it did', trace = by.trace }
  end
  local key = base .. 'task:' .. id
  if input then
    redis.call('HSET', key, 'input', input)
  end
  if t.links then
    redis.call('HSET', key, 'links', t.links)
  end
  release(id, t, by)
  return nil
end

local function settle_dependents(root)
  local stack = { root }
  while #stack > 0 do
    local by = table.remove(stack)
    local key = base .. 'dependents:' .. by.id
    local waiting = redis.call('HGETALL', key)
    redis.call('DEL', key)
    for i = 1, #waiting, 2 do
      stack[#stack + 1] = settle_dependent(waiting[i], waiting[i + 1], by)
    end
  end
end

local FAILURE = {
  failed = 'failed', aborted = 'was aborted', refused = 'was refused',
}

-- The worker wrote the record itself: nothing of it is looked at unless somebody waits for it.
local function finish_written(id, record, keep, deps)
  local input = nil
  local key = base .. 'task:' .. id
  if deps then
    input = redis.call('HGET', key, 'input') or nil
  end
  redis.call('DEL', key)
  put(id, record, keep)
  if deps then
    local status, value, trace = read_record(record)
    settle_dependents({
      id = id, ok = status == 'success', value = value, input = input, trace = trace,
      text = FAILURE[status] or 'failed',
    })
  end
end

-- The end of a task outside of an attempt: t holds its fields; `ending` has status, reason, value,
-- text, keep. What waits for it links to the attempt that it had last.
local function finish(id, t, ending)
  local input = nil
  if t.deps then
    input = redis.call('HGET', base .. 'task:' .. id, 'input') or nil
  end
  redis.call('DEL', base .. 'task:' .. id)
  store(id, t, ending.status, ending.reason, ending.value, ending.text, ending.keep)
  if t.deps then
    settle_dependents({
      id = id, ok = ending.status == 'success', value = ending.value, input = input,
      trace = t.trace, text = FAILURE[ending.status] or 'failed',
    })
  end
end

-- A repeating schedule that ends. Its first firing, which has its id, may be waited for: one that
-- will not come ends as an aborted task does, though it never came in and so is not counted.
local function end_schedule(id, text)
  local key = base .. 'schedule:' .. id
  local s = hash(redis.call('HGETALL', key))
  redis.call('ZREM', base .. 'schedules', id)
  redis.call('DEL', key)
  if s.fn and not s.fired then
    put(id, make_record(id, s, 'aborted', 'user', '', ''), tonumber(s.keep) or DEFAULT_KEEP)
    settle_dependents({ id = id, ok = false, text = text })
  end
end
