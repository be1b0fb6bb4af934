-- include _base
-- queued -> queued: reserved messages that this worker will not start, for others to take.
--
-- ARGV: worker, then id, message and priority of each.
-- Reply: how many were handed back.
local handed_back = 0
for i = 2, #ARGV, 3 do
  local id, msg, pri = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local raw = redis.call('HMGET', base .. 'task:' .. id, 'msg', 'who')
  if raw[1] ~= msg then
    drop(pri, msg)
  elseif not raw[2] then
    redis.call('XCLAIM', base .. 'stream:' .. pri, GROUP, RETURNED, 0, msg, 'TIME', 1, 'JUSTID')
    handed_back = handed_back + 1
  end
end
flush()
if handed_back > 0 then
  redis.call('PUBLISH', base .. 'control', 'returned')
end
return handed_back
