-- include _base _finish _claim
-- One round trip per batch: settle what finished, start what was reserved, claim what fits.
--
-- ARGV: worker, registry digest, lease ms, want, reserve, reclaim (0, 1, or 2: nothing else), resent (0 or 1),
--   count of priorities, each highest first;
--   count of starts, each: id, message, priority;
--   count of ends, each: id, message, priority, try, keep ms, flags (u: holds the unique lock,
--   c: a cron job that succeeded), result record;
--   count of other settles, each: id, message, priority, try, action, value, text, when, trace,
--   flags, reason.
-- Actions: `retry` (when: `+ms` from now, or the ms); `return` (its try refunded; when: `+0` if its
--   body ran, so that it waits anew).
-- Reply: now, a code per settle (ends first), started, refused, reserved, dependents' events,
--   1 when the queue had less than was wanted, 1 when more may be left to reclaim.
-- Codes: 1 settled, 0 fenced, 2 settled before (the answer to it was lost).
local worker, lease_ms = ARGV[1], tonumber(ARGV[3])
local want, reserve = tonumber(ARGV[4]), tonumber(ARGV[5])
local registry = base .. 'registry:' .. ARGV[2]
local at = 8

local function next_arg()
  at = at + 1
  return ARGV[at]
end

local priorities = {}
for i = 1, tonumber(ARGV[8]) do
  priorities[i] = next_arg()
end

local starts = tonumber(next_arg())
if (want > 0 or starts > 0) and redis.call('EXISTS', registry) == 0 then
  return redis.error_reply('STREAQ_REGISTRY is gone')
end
local start_at = at
at = at + starts * 3

-- running -> scheduled, or queued when it is due at once
local function retry(id, t, when, text, value, trace, reason)
  local key = base .. 'task:' .. id
  local due
  if string.sub(when, 1, 1) == '+' then
    due = now + tonumber(string.sub(when, 2))
  else
    due = tonumber(when)
  end
  if t.stop then
    due = now -- an abort came meanwhile: the next claim ends the task
  end
  redis.call('HSET', key, 'log', remember(t, 'retried', text, trace, reason), 'trace', trace,
    'kind', 'retry')
  if value ~= '' then
    redis.call('HSET', key, 'err', value)
  end
  redis.call('HDEL', key, 'who', 'began', 'msg')
  redis.call('HSETNX', key, 'first', t.due or now_text)
  drop(t.pri, t.msg)
  if due <= now then
    enqueue(id, t.pri, now_text)
  else
    schedule(id, t.pri, int(due))
  end
end

local returned = false

-- running -> queued, as if it had not been started
local function give_back(id, t, when, trace)
  local key = base .. 'task:' .. id
  redis.call('HSET', key, 'state', 'queued', 'log', remember(t, 'returned', '', trace),
    'try', int(tonumber(t.try) - 1))
  keep_trace(key, trace, t.was)
  if when ~= '' then
    redis.call('HSETNX', key, 'first', t.due or now_text)
    redis.call('HSET', key, 'due', now_text)
  end
  redis.call('HDEL', key, 'who', 'began')
  redis.call('XCLAIM', base .. 'stream:' .. t.pri, GROUP, RETURNED, 0, t.msg, 'TIME', 1, 'JUSTID')
  returned = true
end

-- A resent settle whose first copy did arrive finds the traces of itself.
local function settled_before(id, msg, try, action, raw)
  if raw[1] or raw[2] then
    local tries = tonumber(raw[2] or 0)
    if raw[3] or action == 'end' then
      return false
    elseif action == 'retry' then
      return raw[1] ~= msg and tries == tonumber(try)
    end
    return raw[1] == msg and tries == tonumber(try) - 1
  end
  local record = redis.call('GETRANGE', base .. 'result:' .. id, 0, 1023)
  if record == '' then
    record = redis.call('GET', base .. 'ended:' .. id) or ''
  end
  local seen, who = string.match(record, '^' .. string.rep('[^\n]*\n', 9) .. '([^\n]*)\n([^\n]*)\n')
  return seen == try and who == worker_of(worker)
