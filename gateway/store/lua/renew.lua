-- Holds slots for another lease. KEYS slots. ARGV lease in ms, ids.
local at = now() + tonumber(ARGV[1])
local list = {}
for i = 2, #ARGV do
  list[#list + 1] = at
  list[#list + 1] = ARGV[i]
end
each(list, function(some) redis.call('ZADD', KEYS[1], unpack(some)) end)
keep(KEYS[1], tonumber(ARGV[1]))
return 1
