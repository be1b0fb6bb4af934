-- queued -> running. A claimed task is one that will run now: its try is counted, and its abort
-- flag, expiry, tries and unique lock are checked, all here. What may not run ends here as well.

local started, refused = {}, {}

-- Options of a function, as the claiming worker registered them: max tries, drift, unique, keep.
local options = {}

local function option(registry, fn)
  local found = options[fn]
  if found == nil then
    local raw = redis.call('HGET', registry, fn)
    if raw then
      local tries, drift, unique, keep = string.match(raw, '^(%d*)|(%d*)|(%d*)|(%-?%d*)$')
      found = {
        tries = tonumber(tries), drift = tonumber(drift), unique = unique == '1',
        keep = tonumber(keep),
      }
    else
      found = false
    end
    options[fn] = found
  end
  return found
end

local function clash(worker, id, fn, lease_ms)
  local lock = base .. 'lock:' .. fn
  if redis.call('SET', lock, id, 'NX', 'PX', lease_ms * 2) then
    return nil
  end
  local holder = redis.call('GET', lock)
  if holder == id then
    redis.call('PEXPIRE', lock, lease_ms * 2)
    return nil
  end
  return holder
end

-- Why this task may not start: status, reason, text; nil when it may.
local function objection(worker, id, t, opts, lease_ms)
  local tries = tonumber(t.try or 0) or 0
  if t.stop then
    return 'aborted', 'user', ''
  elseif t.till and tries == 0 and not t.first and (tonumber(t.till) or 0) < now then
    return 'refused', 'expired', ''
  elseif not opts then
    return 'refused', 'unknown', ''
  elseif opts.tries and tries >= opts.tries then
    return 'refused', 'exhausted', int(tries)
  elseif opts.drift and now - (tonumber(t.due) or 0) > opts.drift then
    return 'refused', 'drift', int(now - (tonumber(t.due) or 0))
  end
  if opts.unique then
    local holder = clash(worker, id, t.fn, lease_ms)
    if holder then
      return 'refused', 'unique', holder
    end
  end
  return nil
end

-- queued or running -> done: what may not start, or not again after its worker was lost
local function refuse(id, t, opts, status, reason, text)
  drop(t.pri, t.msg)
  if t.who and opts and opts.unique then
    unlock(t.fn, id)
  end
  refused[#refused + 1] = {
    id, t.pri, t.fn, status, reason, text, t.made, t.due, message_ms(t.msg), t.try or '0',
    t.kind or '', t.head or '', t.trace or '', t.links or '',
  }
  t.began, t.who = nil, nil
  finish(id, t, {
    status = status == 'refused' and 'failed' or status, reason = reason, text = text,
    value = reason == 'exhausted' and t.err or '', keep = opts and opts.keep,
  })
end

-- queued or running -> done: what no worker can run
local function refuse_unreadable(id, t)
  t.fn, t.made, t.due = t.fn or '', t.made or now_text, t.due or now_text
  refuse(id, t, nil, 'refused', 'undecodable', 'what Redis holds of it was changed')
end

-- Whether a reserved message is still there to be started: a worker that was silent for a lease may
-- have lost it, even to one that started the task. The message is ours for another lease then.
local function still_ours(worker, pri, msg, t)
  if t.who then
    return false
  end
  local held = redis.pcall('XCLAIM', base .. 'stream:' .. pri, GROUP, worker, 0, msg, 'JUSTID')
  return not held.err and #held > 0
end

-- running -> running: its worker was lost, and it runs again here
-- Start (or refuse) the task behind a message that this worker holds.
local function start(worker, registry, lease_ms, pri, msg, id, reserved)
  local key = base .. 'task:' .. id
  local t = hash(redis.call('HGETALL', key))
  if t.msg ~= msg then
    -- The task ended or moved on: the message is a leftover.
    drop(pri, msg)
    return
  elseif reserved and not still_ours(worker, pri, msg, t) then
    return
  end
  t.pri = pri
  if not (t.fn and t.args and t.made and t.due) then
    refuse_unreadable(id, t)
    return
  end
  local lost = worker_of(t.who or '')
  if lost ~= '' then
    t.log = remember(t, 'lost', '', t.trace)
    redis.call('HSET', key, 'log', t.log)
  end
  local opts = option(registry, t.fn)
  local status, reason, text = objection(worker, id, t, opts, lease_ms)
  if status then
    refuse(id, t, opts, status, reason, text)
    return
  end
  local try = t.try and int((tonumber(string.match(t.try, '^%d+$')) or 0) + 1) or '1'
  redis.call('HSET', key, 'state', 'running', 'who', worker, 'try', try, 'began', now_text)
  if t.trace then -- it was of the attempt before
    redis.call('HSET', key, 'was', t.trace)
    redis.call('HDEL', key, 'trace')
  elseif t.was then
    redis.call('HDEL', key, 'was')
  end
  local entry = { id, msg, pri, try, t.fn, t.args, t.made, t.due }
  if t.head or t.kind or t.log then
    entry[9] = {
      t.head or '', t.kind or '', t.input or '', t.links or '', t.trace or '', lost, t.log or '',
      t.first or '',
    }
  end
  started[#started + 1] = entry
end

-- A stream whose group is gone (a flushed server) is given a new one, and read again.
local function read(worker, stream, count)
  local command = { 'XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', count, 'STREAMS', stream, '>' }
  local reply = redis.pcall(unpack(command))
  if reply and reply.err then
    redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    reply = redis.call(unpack(command))
  end
  return reply and reply[1][2] or {}
end

-- Messages of dead workers, and messages that were handed back. XAUTOCLAIM would look at but ten
-- messages for each that it may return: long-running tasks at the head would hide the dead ones.
local function reclaim(worker, stream, lease_ms, count)
  local idle = redis.pcall('XPENDING', stream, GROUP, 'IDLE', lease_ms, '-', '+', count)
  if idle.err or #idle == 0 then
    return {}
  end
  local command = { 'XCLAIM', stream, GROUP, worker, lease_ms }
  for _, entry in ipairs(idle) do
    command[#command + 1] = entry[1]
  end
  return redis.call(unpack(command))
end
