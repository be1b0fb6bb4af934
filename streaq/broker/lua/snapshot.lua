-- include _base
-- The state of the whole queue for gauges and `streaq status`, in one call whose cost does not grow
-- with the number of tasks: with that of priorities, workers and cron jobs. Running is what a live
-- worker runs; what waits for one has depth: behind a worker that died or is busy, handed back, or
-- due and not yet moved to the stream.
--
-- ARGV: none.
-- Reply: now, per priority (name, depth, scheduled, blocked, running, oldest due ms or '', and how
--   many ever came in, succeeded, failed, were aborted, expired),
--   live workers' health records, cron jobs (fn, last success ms, next ms, missed, crontab),
--   count of repeating schedules.

-- Who lives, and how many tasks each can run at once.
local slots, workers = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'workers', '(' .. now_text, '+inf')) do
  local health = redis.call('GET', base .. 'worker:' .. id)
  slots[id] = tonumber(health and string.match(health, '"concurrency":(%d+)')) or math.huge
  workers[#workers + 1] = health or nil
end

local names = redis.call('SMEMBERS', base .. 'priorities')
local held = {} -- by priority and consumer: how many messages
local all_held = {} -- by consumer
for _, pri in ipairs(names) do
  held[pri] = {}
  local summary = redis.pcall('XPENDING', base .. 'stream:' .. pri, GROUP)
  for _, consumer in ipairs(not summary.err and summary[4] or {}) do
    local name, count = consumer[1], tonumber(consumer[2])
    held[pri][name] = count
    all_held[name] = (all_held[name] or 0) + count
  end
end

-- Of tasks that were moved to the stream late, and so are behind what came before them: one that
-- waits still. The others are forgotten, a thousand at a time.
local function oldest_late(pri)
  local zset, from = base .. 'late:' .. pri, 0
  for _ = 1, 10 do
    local found = redis.call('ZRANGE', zset, from, from + 99, 'WITHSCORES')
    local stale = {}
    for i = 1, #found, 2 do
      local raw = redis.call('HMGET', base .. 'task:' .. found[i], 'state', 'due')
      if raw[1] == 'queued' and tonumber(raw[2]) == tonumber(found[i + 1]) then
        return found[i]
      end
      stale[#stale + 1] = found[i]
    end
    if #stale == 0 then
      return nil
    end
    -- A server that takes no writes now is looked at all the same.
    local gone = redis.pcall('ZREM', zset, unpack(stale))
    from = type(gone) == 'number' and from or from + #stale
  end
end

-- How many messages each holds beyond what it can run; and how many of those are not counted yet.
local over, left = {}, {}
for name, count in pairs(all_held) do
  over[name] = count - (slots[name] or 0)
  left[name] = over[name]
end
local uncounted = {} -- priority, consumer, messages

-- What waits of one priority: how many of the messages that somebody holds, and since when the
-- oldest of all has been due (or there, if it was due before it came; or without its worker).
local function waiting(pri)
  local stream = base .. 'stream:' .. pri
  local count, oldest = 0, nil

  -- Whether a live worker runs it; `died` is when its worker did, if it has.
  local function consider(id, died)
    local raw = redis.call('HMGET', base .. 'task:' .. (id or ''), 'due', 'made', 'who')
    local due, made = tonumber(raw[1]), tonumber(raw[2])
    if not due or (raw[3] and not died) then
      return raw[3]
    end
    local since = math.max(due, made or 0, raw[3] and tonumber(died) or 0)
    oldest = math.min(oldest or since, since)
    return false
  end

  local function task_at(from, to)
    local entry = redis.call('XRANGE', stream, from, to or from, 'COUNT', 1)[1]
    return entry and entry[2][2]
  end

  -- What was handed back, left behind by a worker that died, or prefetched by one that is busy. So
  -- many are looked at one by one, and one of each at least: the number of the rest is reckoned.
  local most = 300
  for consumer, many in pairs(held[pri]) do
    if over[consumer] > 0 then
      local died = not slots[consumer] and (redis.call('ZSCORE', base .. 'workers', consumer) or 0)
      local looks, waits = math.min(many, math.max(most, 1)), 0
      -- What is prefetched came last, and there is no reading backwards.
      local first = died and 0 or many - looks
      local ids = redis.call('XPENDING', stream, GROUP, '-', '+', first + looks, consumer)
      for i = first + 1, first + looks do
        local entry = ids[i]
        if not consider(task_at(entry[1]), died) then
          waits = waits + 1
        end
      end
      most = most - looks
      if died then
        waits = many
      elseif looks < many then
        waits = 0
        uncounted[#uncounted + 1] = { pri, consumer, many }
      end
      count = count + waits
      left[consumer] = left[consumer] - waits
    end
  end
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local is_read = not groups.err and groups[1]
  consider(task_at(is_read and '(' .. hash(groups[1])['last-delivered-id'] or '-', '+'))
  consider(redis.call('ZRANGEBYSCORE', base .. 'due:' .. pri, '-inf', now, 'LIMIT', 0, 1)[1])
  consider(oldest_late(pri))
  return count, oldest and int(oldest) or ''
end

local priorities, row_of = {}, {}
for _, pri in ipairs(names) do
  local taken = 0
  for _, many in pairs(held[pri]) do
    taken = taken + many
  end
  local count, oldest = waiting(pri)
  local running, zset = taken - count, base .. 'due:' .. pri
  local overdue = redis.call('ZCOUNT', zset, '-inf', now)
  local ever = redis.call('HMGET', base .. 'totals', 'enqueued ' .. pri, 'success ' .. pri,
    'failed ' .. pri, 'aborted ' .. pri, 'expired ' .. pri)
  priorities[#priorities + 1] = {
    pri, redis.call('XLEN', base .. 'stream:' .. pri) - running + overdue,
    redis.call('ZCARD', zset) - overdue, redis.call('ZCARD', base .. 'blocked:' .. pri), running,
    oldest, ever[1] or '0', ever[2] or '0', ever[3] or '0', ever[4] or '0', ever[5] or '0',
  }
  row_of[pri] = priorities[#priorities]
end
for _, guess in ipairs(uncounted) do
  local pri, consumer, many = unpack(guess)
  local waits = math.max(0, math.min(many, left[consumer]))
  left[consumer] = left[consumer] - waits
  row_of[pri][2] = row_of[pri][2] + waits
  row_of[pri][5] = row_of[pri][5] - waits
end

local crons = {}
for _, fn in ipairs(redis.call('ZRANGE', base .. 'crons', 0, 999)) do
  local raw = redis.call('HMGET', base .. 'cron:' .. fn, 'ok', 'next', 'missed', 'tab')
  if raw[4] then
    crons[#crons + 1] = { fn, raw[1] or '', raw[2] or '', raw[3] or '0', raw[4] }
  end
end
return { now_text, priorities, workers, crons, redis.call('ZCARD', base .. 'schedules') }
