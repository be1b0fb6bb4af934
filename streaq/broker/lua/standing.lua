-- include _base
-- Where a queued task stands: what is before it, and what would keep it from starting.
--
-- ARGV: task id, how far to count at most.
-- Reply: now, how many are before it at its priority (stops at the most), the worker that reserved
--   its message ('' none), the task that holds its function's unique lock ('' none).
local id, most = ARGV[1], tonumber(ARGV[2])
local raw = redis.call('HMGET', base .. 'task:' .. id, 'state', 'fn', 'pri', 'msg', 'who')
local lock = raw[2] and redis.call('GET', base .. 'lock:' .. raw[2]) or ''
if raw[1] ~= 'queued' or not raw[4] then
  return { now_text, 0, '', lock }
end
local stream, msg = base .. 'stream:' .. raw[3], raw[4]

local function returned_before(upto)
  local page = redis.pcall('XPENDING', stream, GROUP, '-', upto, most, RETURNED)
  return page.err and 0 or #page
end

local held = redis.pcall('XPENDING', stream, GROUP, msg, msg, 1)
if not held.err and held[1] then
  if held[1][2] ~= RETURNED then
    return { now_text, 0, held[1][2], lock }
  end
  -- Handed back ones are taken before new ones.
  return { now_text, returned_before('(' .. msg), '', lock }
end
local groups = redis.pcall('XINFO', 'GROUPS', stream)
local from = '-'
if not groups.err and groups[1] then
  from = '(' .. hash(groups[1])['last-delivered-id']
end
local before = #redis.call('XRANGE', stream, from, '(' .. msg, 'COUNT', most)
return { now_text, math.min(most, before + returned_before('+')), '', lock }
