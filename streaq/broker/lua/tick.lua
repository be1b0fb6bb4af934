-- include _base
-- scheduled -> queued: everything that is due, a bounded batch at a time.
--
-- ARGV: most to move, count of priorities, each.
-- Reply: now, when something is due next (or -1), moved tasks (id, fn, priority, due),
--   repeating schedules that are due (id, fn, due, crontab, time zone, priority).
local LATE_MS, MOST_LATE = 1000, 10000
local most = tonumber(ARGV[1])
local next_due = -1
local moved = {}

local function sooner(zset)
  local head = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
  if head[2] and (next_due < 0 or tonumber(head[2]) < next_due) then
    next_due = tonumber(head[2])
  end
end

-- Behind what came to the stream before it, nobody would see how long it has been due.
local function note_late(pri, id, at)
  local late = base .. 'late:' .. pri
  redis.call('ZADD', late, at, id)
  redis.call('ZREMRANGEBYRANK', late, MOST_LATE, -1)
  redis.call('PEXPIRE', late, 86400000)
end

local function promote(pri)
  local zset = base .. 'due:' .. pri
  local due = redis.call('ZRANGEBYSCORE', zset, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #due, 2 do
    local id, at = due[i], due[i + 1]
    redis.call('ZREM', zset, id)
    local raw = redis.call('HMGET', base .. 'task:' .. id, 'state', 'fn')
    if raw[1] then
      enqueue(id, pri, int(tonumber(at)))
      if now - tonumber(at) > LATE_MS then
        note_late(pri, id, at)
      end
      moved[#moved + 1] = { id, raw[2] or '', pri, int(tonumber(at)) }
    end
  end
  most = most - #due / 2
end

for i = 3, tonumber(ARGV[2]) + 2 do
  if most > 0 then
    promote(ARGV[i])
  end
  sooner(base .. 'due:' .. ARGV[i])
end

local fire = {}
local schedules = base .. 'schedules'
local due = redis.call('ZRANGEBYSCORE', schedules, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 100)
for i = 1, #due, 2 do
  local raw = redis.call('HMGET', base .. 'schedule:' .. due[i], 'fn', 'tab', 'tz', 'pri')
  fire[#fire + 1] = { due[i], raw[1] or '', int(tonumber(due[i + 1])), raw[2] or '', raw[3] or '',
    raw[4] or '' }
end
if #fire == 0 then
  sooner(schedules)
end
return { now_text, int(next_due), moved, fire }
