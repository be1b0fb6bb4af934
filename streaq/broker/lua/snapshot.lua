-- include _base
-- The state of the whole queue for gauges and `streaq status`, in one call whose cost does not grow
-- with the number of tasks.
--
-- ARGV: none.
-- Reply: now, per priority (name, depth, scheduled, blocked, running, oldest due ms or '', and how
--   many ever came in, succeeded, failed, were aborted, expired),
--   live workers' health records, cron jobs (fn, last success ms, next ms, missed, crontab),
--   count of repeating schedules.
local priorities = {}

-- Of the oldest message that nobody runs: when its task was due.
local function oldest_due(pri, stream)
  local oldest = nil
  local function consider(entry)
    local due = entry and redis.call('HGET', base .. 'task:' .. entry[2][2], 'due')
    if due and (not oldest or tonumber(due) < oldest) then
      oldest = tonumber(due)
    end
  end
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local from = '-'
  if not groups.err and groups[1] then
    from = '(' .. hash(groups[1])['last-delivered-id']
    local back = redis.call('XPENDING', stream, GROUP, '-', '+', 1, RETURNED)[1]
    if back then
      consider(redis.call('XRANGE', stream, back[1], back[1])[1])
    end
  end
  consider(redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1])
  local head = redis.call('ZRANGE', base .. 'due:' .. pri, 0, 0, 'WITHSCORES')[2]
  if head and tonumber(head) < now and (not oldest or tonumber(head) < oldest) then
    oldest = tonumber(head)
  end
  return oldest and int(oldest) or ''
end

for _, pri in ipairs(redis.call('SMEMBERS', base .. 'priorities')) do
  local stream = base .. 'stream:' .. pri
  local held, back = 0, 0
  local summary = redis.pcall('XPENDING', stream, GROUP)
  if not summary.err then
    held = summary[1]
    for _, consumer in ipairs(summary[4] or {}) do
      if consumer[1] == RETURNED then
        back = tonumber(consumer[2])
      end
    end
  end
  local running = held - back
  local ever = redis.call('HMGET', base .. 'totals', 'enqueued ' .. pri, 'success ' .. pri,
    'failed ' .. pri, 'aborted ' .. pri, 'expired ' .. pri)
  priorities[#priorities + 1] = {
    pri, redis.call('XLEN', stream) - running, redis.call('ZCARD', base .. 'due:' .. pri),
    redis.call('ZCARD', base .. 'blocked:' .. pri), running, oldest_due(pri, stream),
    ever[1] or '0', ever[2] or '0', ever[3] or '0', ever[4] or '0', ever[5] or '0',
  }
end

local workers = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'workers', now, '+inf')) do
  local health = redis.call('GET', base .. 'worker:' .. id)
  if health then
    workers[#workers + 1] = health
  end
end

local crons = {}
for _, fn in ipairs(redis.call('ZRANGE', base .. 'crons', 0, 999)) do
  local raw = redis.call('HMGET', base .. 'cron:' .. fn, 'ok', 'next', 'missed', 'tab')
  if raw[4] then
    crons[#crons + 1] = { fn, raw[1] or '', raw[2] or '', raw[3] or '0', raw[4] }
  end
end
return { now_text, priorities, workers, crons, redis.call('ZCARD', base .. 'schedules') }
