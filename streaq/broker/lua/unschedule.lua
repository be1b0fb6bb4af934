-- include _base _finish
-- repeating -> gone. A firing that is already queued or running is left alone.
--
-- ARGV: schedule id.
-- Reply: 1 when there was one, dependents' events.
local id = ARGV[1]
local there = redis.call('ZREM', base .. 'schedules', id)
redis.call('DEL', base .. 'schedule:' .. id)
if there == 1 and redis.call('EXISTS', base .. 'task:' .. id) == 0 then
  settle_dependents({ id = id, ok = false, text = 'was unscheduled' })
end
flush()
return { there, events }
