"""The ledger in Redis: one hash, one script, one round trip. Its rules are those of `buckets.Ledger`.

Times are the server's, so the clocks of the processes need not agree. Each run writes, so one without calls finds out
whether the server takes writes. Redis 6 and later.
"""

from __future__ import annotations

from observability_integration.redis_backend import Script

# Key: the hash. `r` and `t` are what is left of requests and tokens, `ra` and `ta` as of when (in µs), `gate` is until
# when no call is let through (in µs), and `line` are the claims: queue, since and until when (in ms), and tokens.
# Arguments: the queue; rate and capacity of requests and of tokens; requests and tokens to put back; what is left of
# them at the most ('' if unknown); for how many µs to close the gate; how long a claim stands (in ms); and of each call
# its tokens and for how many ms it has waited.
# Answers: how many calls may go; after how many seconds to ask for the next one; what that one waits for (0 gate,
# 1 requests, 2 tokens); what is left of requests and tokens ('' without a limit); seconds until the gate opens.
TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local me = ARGV[1]
local rate_r, most_r = tonumber(ARGV[2]), tonumber(ARGV[3])
local rate_t, most_t = tonumber(ARGV[4]), tonumber(ARGV[5])
local kept = redis.call('HMGET', KEYS[1], 'r', 'ra', 't', 'ta', 'gate', 'line')
local gate = math.max(tonumber(kept[5] or 0), now + tonumber(ARGV[10]))

local function filled(level, at, rate, most, back, stated)
  if rate == 0 then return 0 end
  local left = most
  if level and at then
    left = math.min(most, tonumber(level) + rate * math.max(0, now - tonumber(at)) / 1000000)
  end
  left = math.min(most, left + tonumber(back))
  if stated ~= '' then left = math.min(left, tonumber(stated)) end
  return left
end

local r = filled(kept[1], kept[2], rate_r, most_r, ARGV[6], ARGV[8])
local t = filled(kept[3], kept[4], rate_t, most_t, ARGV[7], ARGV[9])

local ahead = {}
if kept[6] then
  for _, claim in ipairs(cjson.decode(kept[6])) do
    if claim[1] ~= me and claim[3] > now_ms then ahead[#ahead + 1] = claim end
  end
end
local granted, wait, short, mine = 0, 0, 0, nil
local held_r, held_t, passed = 0, 0, 0
for i = 12, #ARGV, 2 do
  local tokens, since = tonumber(ARGV[i]), now_ms - tonumber(ARGV[i + 1])
  while ahead[passed + 1] and ahead[passed + 1][2] < since do
    passed = passed + 1
    held_r, held_t = held_r + 1, held_t + ahead[passed][4]
  end
  wait, short = (gate - now) / 1000000, 0
  local wait_r = rate_r > 0 and (1 + held_r - r) / rate_r or 0
  local wait_t = rate_t > 0 and (math.min(tokens, most_t) + held_t - t) / rate_t or 0
  if wait_r > wait then wait, short = wait_r, 1 end
  if wait_t > wait then wait, short = wait_t, 2 end
  if wait > 0.000001 then
    mine = {me, since, now_ms + tonumber(ARGV[11]), tokens}
    break
  end
  r, t, granted, wait = r - 1, t - tokens, granted + 1, 0
end

if mine then
  local place = 1
  while ahead[place] and ahead[place][2] <= mine[2] do place = place + 1 end
  table.insert(ahead, place, mine)
end
local life = math.max(60, (gate - now) / 1000000)
local function keep(level, at, left, rate, most)
  if rate > 0 then
    redis.call('HSET', KEYS[1], level, string.format('%.17g', left), at, string.format('%.0f', now))
    life = math.max(life, 60 + (most - left) / rate)
  end
end
keep('r', 'ra', r, rate_r, most_r)
keep('t', 'ta', t, rate_t, most_t)
redis.call('HSET', KEYS[1], 'gate', string.format('%.0f', gate))
if #ahead > 0 then
  redis.call('HSET', KEYS[1], 'line', cjson.encode(ahead))
elseif kept[6] then
  redis.call('HDEL', KEYS[1], 'line')
end
if life * 1000 > redis.call('PTTL', KEYS[1]) then redis.call('PEXPIRE', KEYS[1], math.ceil(life * 1000)) end
local function answer(rate, left) return rate > 0 and string.format('%.17g', left) or '' end
return {granted, string.format('%.9f', math.max(0, wait)), short, answer(rate_r, r), answer(rate_t, t),
  string.format('%.6f', math.max(0, (gate - now) / 1000000))}
""")
