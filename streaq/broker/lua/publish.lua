-- include _base _finish
-- new -> queued, scheduled or blocked: a batch of tasks, or the links of a pipeline in their order.
--
-- ARGV: count of tasks, each: id, fn, priority, args, headers, due, expires in ms ('' never),
--   keep ms ('' the default), kind, needs ('1' when its input comes from the task before it),
--   crontab, time zone, count of dependencies, each: id, mode (after | then | otherwise).
-- due: '0' at once, '+ms' from now, or the ms; of a repeating schedule: its first firing.
-- Reply: now, a word per task (queued, scheduled, blocked, repeating, exists, done), events.
local at = 1

local function next_arg()
  at = at + 1
  return ARGV[at]
end

local function read_dependencies()
  local list = {}
  for i = 1, tonumber(next_arg()) do
    list[i] = { next_arg(), next_arg() }
  end
  return list
end

-- status, value of a finished task; nil when there is no result (any more)
local function result_of(id)
  local record = redis.call('GET', base .. 'result:' .. id)
  if not record then
    return nil
  end
  local from = 1
  local fields = {}
  for i = 1, 16 do
    local stop = string.find(record, '\n', from, true)
    fields[i] = string.sub(record, from, stop - 1)
    from = stop + 1
  end
  return fields[2], string.sub(record, from), fields[13]
end

-- Wait for one dependency. Returns how many are pending for it (0 or 1), or the end it forces.
local function depend(id, t, dep, mode)
  if redis.call('EXISTS', base .. 'task:' .. dep) == 1 then
    redis.call('HSET', base .. 'dependents:' .. dep, id, mode)
    redis.call('HSET', base .. 'task:' .. dep, 'deps', '1')
    redis.call('SADD', base .. 'dependencies:' .. id, dep)
    return 1
  elseif redis.call('EXISTS', base .. 'schedule:' .. dep) == 1 then
    redis.call('HSET', base .. 'dependents:' .. dep, id, mode)
    redis.call('SADD', base .. 'dependencies:' .. id, dep)
    return 1
  end
  local status, value, trace = result_of(dep)
  if not status then
    return nil, 'failed', 'task ' .. dep .. ' is not known, or its result has expired'
  end
  if trace and trace ~= '' then
    t.links = t.links and (t.links .. ' ' .. trace) or trace
  end
  if status == 'success' then
    if mode == 'otherwise' then
      return nil, 'success', value
    elseif mode == 'then' then
      t.input = value
    end
    return 0
  elseif mode == 'otherwise' and not t.needs then
    return 0
  end
  return nil, 'failed', 'task ' .. dep .. ' failed'
end

local function forget_dependencies(id)
  for _, dep in ipairs(redis.call('SMEMBERS', base .. 'dependencies:' .. id)) do
    redis.call('HDEL', base .. 'dependents:' .. dep, id)
  end
  redis.call('DEL', base .. 'dependencies:' .. id)
end

local OPTIONAL = { 'head', 'till', 'keep', 'needs', 'input', 'links' }

local function write(id, t, state, extra, value)
  local fields = {
    'state', state, 'fn', t.fn, 'pri', t.pri, 'args', t.args, 'made', t.made, 'due', t.due,
    'kind', t.kind,
  }
  for _, name in ipairs(OPTIONAL) do
    if t[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = t[name]
    end
  end
  if extra then
    fields[#fields + 1] = extra
    fields[#fields + 1] = value
  end
  redis.call('HSET', base .. 'task:' .. id, unpack(fields))
end

local function repeat_on(id, t, tab, tz)
  local fields = { 'fn', t.fn, 'pri', t.pri, 'args', t.args, 'made', t.made, 'tab', tab, 'tz', tz }
  for _, name in ipairs({ 'head', 'keep', 'span' }) do
    if t[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = t[name]
    end
  end
  redis.call('HSET', base .. 'schedule:' .. id, unpack(fields))
  redis.call('ZADD', base .. 'schedules', t.due, id)
  announce(base .. 'schedules', id, t.due)
  return 'repeating'
end

local function place(id, t, dependencies)
  local pending = 0
  for _, dep in ipairs(dependencies) do
    local more, status, detail = depend(id, t, dep[1], dep[2])
    if not more then
      forget_dependencies(id)
      local ok = status == 'success'
      store(id, t, status, ok and 'skipped' or 'dependency', ok and detail or '',
        ok and '' or detail)
      tell(ok and 'skipped' or 'failed', id, t, dep[1])
      return 'done'
    end
    pending = pending + more
  end
  if pending > 0 then
    write(id, t, 'blocked')
    redis.call('ZADD', base .. 'blocked:' .. t.pri, t.made, id)
    return 'blocked'
  elseif tonumber(t.due) > now then
    write(id, t, 'scheduled')
    local zset = base .. 'due:' .. t.pri
    redis.call('ZADD', zset, t.due, id)
    announce(zset, id, t.due)
    return 'scheduled'
  end
  write(id, t, 'queued', 'msg', redis.call('XADD', base .. 'stream:' .. t.pri, '*', 'id', id))
  return 'queued'
end

local function given(value)
  return value ~= '' and value or nil
end

local function due_at(word)
  if word == '0' then
    return int(now)
  elseif string.sub(word, 1, 1) == '+' then
    return int(now + tonumber(string.sub(word, 2)))
  end
  return word
end

local seen = {}

local function publish()
  local id = next_arg()
  local t = {
    fn = next_arg(), pri = next_arg(), args = next_arg(), head = given(next_arg()),
    due = due_at(next_arg()), till = given(next_arg()), keep = given(next_arg()),
    kind = next_arg(), needs = given(next_arg()), made = int(now),
  }
  local tab, tz = next_arg(), next_arg()
  local dependencies = read_dependencies()
  seen[t.pri] = true
  if redis.call('EXISTS', base .. 'task:' .. id, base .. 'result:' .. id,
    base .. 'schedule:' .. id) > 0 then
    return 'exists'
  end
  if t.till then
    t.span = t.till
    t.till = int(now + tonumber(t.till))
  end
  if tab ~= '' then
    return repeat_on(id, t, tab, tz)
  end
  return place(id, t, dependencies)
end

local words = {}
for i = 1, tonumber(ARGV[1]) do
  words[i] = publish()
end
for pri in pairs(seen) do
  redis.call('SADD', base .. 'priorities', pri)
end
flush()
return { int(now), words, events }
