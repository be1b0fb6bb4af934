-- include _base _finish
-- repeating -> gone. A firing that is already queued or running is left alone.
--
-- ARGV: schedule id.
-- Reply: 1 when there was one, dependents' events.
local id = ARGV[1]
if not redis.call('ZSCORE', base .. 'schedules', id) then
  return { 0, events }
end
end_schedule(id, 'was unscheduled')
flush()
return { 1, events }
