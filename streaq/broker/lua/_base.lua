-- Shared by every script: keys, the server's clock, and what is flushed once at the end.
--
-- KEYS[1] is the queue's prefix, `streaq:{queue}:`; every other key is made from it, so that all
-- keys of a queue share one Cluster slot.
--
-- task:<id> is a hash that lives from publish to the end of the task:
--   state  queued | running | scheduled | blocked      fn, pri, args, head (headers), kind
--   made   created, ms          due   when it may run, ms         till  expires if not started by, ms
--   keep   how long the result stays, ms (-1 for ever, 0 never; absent: five minutes)
--   msg    stream message       try   tries so far      who   the consumer that runs it
--   began  start of the attempt, ms                     stop  an abort was asked for
--   needs  its input comes from the task before it      input that value
--   deps   somebody waits for it                        err   the last real error
--   first  when the first attempt was due, once there is a second
--   trace  of the last attempt, once its worker has said so
--   was    that of the attempt before the one that runs, should that turn out not to have begun
--   links traces of the attempts it waited for
--   log    ledger of its earlier attempts, JSON objects joined by commas
local base = KEYS[1]
local GROUP = 'workers'
local RETURNED = '-'
local DEFAULT_KEEP = 300000
local DONE_LIST_LENGTH = 10000

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function int(n)
  return string.format('%.0f', n)
end

local now_text = int(now)

local function hash(flat)
  local t = {}
  for i = 1, #flat, 2 do
    t[flat[i]] = flat[i + 1]
  end
  return t
end

local function message_ms(msg)
  return msg and string.match(msg, '^(%d+)-') or ''
end

-- Acknowledge and delete messages, in one call per stream at the end of the script.
local dropped = {}

local function drop(pri, msg)
  local list = dropped[pri]
  if not list then
    list = {}
    dropped[pri] = list
  end
  list[#list + 1] = msg
end

-- What ended, newest last: the list behind "show me finished tasks" without a SCAN.
local ended = {}
local longest_keep = 0

-- How many tasks came in and how many ended, by priority and way. Counted where it happens, they
-- are exact whoever dies, so metrics can be checked against them.
local totals = {}

local function tally(what, pri)
  local counts = totals[what]
  if not counts then
    counts = {}
    totals[what] = counts
  end
  counts[pri] = (counts[pri] or 0) + 1
end

local function flush()
  for what, counts in pairs(totals) do
    for pri, count in pairs(counts) do
      redis.call('HINCRBY', base .. 'totals', what .. ' ' .. pri, count)
    end
  end
  for pri, ids in pairs(dropped) do
    local stream = base .. 'stream:' .. pri
    for i = 1, #ids, 1000 do
      local j = math.min(i + 999, #ids)
      redis.call('XACK', stream, GROUP, unpack(ids, i, j))
      redis.call('XDEL', stream, unpack(ids, i, j))
    end
  end
  if #ended > 0 then
    local done = base .. 'done'
    for i = 1, #ended, 1000 do
      redis.call('RPUSH', done, unpack(ended, i, math.min(i + 999, #ended)))
    end
    redis.call('LTRIM', done, -DONE_LIST_LENGTH, -1)
    if redis.call('PTTL', done) < longest_keep then
      redis.call('PEXPIRE', done, longest_keep)
    end
  end
end

-- Tell sleeping schedulers when a moment earlier than all others was added.
local function announce(zset, member, at)
  if redis.call('ZRANGE', zset, 0, 0)[1] == member then
    redis.call('PUBLISH', base .. 'control', 'due ' .. int(at))
  end
end

-- A new message, and the state that goes with it.
local function enqueue(id, pri, due)
  local msg = redis.call('XADD', base .. 'stream:' .. pri, '*', 'id', id)
  redis.call('HSET', base .. 'task:' .. id, 'state', 'queued', 'msg', msg, 'due', due)
  return msg
end

-- A moment in the sorted set, and the state that goes with it.
local function schedule(id, pri, due)
  local zset = base .. 'due:' .. pri
  redis.call('HSET', base .. 'task:' .. id, 'state', 'scheduled', 'due', due)
  redis.call('ZADD', zset, due, id)
  announce(zset, id, due)
end

-- The trace of an attempt that was handed back; of one that never began, that of the one before.
local function keep_trace(key, trace, was)
  if trace ~= '' or was then
    redis.call('HSET', key, 'trace', trace ~= '' and trace or was)
  end
end

-- A unique task that stops running lets others of its function run.
local function unlock(fn, id)
  local lock = base .. 'lock:' .. fn
  if redis.call('GET', lock) == id then
    redis.call('DEL', lock)
  end
end

-- A consumer is one run of a worker: the worker's name, a colon, and what no other run has.
local function worker_of(consumer)
  return string.match(consumer, '^(.+):') or consumer
end

-- Append an attempt that did not end the task to its ledger, the last twenty kept.
local function remember(t, outcome, text, trace, reason)
  local readable, entries = pcall(cjson.decode, '[' .. (t.log or '') .. ']')
  if not readable then
    entries = {}
  end
  entries[#entries + 1] = {
    try = tonumber(t.try) or 0, worker = worker_of(t.who or ''), began = tonumber(t.began or 0) or 0,
    ended = now, outcome = outcome, error = text or '', trace = trace or '',
    reason = reason,
  }
  while #entries > 20 do
    table.remove(entries, 1)
  end
  return string.sub(cjson.encode(entries), 2, -2)
end
