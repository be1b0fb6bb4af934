-- include _base _finish
-- queued, scheduled or blocked -> done (aborted); of a running task its worker is told.
-- repeating -> gone: and with it the firing that has its id, unless that has ended
--
-- ARGV: task id.
-- Reply: a word (aborted, asked, done, missing), its fields for hooks, dependents' events.
local id = ARGV[1]
local key = base .. 'task:' .. id
local FIELDS = { 'state', 'fn', 'pri', 'made', 'due', 'msg', 'try', 'who', 'keep', 'kind', 'head',
  'deps', 'log', 'trace' }

local raw = redis.call('HMGET', key, unpack(FIELDS))
local t = {}
for i, name in ipairs(FIELDS) do
  t[name] = raw[i] or nil
end

if redis.call('ZSCORE', base .. 'schedules', id) then
  end_schedule(id, 'was aborted')
  if not t.state then
    flush()
    return { 'aborted', {}, events }
  end
end

if not t.state then
  return { redis.call('EXISTS', base .. 'result:' .. id) == 1 and 'done' or 'missing', {}, {} }
end

if t.state == 'running' then
  redis.call('HSET', key, 'stop', '1')
  redis.call('PUBLISH', base .. 'control', 'abort ' .. id)
  return { 'asked', {}, {} }
end

if t.state == 'queued' then
  drop(t.pri, t.msg)
elseif t.state == 'scheduled' then
  redis.call('ZREM', base .. 'due:' .. t.pri, id)
else
  redis.call('ZREM', base .. 'blocked:' .. t.pri, id)
  for _, dep in ipairs(redis.call('SMEMBERS', base .. 'dependencies:' .. id)) do
    redis.call('HDEL', base .. 'dependents:' .. dep, id)
  end
  redis.call('DEL', base .. 'dependencies:' .. id)
end
finish(id, t, { status = 'aborted', reason = 'user', value = '', text = '' })
flush()
return { 'aborted', { t.pri, t.fn, t.made, t.due, t.try or '0', t.kind or '', t.head or '',
  t.trace or '', now_text, t.state == 'queued' and message_ms(t.msg) or '' }, events }
