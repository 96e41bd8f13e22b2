-- Grants or refuses a slot, and with a rate an open, in one step; a refusal takes nothing. The buckets are those of bucket.go: one for
-- each tier, kept as GCRA does by the time, in microseconds, at which it is whole again.
-- KEYS slots (zset, id -> when its lease ends), opens (hash, tier -> "per minute, burst, whole").
-- ARGV slot's id, limit, lease in ms, tier, opens per minute, burst, how long to remember buckets that are whole in ms, most tiers.
-- Returns whether it was granted, whether the limit is reached, slots held, tokens of the tier's bucket (text: it has a fraction).
local id, limit, lease, tier = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local perminute, burst = tonumber(ARGV[5]), tonumber(ARGV[6])
local ms, us = now()

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
local held, again = redis.call('ZCARD', KEYS[1]), redis.call('ZSCORE', KEYS[1], id)
local full = limit > 0 and held >= limit and not again
local granted = not full

local all, own = {}, nil
local function tokens(k) return k.burst - math.max(0, k.whole - us) * k.rate end
local function set(k, n) k.whole = us + math.max(0, k.burst - n) / k.rate end
-- The least that a bucket holds: nothing, but less where a slower tier has a larger burst.
local function floor(k)
  local least = 0
  for _, other in ipairs(all) do
    if other.rate < k.rate then least = math.min(least, k.burst - other.burst) end
  end
  return least
end
local function load()
  local raw = redis.call('HGETALL', KEYS[2])
  for i = 1, #raw, 2 do
    local m, b, w = string.match(raw[i + 1], '^(%S+) (%S+) (%S+)$')
    local k = {tier = raw[i], perminute = tonumber(m), burst = tonumber(b), whole = tonumber(w)}
    k.rate = k.perminute / 60000000
    all[#all + 1] = k
    if k.tier == tier then own = k end
  end
end
-- What was used of a tier carries over when it changes.
local function follow(k)
  local had = tokens(k)
  local used = k.burst - had
  k.perminute, k.rate, k.burst = perminute, perminute / 60000000, burst
  set(k, math.max(k.burst - used, math.min(had, 0)))
end
-- A new bucket is as if it had counted from the start, as far as that is known.
local function add()
  local k = {tier = tier, perminute = perminute, rate = perminute / 60000000, burst = burst, whole = us}
  local n = k.burst
  for _, other in ipairs(all) do
    n = math.min(n, k.burst - (other.burst - tokens(other)))
    if other.rate > k.rate and k.burst > other.burst then n = math.min(n, 0) end
  end
  set(k, math.max(n, floor(k)))
  if #all >= tonumber(ARGV[8]) then
    table.sort(all, function(a, b) return a.whole > b.whole end)
    redis.call('HDEL', KEYS[2], table.remove(all).tier)
  end
  all[#all + 1] = k
  return k
end
local function save()
  local last = us
  for _, k in ipairs(all) do
    redis.call('HSET', KEYS[2], k.tier, string.format('%d %d %.2f', k.perminute, k.burst, k.whole))
    last = math.max(last, k.whole)
  end
  keep(KEYS[2], math.ceil((last - us) / 1000) + tonumber(ARGV[7]))
end

local left = 0
if perminute > 0 then
  load()
  if not own then
    own = add()
  elseif own.perminute ~= perminute or own.burst ~= burst then
    follow(own)
  end
  granted = granted and tokens(own) + 0.000001 >= 1
  if granted then
    for _, k in ipairs(all) do set(k, math.max(tokens(k) - 1, floor(k))) end
  end
  save()
  left = tokens(own)
end
if granted then
  redis.call('ZADD', KEYS[1], ms + lease, id)
  keep(KEYS[1], lease)
  if not again then held = held + 1 end
end
return {granted and 1 or 0, full and 1 or 0, held, string.format('%.9f', left)}
