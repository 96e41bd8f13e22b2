-- What every script begins with. Only commands of Redis 7.0; time is Redis's own, in milliseconds.
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000), t[1] * 1000000 + t[2]
end

-- keep makes a key last for another ttl, at least.
local function keep(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
end

-- each calls f(part) with a list in parts that unpack can take.
local function each(list, f)
  for i = 1, #list, 1000 do
    f({unpack(list, i, math.min(i + 999, #list))})
  end
end

local function there(key) return redis.call('PTTL', key) ~= -2 end

-- A list that expires entry by entry is a zset, id -> when it expires, and a hash, id -> entry, in the same slot.
local function sweep(z, h, at)
  -- A Redis that evicts may have lost one of both: what is left says nothing any more, and who put it there puts it there again.
  if not there(z) or not there(h) then redis.call('DEL', z, h) end
  each(redis.call('ZRANGEBYSCORE', z, '-inf', at), function(gone)
    redis.call('HDEL', h, unpack(gone))
    redis.call('ZREM', z, unpack(gone))
  end)
end

local function entries(z, h, at)
  local all = {}
  each(redis.call('ZRANGEBYSCORE', z, '(' .. at, '+inf'), function(ids)
    for _, entry in ipairs(redis.call('HMGET', h, unpack(ids))) do
      if entry then all[#all + 1] = entry end
    end
  end)
  return all
end

-- A tunnel's record: a line with "H" (held) or "L" (lost), epoch and owner, a line of JSON, and of a lost one a line that says why.
-- Epochs have 20 digits each, so that they compare as they are; as numbers here they would lose their last bits.
local function parse(record)
  local state, epoch, owner, rest = string.match(record, '^(%u) (%d+) (%S+)\n(.*)$')
  return state == 'L', epoch, owner, rest
end