end

-- Whether the lease is still ours; else the code that says why not.
local function fence(id, msg, try, action, raw)
  if raw[1] == msg and raw[2] == try and raw[3] == worker then
    return nil
  end
  return ARGV[7] == '1' and settled_before(id, msg, try, action, raw) and 2 or 0
end

-- running -> done
local function settle_end(id, msg, pri, try, keep, flags, record)
  local key = base .. 'task:' .. id
  local raw = redis.call('HMGET', key, 'msg', 'try', 'who', 'deps')
  local code = fence(id, msg, try, 'end', raw)
  if code then
    return code
  end
  local fn = flags ~= '' and redis.call('HGET', key, 'fn')
  if fn then
    if string.find(flags, 'u', 1, true) then
      unlock(fn, id)
    end
    local cron = base .. 'cron:' .. fn
    if string.find(flags, 'c', 1, true) and redis.call('EXISTS', cron) == 1 then
      redis.call('HSET', cron, 'ok', now_text)
    end
  end
  drop(pri, msg)
  tally(string.match(record, '^%d+\n(%a+)'), pri)
  finish_written(id, record, tonumber(keep), raw[4])
  return 1
end

local function settle_other(id, msg, pri, try, action, value, text, when, trace, flags, reason)
  local raw = redis.call('HMGET', base .. 'task:' .. id, 'msg', 'try', 'who', 'fn', 'began', 'log',
    'stop', 'due', 'was')
  local code = fence(id, msg, try, action, raw)
  if code then
    return code
  end
  local t = {
    msg = msg, try = try, who = worker, fn = raw[4], pri = pri, began = raw[5],
    log = raw[6] or nil, stop = raw[7], due = raw[8] or nil, was = raw[9] or nil,
  }
  if t.fn and string.find(flags, 'u', 1, true) then
    unlock(t.fn, id)
  end
  if action == 'retry' then
    retry(id, t, when, text, value, trace, reason)
  else
    give_back(id, t, when, trace)
  end
  return 1
end

at = start_at + starts * 3
local codes = {}
for _ = 1, tonumber(next_arg()) do
  codes[#codes + 1] = settle_end(unpack(ARGV, at + 1, at + 7))
  at = at + 7
end
for _ = 1, tonumber(next_arg()) do
  codes[#codes + 1] = settle_other(unpack(ARGV, at + 1, at + 11))
  at = at + 11
end

for i = 0, starts - 1 do
  local id, msg, pri = unpack(ARGV, start_at + i * 3 + 1, start_at + i * 3 + 3)
  start(worker, registry, lease_ms, pri, msg, id, true)
end

local reserved = {}

-- queued -> queued: a message that is reserved, its try not counted
-- Take up to what is still wanted from one stream: to start, then to reserve.
local function take(pri, messages)
  for _, entry in ipairs(messages) do
    if entry and entry[2] then
      local msg, id = entry[1], entry[2][2]
      if want > 0 then
        local before = #started
        start(worker, registry, lease_ms, pri, msg, id)
        want = want - (#started - before)
      else
        reserved[#reserved + 1] = { id, msg, pri }
        reserve = reserve - 1
      end
    end
  end
end

local short, more = 0, 0
if want + reserve > 0 then
  short = 1
  for _, pri in ipairs(priorities) do
    local stream = base .. 'stream:' .. pri
    if ARGV[6] ~= '0' then
      local room = math.min(want, 1000)
      local found = room > 0 and reclaim(worker, stream, lease_ms, room) or {}
      take(pri, found)
      more = #found == room and 1 or more
    end
    local room = ARGV[6] == '2' and 0 or want + reserve
    local found = room > 0 and read(worker, stream, room) or {}
    take(pri, found)
    short = room > 0 and #found == room and 0 or want + reserve > 0 and short or 0
  end
end

flush()
if returned then
  redis.call('PUBLISH', base .. 'control', 'returned')
end
return { now_text, codes, started, refused, reserved, events, short, more }
