"""What must be atomic in Redis: scripts, each one round trip.

All keys of a script share a hash tag, so a cluster runs it on one node. MGET stands where GET would do, because it
answers nil for a key of another type, which is as good as no entry. Times are the server's, so the clocks of the
processes need not agree. A note is published with pcall: a Redis user without the right to publish can still share
entries, and others find them when they ask again. Redis 6 and later.

Redis may evict any key at any time, so no key says that an entry is void. Keys say what is valid, and without them
nothing is:

========== ========================================================== ==================================================
key        value                                                      without it
========== ========================================================== ==================================================
generation ``id:number``, see `Generation`                            all entries of the operation are void
tag        ``id:number``; not invalidated since that number           entries with the tag are void
log        ``id:number:`` and, newest first, which key or tag was     what was being made during an invalidation is
           invalidated by which cache, for the last of the numbers    not written, unless its tag has a key
========== ========================================================== ==================================================
"""

from __future__ import annotations

from observability_integration.redis_backend import Script

ITEM_CHARS = 20  # of an entry's or a tag's hash in the log
ORIGIN_CHARS = 16
_LOGGED = 100  # invalidations in the log: as many may be made during a call

# A lease holds the leader's token and the id of the generation. To renew, commit or release takes the token.
_HOLDS = """
local held = redis.call('MGET', KEYS[1])[1]
if not held or string.sub(held, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then return 0 end
"""

# Numbers of more digits would be rounded. What no script can have written counts as absent, and is replaced.
_PARSE = """
local function parse(text)
  local id, number = string.match(text or '', '^(%x+):(%d+)$')
  if id and #id == 16 and #number < 15 then return id, tonumber(number) end
end
"""

# Whether it is known that `item` was not invalidated after `since`, or by `own` at most.
_UNTOUCHED = f"""
local function untouched(log, id, number, since, item, own)
  if number == since then return true end
  local of, upto, items = string.match(log or '', '^(%x+):(%d+):(.*)$')
  local chars = {ITEM_CHARS + ORIGIN_CHARS} * (number - since)
  if of ~= id or tonumber(upto) ~= number or chars > #items then return false end
  for at = 1, chars, {ITEM_CHARS + ORIGIN_CHARS} do
    local by = string.sub(items, at + {ITEM_CHARS}, at + {ITEM_CHARS + ORIGIN_CHARS - 1})
    if string.sub(items, at, at + {ITEM_CHARS - 1}) == item and by ~= own then return false end
  end
  return true
end
"""

# Whether the generation is that of the basis, and none of the tags, from KEYS[5] on, was invalidated since. The keys of
# the tags then live as long as the entry.
_VOUCHED = f"""
{_PARSE}{_UNTOUCHED}
local function vouched(generation, log, basis, since, life)
  local id, number = parse(generation)
  if id ~= basis or number < since then return false end
  for at = 5, #KEYS do
    local of, last = parse(redis.call('MGET', KEYS[at])[1])
    local left = redis.call('PTTL', KEYS[at])
    if of == id and last <= since then
      if left < life then redis.call('PEXPIRE', KEYS[at], life) end
    elseif untouched(log, id, number, since, string.sub(KEYS[at], -{ITEM_CHARS}), '') then
      redis.call('SET', KEYS[at], id .. ':' .. since, 'PX', math.max(left, life))
    else
      return false
    end
  end
  return true, id, number
end
"""

