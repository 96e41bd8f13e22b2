-- Removes an entry of a list, and tells of it when it was there.
-- KEYS zset, hash. ARGV id, channel, event.
sweep(KEYS[1], KEYS[2], (now()))
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return 1
