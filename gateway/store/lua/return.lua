-- Frees slots. KEYS slots. ARGV ids.
each(ARGV, function(some) redis.call('ZREM', KEYS[1], unpack(some)) end)
return 1