# Keys: entry, generation, lease, tags. Arguments: token, life of the lease in ms, start of the known entry, id for a
# new generation, life of what is made here in ms. A lease of another generation does not count: what is made under it
# is void. One that is held with the same token is given again: the answer may have been lost the first time.
ACQUIRE = Script(f"""{_PARSE}
local found = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local entry, held = found[1], found[3]
local id, number = parse(found[2])
if id and entry and entry ~= '' and (ARGV[3] == '' or string.sub(entry, 1, #ARGV[3]) ~= ARGV[3]) then
  return {{entry, found[2], 0, 0, 0, 0}}
end
local mine = held and string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':'
if id and held and not mine and string.sub(held, -17) == ':' .. id then
  return {{false, found[2], 0, 0, 0, redis.call('PTTL', KEYS[3])}}
end
if not id then
  id, number = ARGV[4], 0
  redis.call('SET', KEYS[2], id .. ':0', 'PX', ARGV[5])
end
for at = 4, #KEYS do
  if parse(redis.call('MGET', KEYS[at])[1]) ~= id then
    redis.call('SET', KEYS[at], id .. ':' .. number, 'PX', ARGV[5])
  end
end
local now = redis.call('TIME')
redis.call('SET', KEYS[3], ARGV[1] .. ':' .. id, 'PX', ARGV[2])
return {{false, id .. ':' .. number, now[1], now[2], 1, 0}}
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

# Keys: lease, entry, generation, log, tags. Arguments: token, entry, life in ms, channel, note, id and number of the
# basis, life of the generation in ms. The entry first: if there is no memory for it, the lease is still there to be
# released.
COMMIT = Script(f"""{_VOUCHED}
local life = tonumber(ARGV[3])
local found = redis.call('MGET', KEYS[1], KEYS[3], KEYS[4])
local held = found[1]
if not held or string.sub(held, 1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then return 0 end
if not vouched(found[2], found[3], ARGV[6], tonumber(ARGV[7]), life) then return -1 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if redis.call('PTTL', KEYS[3]) < life then redis.call('PEXPIRE', KEYS[3], ARGV[8]) end
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

# Keys: lease, entry, generation, log, tags. Arguments: name of the entry in the log, entry, life in ms, channel, note,
# id and number of the basis, life of the generation in ms, origin.
PUT_LATE = Script(f"""{_VOUCHED}
local life, since = tonumber(ARGV[3]), tonumber(ARGV[7])
local found = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
if found[1] or found[2] then return 0 end
local valid, id, number = vouched(found[3], found[4], ARGV[6], since, life)
if not valid or not untouched(found[4], id, number, since, ARGV[1], ARGV[9]) then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if redis.call('PTTL', KEYS[3]) < life then redis.call('PEXPIRE', KEYS[3], ARGV[8]) end
redis.pcall('PUBLISH', ARGV[4], ARGV[5])
return 1
""")

# Keys: generation, log, what is to be deleted. Arguments: channel, origin, life of the log in ms, names in the log, all
# in one text, and a note for each. Each note is published with the generation after its invalidation.
INVALIDATE = Script(f"""{_PARSE}
local found = redis.call('MGET', KEYS[1], KEYS[2])
local id, number = parse(found[1])
redis.call('DEL', unpack(KEYS, 3))
if id then
  local of, upto, items = string.match(found[2] or '', '^(%x+):(%d+):(.*)$')
  if of ~= id or tonumber(upto) ~= number then items = '' end
  for at = 1, #ARGV[4], {ITEM_CHARS} do
    items = string.sub(ARGV[4], at, at + {ITEM_CHARS - 1}) .. ARGV[2] .. items
  end
  items = string.sub(items, 1, {_LOGGED * (ITEM_CHARS + ORIGIN_CHARS)})
  local after = number + #ARGV[4] / {ITEM_CHARS}
  redis.call('SET', KEYS[1], id .. ':' .. after, 'KEEPTTL')
  redis.call('SET', KEYS[2], id .. ':' .. after .. ':' .. items, 'PX', ARGV[3])
end
for index = 5, #ARGV do
  redis.pcall('PUBLISH', ARGV[1], id and ARGV[index] .. '\\n' .. id .. ':' .. number + index - 4 or ARGV[index])
end
return 1
""")

# Keys: generation, log. Arguments: channel, note.
CLEAR = Script("""
redis.call('DEL', KEYS[1], KEYS[2])
redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return 1
""")

# Keys: a key of its own. Arguments: life in ms.
PROBE = Script("""
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return redis.call('GET', KEYS[1])
""")
