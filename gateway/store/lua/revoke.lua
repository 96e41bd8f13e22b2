-- Enters revocations. One that was removed stays so; those that say nothing new change nothing.
-- KEYS zset, hash, version. ARGV new version, most entries, channel, and for each: id, until in ms, "1" removed or "0", body, event.
-- Returns 1, or 0 when the list is full.
local z, h, v = KEYS[1], KEYS[2], KEYS[3]
local at, changed, full = now(), false, false
sweep(z, h, at)
local room = tonumber(ARGV[2]) - redis.call('ZCARD', z)
local last = 0
for i = 4, #ARGV, 5 do
  local id, untilms, removed, value = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 2] .. '\n' .. ARGV[i + 3]
  local was = redis.call('HGET', h, id)
  local stays = was and (was == value or string.sub(was, 1, 1) == '1' and removed == '0')
  if untilms > at and not stays then
    if not was and room <= 0 then
      full = true
    else
      if not was then room = room - 1 end
      redis.call('HSET', h, id, value)
      redis.call('ZADD', z, untilms, id)
      redis.call('PUBLISH', ARGV[3], ARGV[i + 4])
      last, changed = math.max(last, untilms), true
    end
  end
end
if changed then
  keep(z, last - at)
  keep(h, last - at)
  redis.call('SET', v, ARGV[1], 'PX', redis.call('PTTL', z))
end
return full and 0 or 1
