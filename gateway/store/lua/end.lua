-- Marks the owner's own record as lost, also if it is not there. The epoch never goes back.
-- KEYS record. ARGV epoch, owner, JSON, why (JSON), ttl in ms.
local record, epoch = redis.call('GET', KEYS[1]), ARGV[1]
if record then
  local lost, has, owner = parse(record)
  if lost or owner ~= ARGV[2] then return false end
  if has > epoch then epoch = has end
end
redis.call('SET', KEYS[1], 'L ' .. epoch .. ' ' .. ARGV[2] .. '\n' .. ARGV[3] .. '\n' .. ARGV[4], 'PX', ARGV[5])
return false
