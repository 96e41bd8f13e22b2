-- Lists the entries that have not expired, "head\nbody" each. Writes nothing, so that a read-only replica answers too.
-- KEYS zset, hash.
return entries(KEYS[1], KEYS[2], (now()))
