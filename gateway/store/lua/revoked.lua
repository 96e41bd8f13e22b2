-- Lists revocations, unless the caller knows them. Writes nothing.
-- KEYS zset, hash, version. ARGV the version that is known. Returns the version, and entries when it is another one.
local version = there(KEYS[1]) and there(KEYS[2]) and redis.call('GET', KEYS[3]) or 'none'
if version == ARGV[1] then return {version} end
local all = entries(KEYS[1], KEYS[2], (now()))
table.insert(all, 1, version)
return all
