-- include _base
-- scheduled -> scheduled: tasks that are due later are due now (for tests, which do not wait).
-- Repeating schedules are left alone: they would never end.
--
-- ARGV: count of priorities, each.
-- Reply: how many were brought forward.
local brought = 0
for i = 2, tonumber(ARGV[1]) + 1 do
  local zset = base .. 'due:' .. ARGV[i]
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', zset, '(' .. now_text, '+inf')) do
    redis.call('ZADD', zset, now_text, id)
    redis.call('HSET', base .. 'task:' .. id, 'due', now_text)
    brought = brought + 1
  end
end
return brought
