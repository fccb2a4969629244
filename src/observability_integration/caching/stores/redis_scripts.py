"""What must be atomic in Redis: scripts, each one round trip.

All keys of a script share a hash tag, so a cluster runs it on one node. MGET stands where GET would do, because it
answers nil for a key of another type, which is as good as no entry. Times are the server's, so the clocks of the
processes need not agree. A note is published with pcall: a Redis user without the right to publish can still share
entries, and others find them when they ask again. Redis 6 and later.
"""

from __future__ import annotations

from observability_integration.redis_backend import Script

# A lease holds the leader's token, its number among all leases, and when it was given: no two are alike. To renew,
# commit or release takes the token.
_HOLDS = """
local held = redis.call('MGET', KEYS[1])[1]
if not held or string.sub(held, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then return 0 end
"""

# Keys: entry, clear mark, lease, generation. Arguments: token, life of the lease in ms, start of the known entry.
# A lease from before the operation was cleared does not count: what is made under it is void. One that is held with the
# same token is given again: the answer may have been lost the first time.
ACQUIRE = Script("""
local found = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local entry = found[1]
if entry and entry ~= '' and (ARGV[3] == '' or string.sub(entry, 1, #ARGV[3]) ~= ARGV[3]) then
  return {entry, found[2], 0, 0, 0, 0}
end
local since = found[3] and string.match(found[3], ':(%d+)$')
local void = since and found[2] and #since == #found[2] and since <= found[2]
local mine = found[3] and string.sub(found[3], 1, #ARGV[1] + 1) == ARGV[1] .. ':'
if found[3] and not void and not mine then
  return {false, found[2], 0, 0, 0, redis.call('PTTL', KEYS[3])}
end
local now = redis.call('TIME')
local moment = now[1] .. string.rep('0', 6 - #now[2]) .. now[2]
local generation = redis.call('INCR', KEYS[4])
redis.call('SET', KEYS[3], ARGV[1] .. ':' .. generation .. ':' .. moment, 'PX', ARGV[2])
return {false, found[2], now[1], now[2], 1, 0}
""")

# Keys: lease. Arguments: the longest life of a lease in ms.
END_LEASE = Script("""
local left = redis.call('PTTL', KEYS[1])
if left == -1 or left > tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end
return 0
""")

# Keys: lease. Arguments: token, life of the lease in ms.
RENEW = Script(f"""{_HOLDS}
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")

# Keys: lease, entry. Arguments: token, entry, life in ms, channel, note. The entry first: if there is no memory for it,
# the lease is still there to be released.
COMMIT = Script(f"""{_HOLDS}
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', ARGV[4], ARGV[5])
return 1
""")

# Keys: lease. Arguments: token, channel, note.
RELEASE = Script(f"""{_HOLDS}
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
""")

# Keys: entry, lease. Arguments: entry, life in ms, channel, note.
PUT_LATE = Script("""
local found = redis.call('MGET', KEYS[1], KEYS[2])
if found[1] or found[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 1
""")

# Keys: entries and leases. Arguments: channel, notes.
DELETE = Script("""
if #KEYS > 0 then redis.call('DEL', unpack(KEYS)) end
for index = 2, #ARGV do redis.pcall('PUBLISH', ARGV[1], ARGV[index]) end
return 1
""")

# Keys: mark. Arguments: life in ms, channel, note. A mark never goes back, even if the server's clock does.
MARK = Script("""
local now = redis.call('TIME')
local moment = now[1] .. string.rep('0', 6 - #now[2]) .. now[2]
local before = redis.call('MGET', KEYS[1])[1]
if before and #before == #moment and before > moment then moment = before end
redis.call('SET', KEYS[1], moment, 'PX', ARGV[1])
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
""")

# Keys: a key of its own. Arguments: life in ms.
PROBE = Script("""
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return redis.call('GET', KEYS[1])
""")
