-- include _base
-- Whether this worker was given messages that it has not acknowledged: also one that is on its way
-- to a blocking read.
--
-- ARGV: worker, count of priorities, each.
-- Reply: in how many priorities it holds any.
local held = 0
for i = 3, tonumber(ARGV[2]) + 2 do
  local stream = base .. 'stream:' .. ARGV[i]
  local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1, ARGV[1])
  if not pending.err and #pending > 0 then
    held = held + 1
  end
end
return held
