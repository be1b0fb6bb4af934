-- include _base
-- running -> running: keep the leases that are still ours, and say that this worker lives.
--
-- ARGV: worker, lease ms, registry digest, health record, count of priorities, each,
--   count held, each: id, message, priority, try ('' of a reserved message), lock (its function's
--   name when it is unique, else ''), trace ('' for none; should this worker die, the attempt after
--   this one links to it).
-- Reply: now, what is lost (id, try), ids that are to stop, 1 when the registry is gone.
-- The task of a lost lease may run here again already, under a lease that is not lost.
local worker, lease_ms = ARGV[1], tonumber(ARGV[2])
local registry = base .. 'registry:' .. ARGV[3]
local lost, stop, ours = {}, {}, {}

redis.call('SET', base .. 'worker:' .. worker, ARGV[4], 'PX', lease_ms)
redis.call('ZADD', base .. 'workers', now + lease_ms, worker)
redis.call('PEXPIRE', base .. 'workers', lease_ms * 2 + 86400000)
local at = 6 + tonumber(ARGV[5])
for i = 6, at - 1 do
  redis.call('SADD', base .. 'priorities', ARGV[i])
end

-- A reserved message may have been handed back since the worker said that it holds it.
local function holds(pri, msg)
  local found = redis.pcall('XPENDING', base .. 'stream:' .. pri, GROUP, msg, msg, 1, worker)
  return not found.err and #found > 0
end

local function renew(id, msg, pri, try, lock, trace)
  local raw = redis.call('HMGET', base .. 'task:' .. id, 'msg', 'try', 'who', 'stop', 'trace')
  local mine
  if try == '' then
    mine = raw[1] == msg and not raw[3] and holds(pri, msg)
  else
    mine = raw[1] == msg and raw[2] == try and raw[3] == worker
  end
  if not mine then
    lost[#lost + 1] = { id, try }
    return
  end
  if raw[4] then
    stop[#stop + 1] = id
  end
  if trace ~= '' and trace ~= raw[5] then
    redis.call('HSET', base .. 'task:' .. id, 'trace', trace)
  end
  ours[pri] = ours[pri] or {}
  table.insert(ours[pri], msg)
  if lock ~= '' and redis.call('GET', base .. 'lock:' .. lock) == id then
    redis.call('PEXPIRE', base .. 'lock:' .. lock, lease_ms * 2)
  end
end

for _ = 1, tonumber(ARGV[at]) do
  renew(unpack(ARGV, at + 1, at + 6))
  at = at + 6
end

for pri, msgs in pairs(ours) do
  local stream = base .. 'stream:' .. pri
  for i = 1, #msgs, 1000 do
    local command = { 'XCLAIM', stream, GROUP, worker, 0 }
    for j = i, math.min(i + 999, #msgs) do
      command[#command + 1] = msgs[j]
    end
    command[#command + 1] = 'JUSTID'
    redis.call(unpack(command))
  end
end
local gone = redis.call('PEXPIRE', registry, lease_ms * 10) == 0
return { now_text, lost, stop, gone and 1 or 0 }
