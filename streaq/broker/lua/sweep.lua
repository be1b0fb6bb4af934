-- include _base
-- Forget workers: this one (it stops), or those that have been dead for more than a lease.
--
-- A consumer is deleted only when it holds no message: deleting it would lose them.
-- ARGV: lease ms, worker that stops ('' for none).
-- Reply: how many were forgotten.
local MOST = 50
local lease_ms, leaving = tonumber(ARGV[1]), ARGV[2]
local workers = base .. 'workers'
-- One that holds messages still is looked at again next time; the others come after it.
local gone = redis.call('ZRANGEBYSCORE', workers, '-inf', now - lease_ms, 'LIMIT', 0, 500)
if leaving ~= '' then
  gone = { leaving }
  redis.call('DEL', base .. 'worker:' .. leaving)
end

local function forget(worker)
  local empty = true
  for _, pri in ipairs(redis.call('SMEMBERS', base .. 'priorities')) do
    local stream = base .. 'stream:' .. pri
    local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1, worker)
    if not pending.err then
      if #pending > 0 then
        empty = false
      else
        redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, worker)
      end
    end
  end
  return empty
end

local forgotten = 0
for _, worker in ipairs(gone) do
  if forgotten == MOST then
    break
  elseif forget(worker) then
    redis.call('ZREM', workers, worker)
    forgotten = forgotten + 1
  elseif leaving ~= '' then
    redis.call('ZADD', workers, now, worker) -- what it leaves behind has no worker from now on
  end
end
return forgotten
