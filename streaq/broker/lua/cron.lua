-- include _base
-- new -> queued: one firing of a cron job that is written in the code; with due 0, only its
-- registration.
--
-- Only a worker that has the job fires it, so a job deleted from the code stops. What is kept here
-- makes two workers fire it once, and tells what was missed while none was alive.
--
-- ARGV: fn, crontab, due (0 to register), next firing ('' none), missed, id of the task, priority,
--   args, headers, keep ms, the last firing known to whoever counted what was missed.
-- Reply: now, 1 when the task was made (2: nothing was done, count anew), the last firing, how many
--   were missed.
local fn, tab, due, following, missed = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local key = base .. 'cron:' .. fn
local week = 7 * 86400000

local known = redis.call('HMGET', key, 'tab', 'last')
local last = known[1] == tab and known[2] or nil
-- A new job, or a new timetable: nothing before this moment was missed.
local began = not last
last = last or int(due > 0 and due - 1 or now)
-- A worker that stood still counts what others have fired meanwhile.
if due > tonumber(last) and tonumber(missed) > 0 and tonumber(last) > tonumber(ARGV[11]) then
  return { now_text, 2, last, redis.call('HGET', key, 'missed') or '0' }
end
if began then
  redis.call('HSET', key, 'tab', tab, 'last', last)
end

local made = 0
if due > 0 and tonumber(last) < due then
  local task = base .. 'task:' .. ARGV[6]
  redis.call('HSET', key, 'last', int(due))
  if tonumber(missed) > 0 then
    redis.call('HINCRBY', key, 'missed', missed)
  end
  if redis.call('EXISTS', task, base .. 'result:' .. ARGV[6]) == 0 then
    redis.call('HSET', task, 'fn', fn, 'pri', ARGV[7], 'args', ARGV[8], 'made', now_text,
      'kind', 'cron', 'keep', ARGV[10])
    if ARGV[9] ~= '' then
      redis.call('HSET', task, 'head', ARGV[9])
    end
    enqueue(ARGV[6], ARGV[7], int(due))
    tally('enqueued', ARGV[7])
    made = 1
  end
  last = int(due)
end

if following ~= '' then
  redis.call('HSET', key, 'next', following)
  redis.call('ZADD', base .. 'crons', following, fn)
  redis.call('PEXPIRE', key, math.max(0, tonumber(following) - now) + week)
else
  redis.call('ZREM', base .. 'crons', fn)
  redis.call('PEXPIRE', key, week)
end
-- Jobs that nobody fires any more; in the end the list itself.
local crons = base .. 'crons'
redis.call('ZREMRANGEBYSCORE', crons, '-inf', now - week)
local latest = redis.call('ZRANGE', crons, -1, -1, 'WITHSCORES')[2]
if latest then
  redis.call('PEXPIRE', crons, math.max(0, tonumber(latest) - now) + week)
end
flush()
return { now_text, made, last, redis.call('HGET', key, 'missed') or '0' }
