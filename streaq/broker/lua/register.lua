-- include _base
-- A worker's functions and their options, under a name made of their content, and its streams.
--
-- ARGV: digest, lease ms, worker, count of priorities, each, then fn and options for each function.
-- The worker is listed before it can claim anything, or nobody would tidy up after it if it died
-- before its first renewal.
-- Two versions of the code can so share a server while a deploy rolls.
local registry = base .. 'registry:' .. ARGV[1]
local first = 5 + tonumber(ARGV[4])
for i = 5, first - 1 do
  redis.call('SADD', base .. 'priorities', ARGV[i])
  local stream = base .. 'stream:' .. ARGV[i]
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err or #groups == 0 then
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
  end
end
for i = first, #ARGV, 2 do
  redis.call('HSET', registry, ARGV[i], ARGV[i + 1])
end
-- Even a worker without functions has a registry, or it could not claim.
redis.call('HSET', registry, '', '|||')
redis.call('PEXPIRE', registry, tonumber(ARGV[2]) * 10)
redis.call('ZADD', base .. 'workers', now + tonumber(ARGV[2]), ARGV[3])
redis.call('PEXPIRE', base .. 'workers', tonumber(ARGV[2]) * 2 + 86400000)
return now_text
