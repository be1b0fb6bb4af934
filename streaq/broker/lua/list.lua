-- include _base
-- Ids of tasks in a state, without a scan of the keyspace: from the streams, the sorted sets, and
-- the list of what ended last.
--
-- ARGV: status (scheduled, queued, running, done), limit, priorities (highest first).
-- Reply: ids, as many as the limit at most.
local status, limit = ARGV[1], tonumber(ARGV[2])
local ids = {}
if limit < 1 then
  return ids
end

local function add(id)
  if #ids < limit then
    ids[#ids + 1] = id
  end
end

local function id_of(stream, msg)
  local entry = redis.call('XRANGE', stream, msg, msg)[1]
  return entry and entry[2][2]
end

local function scheduled(pri)
  for _, zset in ipairs({ 'due:' .. pri, 'blocked:' .. pri }) do
    for _, id in ipairs(redis.call('ZRANGE', base .. zset, 0, limit - 1)) do
      add(id)
    end
  end
end

-- Messages that a worker holds: running tasks, or (reserved, handed back) ones still queued.
local function pending(pri, state)
  local stream = base .. 'stream:' .. pri
  local from = '-'
  while #ids < limit do
    local page = redis.pcall('XPENDING', stream, GROUP, from, '+', 200)
    if page.err or #page == 0 then
      return
    end
    for _, entry in ipairs(page) do
      local id = id_of(stream, entry[1])
      if id and redis.call('HGET', base .. 'task:' .. id, 'state') == state then
        add(id)
      end
    end
    from = '(' .. page[#page][1]
  end
end

local function waiting(pri)
  pending(pri, 'queued')
  local stream = base .. 'stream:' .. pri
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local from = '-'
  if not groups.err and groups[1] then
    from = '(' .. hash(groups[1])['last-delivered-id']
  end
  if #ids < limit then
    for _, entry in ipairs(redis.call('XRANGE', stream, from, '+', 'COUNT', limit - #ids)) do
      add(entry[2][2])
    end
  end
end

if status == 'done' then
  local newest = redis.call('LRANGE', base .. 'done', -limit, -1)
  for i = #newest, 1, -1 do
    add(newest[i])
  end
  return ids
end

for i = 3, #ARGV do
  if status == 'scheduled' then
    scheduled(ARGV[i])
  elseif status == 'queued' then
    waiting(ARGV[i])
  else
    pending(ARGV[i], 'running')
  end
end
if status == 'scheduled' then
  for _, id in ipairs(redis.call('ZRANGE', base .. 'schedules', 0, limit - 1)) do
    if redis.call('EXISTS', base .. 'task:' .. id) == 0 then
      add(id)
    end
  end
end
return ids
