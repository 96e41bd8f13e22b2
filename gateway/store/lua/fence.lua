-- Marks a tunnel's record as lost, if its epoch is the one that was seen, and tells of it.
-- KEYS record. ARGV epoch, why (JSON), ttl in ms, channel, event.
-- Returns nil when there is none, or 1 (this call, or the same one before, has fenced it) or 0, and the record.
local record = redis.call('GET', KEYS[1])
if not record then return false end
local lost, epoch, owner, rest = parse(record)
if lost then return {string.match(rest, '\n(.*)$') == ARGV[2] and 1 or 0, record} end
if epoch ~= ARGV[1] then return {0, record} end
record = 'L ' .. epoch .. ' ' .. owner .. '\n' .. rest .. '\n' .. ARGV[2]
redis.call('SET', KEYS[1], record, 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return {1, record}
