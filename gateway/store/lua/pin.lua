-- Stores a value unless there is one, and makes what is there last. KEYS value. ARGV value, ttl in ms. Returns what is there.
local has = redis.call('GET', KEYS[1])
if not has then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return has
