-- Enters or replaces an entry of a list. Tells of it when it is new, or its head (what others want to know) has changed.
-- KEYS zset, hash. ARGV id, ttl in ms, head (no newline), body, most entries, channel, event.
-- Returns 1, or 0 when the list is full.
local z, h, id, ttl = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local at = now()
sweep(z, h, at)
local was = redis.call('HGET', h, id)
if not was and redis.call('ZCARD', z) >= tonumber(ARGV[5]) then return 0 end
local head = ARGV[3] .. '\n'
redis.call('HSET', h, id, head .. ARGV[4])
redis.call('ZADD', z, at + ttl, id)
keep(z, ttl)
keep(h, ttl)
if not was or string.sub(was, 1, #head) ~= head then redis.call('PUBLISH', ARGV[6], ARGV[7]) end
return 1
