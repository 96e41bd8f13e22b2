-- Counts slots. Writes nothing. KEYS several of slots.
local counts, after = {}, '(' .. now()
for i, key in ipairs(KEYS) do counts[i] = redis.call('ZCOUNT', key, after, '+inf') end
return counts
