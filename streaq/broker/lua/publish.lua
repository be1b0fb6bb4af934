-- include _base _finish
-- new -> queued, scheduled, blocked or repeating: tasks, the links of a pipeline in their order.
-- new -> done: what it waits for has ended already, and forces its end
--
-- ARGV: count of tasks, each: id, fn, priority, args, more. `more` is empty for a plain task, which
--   is due at once and waits for nobody; else a JSON object of whatever is not the default:
--   head (headers), due ('+ms' from now, or the ms; of a repeating schedule its first firing),
--   till (expires in ms), keep (ms), kind, needs (1 when its input comes from the task before it),
--   tab and tz (crontab and its time zone), deps (list of {id, mode}; after | then | otherwise),
--   again (1 when this may have been written before: the answer to that was lost. Only then is it
--   looked for among those that ended a minute ago or less and keep no result).
-- Reply: now, a word per task (queued, scheduled, blocked, repeating, exists, done), events.

-- Records of tasks that ended right here, for the links after them: they may not be kept at all.
local written = {}

-- To wait for a task's value and for the task is to wait for its value, in whatever order.
local function wait_for(id, dep, mode)
  local command = mode == 'after' and 'HSETNX' or 'HSET'
  redis.call(command, base .. 'dependents:' .. dep, id, mode)
  redis.call('SADD', base .. 'dependencies:' .. id, dep)
end

-- Wait for one dependency. Returns how many are pending for it (0 or 1), or the end it forces.
local function depend(id, t, dep, mode)
  if redis.call('EXISTS', base .. 'task:' .. dep) == 1 then
    wait_for(id, dep, mode)
    redis.call('HSET', base .. 'task:' .. dep, 'deps', '1')
    return 1
  end
  -- A schedule's id is that of its first firing.
  local schedule = redis.call('HMGET', base .. 'schedule:' .. dep, 'fn', 'fired')
  if schedule[1] and not schedule[2] then
    wait_for(id, dep, mode)
    return 1
  end
  local record = written[dep] or redis.call('GET', base .. 'result:' .. dep)
  if not record then
    return nil, 'failed', 'task ' .. dep .. ' is not known, or its result has expired'
  end
  local status, value, trace = read_record(record)
  if trace ~= '' then
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
      written[id] = store(id, t, status, ok and 'skipped' or 'dependency', ok and detail or '',
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

local function due_at(word)
  if not word then
    return now_text
  elseif string.sub(word, 1, 1) == '+' then
    return int(now + tonumber(string.sub(word, 2)))
  end
  return word
end

local function publish_plain(id, fn, pri, args)
  local key = base .. 'task:' .. id
  if redis.call('EXISTS', key, base .. 'result:' .. id) > 0 then
    return 'exists'
  end
  local msg = redis.call('XADD', base .. 'stream:' .. pri, '*', 'id', id)
  redis.call('HSET', key, 'state', 'queued', 'fn', fn, 'pri', pri, 'args', args, 'made', now_text,
    'due', now_text, 'msg', msg)
  tally('enqueued', pri)
  return 'queued'
end

local function publish(id, fn, pri, args, more)
  local key = base .. 'task:' .. id
  if redis.call('EXISTS', key, base .. 'result:' .. id, base .. 'schedule:' .. id) > 0 then
    return 'exists'
  end
  local t = cjson.decode(more)
  if t.again and redis.call('EXISTS', base .. 'ended:' .. id) == 1 then
    return 'exists'
  end
  t.fn, t.pri, t.args, t.made, t.due = fn, pri, args, now_text, due_at(t.due)
  t.kind = t.kind or 'immediate'
  if t.till then
    t.span = t.till
    t.till = int(now + tonumber(t.till))
  end
  if t.tab then
    return repeat_on(id, t, t.tab, t.tz or '')
  end
  tally('enqueued', pri)
  return place(id, t, t.deps or {})
end

local seen = {}
local words = {}
local at = 2
for i = 1, tonumber(ARGV[1]) do
  local id, fn, pri, args, more = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  at = at + 5
  seen[pri] = true
  if more == '' then
    words[i] = publish_plain(id, fn, pri, args)
  else
    words[i] = publish(id, fn, pri, args, more)
  end
end
for pri in pairs(seen) do
  redis.call('SADD', base .. 'priorities', pri)
end
flush()
return { now_text, words, events }
