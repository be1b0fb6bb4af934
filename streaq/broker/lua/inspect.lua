-- include _base
-- Everything known of some tasks.
--
-- ARGV: 1 to see arguments as well, else 0; then task ids.
-- Reply: for each: state ('' unknown, done), fields and values, dependencies, dependents,
--   when it is scheduled for ('' not), the head of its result record ('' none).
local whole = ARGV[1] == '1'
local QUICK = { 'state', 'fn', 'pri', 'made', 'due', 'try', 'who', 'began', 'kind', 'stop', 'till',
  'msg', 'trace', 'log', 'needs' }

local function fields_of(key)
  if whole then
    return redis.call('HGETALL', key)
  end
  local raw, flat = redis.call('HMGET', key, unpack(QUICK)), {}
  for i, name in ipairs(QUICK) do
    if raw[i] then
      flat[#flat + 1] = name
      flat[#flat + 1] = raw[i]
    end
  end
  return flat
end

local function look(id)
  local fields = fields_of(base .. 'task:' .. id)
  local t = hash(fields)
  if t.state then
    return {
      t.state, fields, redis.call('SMEMBERS', base .. 'dependencies:' .. id),
      redis.call('HKEYS', base .. 'dependents:' .. id),
      t.state == 'scheduled' and t.due or '', '',
    }
  end
  local record = redis.call('GETRANGE', base .. 'result:' .. id, 0, 8191)
  local at = redis.call('ZSCORE', base .. 'schedules', id)
  if at then
    if record == '' then
      return { 'scheduled', fields_of(base .. 'schedule:' .. id), {},
        redis.call('HKEYS', base .. 'dependents:' .. id), int(tonumber(at)), '' }
    end
  end
  return { record ~= '' and 'done' or '', {}, {}, {}, '', record }
end

local found = {}
for i = 2, #ARGV do
  found[i - 1] = look(ARGV[i])
end
return found
