-- include _base
-- A worker's functions and their options, under a name made of their content, and its streams.
--
-- ARGV: digest, lease ms, count of priorities, each, then fn and options for each function.
-- Two versions of the code can so share a server while a deploy rolls.
local registry = base .. 'registry:' .. ARGV[1]
local first = 4 + tonumber(ARGV[3])
for i = 4, first - 1 do
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
return int(now)
