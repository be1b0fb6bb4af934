-- include _base
-- new -> queued: one firing of a repeating schedule, and the next firing noted, or neither.
-- repeating -> repeating, or gone when there is no next firing
--
-- ARGV: schedule id, due, next firing ('' when there is none), id of the task to make.
-- The first firing has the schedule's own id, so that the caller's task can be waited for.
-- Reply: now, id of the task made ('' when another worker did it, or the schedule is gone).
local id, due, following, made = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = base .. 'schedule:' .. id
local at = redis.call('ZSCORE', base .. 'schedules', id)
if not at or tonumber(at) ~= tonumber(due) then
  return { now_text, '' }
end
local s = hash(redis.call('HGETALL', key))
if not s.fn then
  redis.call('ZREM', base .. 'schedules', id)
  redis.call('DEL', key)
  return { now_text, '' }
end
if not s.fired then
  made = id
  redis.call('HSET', key, 'fired', '1')
end
local task = base .. 'task:' .. made
if redis.call('EXISTS', task) == 0 then
  local fields = { 'fn', s.fn, 'pri', s.pri, 'args', s.args, 'made', now_text, 'kind', 'cron' }
  for _, name in ipairs({ 'head', 'keep' }) do
    if s[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = s[name]
    end
  end
  if s.span then
    fields[#fields + 1] = 'till'
    fields[#fields + 1] = int(now + tonumber(s.span))
  end
  if redis.call('EXISTS', base .. 'dependents:' .. made) == 1 then
    fields[#fields + 1] = 'deps'
    fields[#fields + 1] = '1'
  end
  redis.call('HSET', task, unpack(fields))
  enqueue(made, s.pri, due)
  tally('enqueued', s.pri)
end
if following == '' then
  redis.call('ZREM', base .. 'schedules', id)
  redis.call('DEL', key)
else
  redis.call('ZADD', base .. 'schedules', following, id)
end
flush()
return { now_text, made }
