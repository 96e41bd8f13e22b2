-- Reads a tunnel's record. Writes nothing. KEYS record.
return redis.call('GET', KEYS[1])
