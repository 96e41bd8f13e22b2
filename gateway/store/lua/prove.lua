-- Writes, to prove that one can. KEYS value. ARGV value, ttl in ms.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
