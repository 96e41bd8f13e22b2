-- Makes or refreshes a tunnel's record.
-- KEYS record. ARGV epoch, owner, JSON, ttl in ms. Returns nil, or the record when it is lost, another's, or of a higher epoch.
local record = redis.call('GET', KEYS[1])
if record then
  local lost, epoch, owner = parse(record)
  if lost or owner ~= ARGV[2] or epoch > ARGV[1] then return record end
end
redis.call('SET', KEYS[1], 'H ' .. ARGV[1] .. ' ' .. ARGV[2] .. '\n' .. ARGV[3], 'PX', ARGV[4])
return false
