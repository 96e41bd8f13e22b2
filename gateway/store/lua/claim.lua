-- Claims something, unless somebody else has. KEYS claim. ARGV by, ttl in ms. Returns 1 or 0.
local has = redis.call('GET', KEYS[1])
if has and has ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
