-- include _base
-- running or queued -> queued: what was claimed or reserved for this worker in an answer that never
-- arrived.
--
-- ARGV: worker, count of priorities, each, then priority and message of everything that the worker
--   knows it holds: messages of two priorities may have the same id.
-- Reply: how many were handed back.
local worker = ARGV[1]
local first = 3 + tonumber(ARGV[2])
local held = {}
for i = first, #ARGV, 2 do
  held[ARGV[i] .. ' ' .. ARGV[i + 1]] = true
end

local handed_back = 0

local function give_back(stream, msg)
  local entry = redis.call('XRANGE', stream, msg, msg)[1]
  local id = entry and entry[2][2]
  local key = base .. 'task:' .. (id or '')
  local raw = redis.call('HMGET', key, 'msg', 'who', 'try', 'fn', 'trace', 'was')
  if raw[1] ~= msg then
    redis.call('XACK', stream, GROUP, msg)
    redis.call('XDEL', stream, msg)
    return
  end
  if raw[2] == worker then
    redis.call('HSET', key, 'state', 'queued', 'try', int((tonumber(raw[3]) or 1) - 1))
    redis.call('HDEL', key, 'who', 'began')
    keep_trace(key, raw[5] or '', raw[6])
    unlock(raw[4], id)
  elseif raw[2] then
    return
  end
  redis.call('XCLAIM', stream, GROUP, RETURNED, 0, msg, 'TIME', 1, 'JUSTID')
  handed_back = handed_back + 1
end

for i = 3, first - 1 do
  local stream = base .. 'stream:' .. ARGV[i]
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 10000, worker)
  if not pending.err then
    for _, entry in ipairs(pending) do
      if not held[ARGV[i] .. ' ' .. entry[1]] then
        give_back(stream, entry[1])
      end
    end
  end
end
if handed_back > 0 then
  redis.call('PUBLISH', base .. 'control', 'returned')
end
return handed_back
